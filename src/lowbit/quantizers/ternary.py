"""The ternary quantizer: −s, 0, +s."""

from __future__ import annotations

from torch import Tensor

from lowbit._errors import ConfigError
from lowbit.quantizers._base import QUANTIZERS, AbstractQuantizer, check_policy
from lowbit.quantizers.granularity import Granularity, as_granularity
from lowbit.quantizers.grid import Grid
from lowbit.quantizers.scale import Scale, max_abs, mean_abs, positive


@QUANTIZERS.register("ternary")
class Ternary(AbstractQuantizer):
    """Three levels: 0 where |x| ≤ Δ, ±s elsewhere, with Δ = threshold·mean|x|.

    Forward: `q = s·c`, `c = sign(x)·1[|x| > Δ]`; in step units `z = x / (2Δ)`, so that the thresholds are ±1/2.
    Backward: `∂q/∂x = s·e'(z)/(2Δ)`, Δ held constant. The paper's estimator is `identity`; with `clipped`, weights
    beyond 2Δ get no gradient.

    Args:
        scale: mean-abs (TWN: the mean of |x| over the elements beyond Δ, [li2016twn]), none, max-abs or learned.
        granularity: `tensor`, `channel` or `group:SIZE`; Δ and s follow it.
        threshold: Δ in units of mean|x|; 0.7 in the paper.

    Source: [li2016twn], Sec. 2.
    """

    policies = ("mean-abs", "none", "max-abs", "learned")
    widths = (2,)
    signed = True
    rounding = None
    relative = True
    rectifies = False

    def __init__(
        self,
        scale: str = "mean-abs",
        granularity: str | Granularity = "tensor",
        threshold: float = 0.7,
        shape: tuple[int, ...] | None = None,
        axis: int = 0,
        batched: bool = False,
    ) -> None:
        super().__init__()
        check_policy(type(self), scale)
        if not 0 < threshold < 1:
            raise ConfigError(f"threshold {threshold} of quantizer 'ternary' is not between 0 and 1 (0.7 in the paper)")
        self.threshold = threshold
        self.scaling = Scale(scale, as_granularity(granularity, axis), self.grid, shape, batched)

    @classmethod
    def examples(cls) -> list[AbstractQuantizer]:
        """Each scale policy, each granularity."""
        return [*(cls(scale=policy) for policy in cls.policies), cls(granularity="channel"), cls(granularity="group:4")]

    @property
    def grid(self) -> Grid:
        """{−1, 0, +1}."""
        return Grid(-1, 1)

    def _delta(self, x: Tensor, dims: tuple[int, ...]) -> Tensor:
        return positive(self.threshold * mean_abs(x, dims))

    def _mean_beyond(self, x: Tensor, dims: tuple[int, ...]) -> Tensor:
        beyond = (x.abs() > self._delta(x, dims)).to(x.dtype)
        keep = len(dims) < x.ndim
        return (x.abs() * beyond).sum(dims, keepdim=keep) / beyond.sum(dims, keepdim=keep).clamp_min(1)

    def scale(self, x: Tensor) -> Tensor:
        """The magnitude of the outer levels."""
        return self.scaling(x, max_abs if self.scaling.policy == "max-abs" else self._mean_beyond)

    def normalize(self, x: Tensor, scale: Tensor) -> Tensor:
        """z = x / (2Δ)."""
        delta = self._delta(x.detach(), self.granularity.shared_dims(x.ndim))
        return x / (2 * delta)

    def discretize(self, z: Tensor) -> Tensor:
        """Saturate at ±1, round half to even (±1/2 go to 0)."""
        return z.clamp(-1, 1).round_()

    def dequantize(self, codes: Tensor, scale: Tensor) -> Tensor:
        """s·c."""
        return codes if self.scaling.policy == "none" else codes * scale
