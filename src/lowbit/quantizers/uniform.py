"""The evenly spaced k-bit quantizer of the Ricci-flow paper: zero is not a level."""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit._errors import ConfigError
from lowbit.quantizers._base import QUANTIZERS, AbstractQuantizer, check_policy
from lowbit.quantizers.granularity import Granularity, as_granularity
from lowbit.quantizers.grid import Grid
from lowbit.quantizers.scale import Scale, max_abs, positive


@QUANTIZERS.register("uniform")
class Uniform(AbstractQuantizer):
    """k bits, 2^k levels evenly spaced on [−1, 1] (times a scale); zero is not a level.

    Forward: `Qk(x) = 2/N · round(z) − 1` with `N = 2^k − 1`, `z = N·(x / (2·M) + 1/2)`, `M = max|x|`; times s.
    Ties go to the even code. With `transform="tanh"`, x is replaced by tanh(x) first, which makes it the weight
    quantizer of DoReFa ([zhou2016dorefa], Sec. 2.3).
    Backward: `∂q/∂x = s·e'(z)/M` with the estimator's e' and M held constant (times 1 − tanh²x with the transform).

    Args:
        bits: k, 2 to 8.
        scale: what the values on [−1, 1] are multiplied by: none (the paper's), max-abs (then the values span the range
            of x), or learned.
        granularity: `tensor`, `channel` or `group:SIZE`; M and the scale follow it.
        transform: none or tanh.

    Source: [chen2024ricci], Eq. 38.
    """

    policies = ("none", "max-abs", "learned")
    widths = tuple(range(2, 9))
    signed = True
    rounding = None
    relative = True
    rectifies = False

    def __init__(
        self,
        bits: int = 2,
        scale: str = "none",
        granularity: str | Granularity = "tensor",
        transform: str = "none",
        shape: tuple[int, ...] | None = None,
        axis: int = 0,
        batched: bool = False,
    ) -> None:
        super().__init__()
        check_policy(type(self), scale)
        if transform not in ("none", "tanh"):
            raise ConfigError(f"transform '{transform}' of quantizer 'uniform' is neither 'none' nor 'tanh'")
        self.bits = bits
        self.transform = transform
        self.scaling = Scale(scale, as_granularity(granularity, axis), self.grid, shape, batched)

    @classmethod
    def examples(cls) -> list[AbstractQuantizer]:
        """All widths, each scale policy, each granularity, both transforms."""
        widths = [cls(bits=k) for k in cls.widths]
        scaled = [cls(bits=3, scale=policy) for policy in cls.policies]
        return [*widths, *scaled, cls(granularity="channel"), cls(granularity="group:4"), cls(transform="tanh")]

    @property
    def grid(self) -> Grid:
        """0 … 2^k − 1; the real zero lies half way between the two middle codes."""
        top = 2**self.bits - 1
        return Grid(0, top, zero=top / 2)

    def scale(self, x: Tensor) -> Tensor:
        """What the values on [−1, 1] are multiplied by."""
        return self.scaling(x, max_abs)

    def normalize(self, x: Tensor, scale: Tensor) -> Tensor:
        """z = N·(x / (2·M) + 1/2), within [0, N]."""
        x = torch.tanh(x) if self.transform == "tanh" else x
        largest = positive(max_abs(x.detach(), self.granularity.shared_dims(x.ndim)))
        # Division is correctly rounded: |x / M| ≤ 1, so that no element leaves the range.
        return self.grid.high * (x / largest / 2 + 0.5)

    def discretize(self, z: Tensor) -> Tensor:
        """Saturate at 0 and N, round half to even."""
        return z.clamp(0, self.grid.high).round_()

    def dequantize(self, codes: Tensor, scale: Tensor) -> Tensor:
        """s·(2·c − N)/N."""
        top = self.grid.high
        values = (2 * codes - top) / top
        return values if self.scaling.policy == "none" else values * scale

    def integers(self, codes: Tensor) -> Tensor:
        """n = 2·c − N: the odd numbers from −N to N."""
        return 2 * codes - self.grid.high

    def unit(self, scale: Tensor) -> Tensor:
        """s/N."""
        return scale / self.grid.high

    @property
    def integer_grid(self) -> Grid:
        """−N, −N + 2, …, N."""
        return Grid(-self.grid.high, self.grid.high, step=2)
