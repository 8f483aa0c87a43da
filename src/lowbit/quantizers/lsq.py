"""Signed k-bit integers with a learned step: LSQ."""

from __future__ import annotations

from lowbit.quantizers._base import QUANTIZERS, AbstractInteger, AbstractQuantizer, check_policy
from lowbit.quantizers.granularity import Granularity, as_granularity
from lowbit.quantizers.grid import Grid
from lowbit.quantizers.scale import Scale


@QUANTIZERS.register("lsq")
class LSQ(AbstractInteger):
    """Signed k-bit integers times a step size that is learned.

    Forward: `q = s·clip(round(z), −Qn, Qp)`, `z = x·(1/s)`, `Qn = 2^(k−1)`, `Qp = 2^(k−1) − 1`. Ties go to the even
    code.
    Backward (with the clipped estimator): `∂q/∂x = 1[−Qn ≤ z ≤ Qp]`;
    `∂q/∂s = (round(z) − z inside, −Qn or Qp outside)/√(N·Qp)`. Nothing here says so: it is what ordinary autograd makes
    of scaling, staircase and rescaling.

    Args:
        bits: k, 2 to 8.
        scale: learned (first value 2·mean|x|/√Qp, [esser2020lsq], Sec. 2.1), or max-abs (max|x|/Qp, recomputed each
            time).
        granularity: `tensor`, `channel` or `group:SIZE`.

    Source: [esser2020lsq], Sec. 2. The paper counts the ends −Qn and Qp as outside, we count them as inside.
    """

    policies = ("learned", "max-abs")
    widths = tuple(range(2, 9))
    signed = True
    rounding = "round"
    relative = False
    rectifies = False

    def __init__(
        self,
        bits: int = 2,
        scale: str = "learned",
        granularity: str | Granularity = "tensor",
        shape: tuple[int, ...] | None = None,
        axis: int = 0,
        batched: bool = False,
    ) -> None:
        super().__init__()
        check_policy(type(self), scale)
        self.bits = bits
        self.scaling = Scale(scale, as_granularity(granularity, axis), self.grid, shape, batched)

    @classmethod
    def examples(cls) -> list[AbstractQuantizer]:
        """All widths, both scale policies, each granularity."""
        widths = [cls(bits=k) for k in cls.widths]
        return [*widths, cls(bits=4, scale="max-abs"), cls(scale="max-abs", granularity="channel")]

    @property
    def grid(self) -> Grid:
        """−2^(k−1) … 2^(k−1) − 1."""
        return Grid(-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1)
