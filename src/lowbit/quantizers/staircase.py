"""The quantized ReLU: rectification and rounding up in one staircase."""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit._errors import ConfigError
from lowbit.quantizers._base import QUANTIZERS, AbstractQuantizer, check_policy
from lowbit.quantizers.granularity import PerTensor
from lowbit.quantizers.grid import Grid
from lowbit.quantizers.resolution import half_gaussian_resolution, lloyd_resolution
from lowbit.quantizers.scale import Scale


@QUANTIZERS.register("staircase")
class Staircase(AbstractQuantizer):
    """The quantized ReLU of b bits: it takes the place of the `nn.ReLU` modules instead of following them.

    Forward: `q = α·σ(z)`, `z = x·(1/α)`; `σ(z) = 0` for z ≤ 0, `⌈z⌉` for 0 < z < 2^b − 1, `2^b − 1` above. So that
    values the staircase has produced itself keep their codes although 1/α is rounded, a z above an integer by two units
    in the last place or less counts as that integer. (Values rounded to bfloat16 in between may move up by one code.)
    Backward (with a coarse-ReLU estimator, g'): `∂q/∂x = g'(z)`; with α learned, autograd's `∂q/∂α = σ(z) − z·g'(z)`.

    Args:
        bits: b, 1 to 8.
        scale: where the resolution α comes from: fixed (`resolution`), fitted (Lloyd's iteration on the first tensor
            seen in training or calibration, kept from then on), or learned (a parameter that starts from that fit).
        resolution: α of scale=fixed: a positive number, or "half-gaussian", Lloyd's fit to max(0, N(0, 1)), for what
            comes out of a batch normalisation (1.2240, 0.6508, 0.3534, 0.1932 for 1 to 4 bits).

    Source: [long2021coarse], Sec. 2 (α = 1); the resolution as in [yin2019understanding], Sec. 4, and [cai2017hwgq],
    Sec. 3.1.2. That fit takes the nearest level where the staircase takes the one above: its values lie half a step
    higher, a shift that the next layer's bias or batch normalisation absorbs.
    """

    policies = ("fixed", "fitted", "learned")
    widths = tuple(range(1, 9))
    signed = False
    rounding = "ceil"
    relative = False
    rectifies = True

    def __init__(
        self,
        bits: int = 2,
        scale: str = "fixed",
        resolution: float | str = "half-gaussian",
        batched: bool = True,
    ) -> None:
        super().__init__()
        check_policy(type(self), scale)
        self.bits = bits
        self.resolution = _resolution(resolution, scale, bits)
        self.scaling = Scale(scale, PerTensor(), self.grid, batched=batched)

    @classmethod
    def examples(cls) -> list[AbstractQuantizer]:
        """All widths, each scale policy, a resolution of the user's."""
        widths = [cls(bits=k) for k in cls.widths]
        return [*widths, cls(resolution=1.0), cls(bits=4, scale="fitted"), cls(bits=3, scale="learned")]

    @property
    def grid(self) -> Grid:
        """0 … 2^b − 1."""
        return Grid(0, 2**self.bits - 1)

    def scale(self, x: Tensor) -> Tensor:
        """The resolution α."""
        if self.scaling.policy == "fixed":
            return x.new_full((), self.resolution)
        return self.scaling(x, lambda blocks, _: lloyd_resolution(blocks, self.bits))

    def normalize(self, x: Tensor, scale: Tensor) -> Tensor:
        """z = x·(1/α)."""
        return x * scale.reciprocal()

    def discretize(self, z: Tensor) -> Tensor:
        """Saturate at 0 and 2^b − 1, round up."""
        return z.clamp(0, self.grid.high).mul_(1 - ceil_slack(z.dtype)).ceil_()

    def dequantize(self, codes: Tensor, scale: Tensor) -> Tensor:
        """α·c."""
        return codes * scale


def _resolution(given: float | str, scale: str, bits: int) -> float:
    if given == "half-gaussian":
        return half_gaussian_resolution(bits)
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < float("inf"):
        raise ConfigError(
            f"resolution={given!r} of quantizer 'staircase': expected a positive number, the distance between two "
            "levels, or half-gaussian"
        )
    if scale != "fixed":
        raise ConfigError(
            f"resolution={given} of quantizer 'staircase' is for scale=fixed; scale={scale} takes it from data"
        )
    return float(given)


def ceil_slack(dtype: torch.dtype) -> float:
    """By how much, relatively, z may exceed an integer and still count as it: what three roundings add up to."""
    return 2 * torch.finfo(dtype).eps
