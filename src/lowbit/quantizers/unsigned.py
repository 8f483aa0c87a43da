"""Unsigned k-bit integers, for activations after a ReLU."""

from __future__ import annotations

from lowbit.quantizers._base import QUANTIZERS, AbstractInteger, AbstractQuantizer, check_policy
from lowbit.quantizers.granularity import Granularity, as_granularity
from lowbit.quantizers.grid import Grid
from lowbit.quantizers.scale import Scale


@QUANTIZERS.register("unsigned")
class Unsigned(AbstractInteger):
    """Unsigned k-bit integers times a step size: for inputs that are never negative, such as a ReLU's output.

    Forward: `q = s·clip(round(z), 0, Qp)`, `z = x·(1/s)`, `Qp = 2^k − 1`. Ties go to the even code; negative inputs
    become 0.
    Backward (with the clipped estimator): `∂q/∂x = 1[0 ≤ z ≤ Qp]`, and ∂q/∂s as in LSQ.

    Args:
        bits: k, 1 to 8.
        scale: learned (first value 2·mean|x|/√Qp), none (s = 1/Qp: DoReFa's activation on [0, 1], [zhou2016dorefa],
            Sec. 2.4), or max-abs (max|x|/Qp, recomputed for each batch).
        granularity: `tensor` or `channel` (axis 1).

    Source: [esser2020lsq], Sec. 2, with Qn = 0.
    """

    policies = ("learned", "none", "max-abs")
    widths = tuple(range(1, 9))
    signed = False
    rounding = "round"
    relative = False
    rectifies = False

    def __init__(
        self,
        bits: int = 2,
        scale: str = "learned",
        granularity: str | Granularity = "tensor",
        shape: tuple[int, ...] | None = None,
        axis: int = 1,
        batched: bool = True,
    ) -> None:
        super().__init__()
        check_policy(type(self), scale)
        self.bits = bits
        self.scaling = Scale(scale, as_granularity(granularity, axis), self.grid, shape, batched)

    @classmethod
    def examples(cls) -> list[AbstractQuantizer]:
        """All widths, each scale policy, both granularities."""
        widths = [cls(bits=k) for k in cls.widths]
        return [*widths, cls(scale="none"), cls(scale="max-abs"), cls(scale="max-abs", granularity="channel")]

    @property
    def grid(self) -> Grid:
        """0 … 2^k − 1."""
        return Grid(0, 2**self.bits - 1)
