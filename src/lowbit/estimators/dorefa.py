"""The weight gradient of DoReFa: through tanh and its maximum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.estimators._base import ESTIMATORS, AbstractEstimator
from lowbit.quantizers import Grid


@ESTIMATORS.register("dorefa")
@dataclass(frozen=True)
class DoReFa(AbstractEstimator):
    """The gradient of tanh(z)/max|tanh(z)|: large weights move little, and the layer's largest weight sets the scale.

    Forward: codes. Backward: `∂L/∂z = ∂L/∂codes · (1 − tanh²z) / max|tanh z|`, the maximum over the whole tensor and
    held constant. The sign of tanh(z)/max|tanh z| is the sign of z, so the forward value is that of the sign quantizer.
    For more bits DoReFa changes the forward value as well: use the quantizer `uniform(transform=tanh)` with `identity`.

    Source: [zhou2016dorefa], Sec. 2.3; the comparison in [chen2024ricci], Sec. 7.
    """

    linear_in_grad = True
    elementwise = False
    annealed = False
    binary_only = True
    roles = frozenset({"weights"})
    needs = frozenset({"z"})

    @classmethod
    def examples(cls) -> list[AbstractEstimator]:
        """The one instance there is."""
        return [cls()]

    def vjp(self, z: Tensor, codes: Tensor, grad: Tensor, grid: Grid) -> Tensor:
        """`grad · (1 − tanh²z) / max|tanh z|`."""
        t = torch.tanh(z)
        # An all-zero tensor has no maximum to divide by; the floor keeps its gradient finite.
        return grad * (1 - t * t) / t.abs().amax().clamp_min(torch.finfo(z.dtype).eps)
