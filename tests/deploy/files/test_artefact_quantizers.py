"""Weights whose codes do not say everything cannot be saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deploy_nets import trained
from lowbit._errors import ArtefactError
from lowbit.deploy import save
from lowbit.layers import FakeQuantize
from lowbit.quantizers import QUANTIZERS, AbstractQuantizer
from lowbit.quantizers.lsq import LSQ


class Odd(AbstractQuantizer):
    """A quantizer whose codes do not say what it does, and that is not registered."""

    policies, widths, signed, rounding, relative, rectifies = ("none",), (2,), True, None, True, False

    def __init__(self) -> None:
        super().__init__()
        self.inner = LSQ(bits=2, scale="max-abs")
        self.scaling = self.inner.scaling
        self.shift = 0.0

    @classmethod
    def examples(cls) -> list[AbstractQuantizer]:
        return [cls()]

    @property
    def grid(self) -> Any:
        return self.inner.grid

    def scale(self, x: Tensor) -> Tensor:
        return self.inner.scale(x)

    def normalize(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.inner.normalize(x, scale)

    def discretize(self, z: Tensor) -> Tensor:
        return self.inner.discretize(z)

    def dequantize(self, codes: Tensor, scale: Tensor) -> Tensor:
        return codes * scale + self.shift


def test_a_quantizer_without_a_name_or_with_hidden_state_cannot_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained(weights=2, quantizer="lsq(scale=max-abs)")
    quantize = model[3].weight_quantizer  # type: ignore[index]
    odd = Odd()
    odd.shift = 1.0
    model[3].weight_quantizer = FakeQuantize(odd, quantize.rule)  # type: ignore[index]
    with pytest.raises(ArtefactError, match=r"layer '3': its quantizer Odd has no name.*register"):
        save(model, tmp_path / "a")
    monkeypatch.setitem(QUANTIZERS._members, "odd", Odd)
    with pytest.raises(ArtefactError, match="layer '3': its codes and scale do not give its weight again"):
        save(model, tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    model = trained(weights=1)
    with torch.no_grad():
        model[3].weight[0, 0, 0, 0] = value  # type: ignore[index]
    with pytest.raises(ArtefactError, match="layer '3': its weight holds values that are not finite"):
        save(model, tmp_path / "a")
