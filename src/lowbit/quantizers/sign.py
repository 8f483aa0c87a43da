"""The sign quantizer: 1 bit."""

from __future__ import annotations

from torch import Tensor

from lowbit.quantizers._base import QUANTIZERS, AbstractQuantizer, check_policy
from lowbit.quantizers.granularity import Granularity, as_granularity
from lowbit.quantizers.grid import Grid
from lowbit.quantizers.scale import Scale, max_abs, mean_abs


@QUANTIZERS.register("sign")
class Sign(AbstractQuantizer):
    """One bit: s·sign(x), with sign(0) = +1.

    Forward: `q = s·c`, `c = +1 for x ≥ 0, −1 otherwise`. The codes do not depend on the scale, so z = x: an estimator's
    threshold on z is in units of x itself, as in the papers that clip at |x| ≤ 1.
    Backward: `∂q/∂x = s·e'(x)` with the estimator's e'; with `detach=False` the data-derived scale adds its own term
    (sign(x)/n for mean-abs).

    Args:
        scale: none (Q1 of [chen2024ricci], Eq. 37), mean-abs (BWN, [rastegari2016xnor], Sec. 3.1), max-abs or learned.
        granularity: `tensor`, `channel` or `group:SIZE`.
        detach: hold the data-derived scale constant in the backward pass.

    Source: [chen2024ricci], Eq. 37; [rastegari2016xnor], Sec. 3.1.
    """

    policies = ("none", "mean-abs", "max-abs", "learned")
    widths = (1,)
    signed = True
    rounding = None
    relative = False
    rectifies = False

    def __init__(
        self,
        scale: str = "none",
        granularity: str | Granularity = "tensor",
        detach: bool = True,
        shape: tuple[int, ...] | None = None,
        axis: int = 0,
        batched: bool = False,
    ) -> None:
        super().__init__()
        check_policy(type(self), scale)
        self.scaling = Scale(scale, as_granularity(granularity, axis), self.grid, shape, batched, detach)

    @classmethod
    def examples(cls) -> list[AbstractQuantizer]:
        """Each scale policy, each granularity."""
        plain = [cls(scale=policy) for policy in cls.policies]
        return [*plain, cls(scale="mean-abs", granularity="channel"), cls(scale="mean-abs", granularity="group:4")]

    @property
    def grid(self) -> Grid:
        """{−1, +1}."""
        return Grid(-1, 1, step=2)

    def scale(self, x: Tensor) -> Tensor:
        """The magnitude of the two levels."""
        return self.scaling(x, max_abs if self.scaling.policy == "max-abs" else mean_abs)

    def normalize(self, x: Tensor, scale: Tensor) -> Tensor:
        """z = x."""
        return x

    def discretize(self, z: Tensor) -> Tensor:
        """+1 for z ≥ 0 (also −0.0), −1 otherwise."""
        return (z >= 0).to(z.dtype).mul_(2).sub_(1)

    def dequantize(self, codes: Tensor, scale: Tensor) -> Tensor:
        """s·c."""
        return codes if self.scaling.policy == "none" else codes * scale
