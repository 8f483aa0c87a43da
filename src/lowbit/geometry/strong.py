"""The strong inverse of the LNE metric: a small network from the entries of g to those of an approximate inverse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from lowbit._errors import ConfigError
from lowbit.geometry._base import AbstractMetric

# n(n + 1)/2 = 2,080 inputs and outputs: beyond this the network costs more than the layer that it serves.
STRONG_LIMIT = 64


class StrongInverse(nn.Module):
    """An MLP from P and A, the entries of g below and on its diagonal, to those of a symmetric G ≈ g⁻¹.

    Trained to make `‖I − gG‖²` small, [chen2024ricci], Sec. 5.2, Eq. 28 and Fig. 4. One network serves a batch of
    blocks: trained on one metric it becomes its inverse to rounding; trained on hundreds, or on a distribution, it is
    an interpolation whose `misfit` should be looked at (`python -m benchmarks.geometry`). Width, activation (tanh),
    training and the start at G = I are ours: the paper gives none.

    Args:
        n: the size of a block, at most `STRONG_LIMIT`.
        hidden: width of the two hidden layers.
        seed: of the first weights.
        dtype, device: of the weights.

    Raises: ConfigError when n is too large.
    """

    rows: Tensor
    columns: Tensor
    place: Tensor

    def __init__(
        self,
        n: int,
        hidden: int = 64,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        if not 0 < n <= STRONG_LIMIT:
            raise ConfigError(
                f"the strong inverse takes blocks of 1 to {STRONG_LIMIT} weights, not n = {n}: its network has "
                "n(n + 1)/2 inputs and outputs; take smaller blocks, or inverse='exact' or 'weak', which are O(n)"
            )
        self.n = n
        entries = n * (n + 1) // 2
        generator = torch.Generator().manual_seed(seed)
        self.first = _linear(entries, hidden, generator).to(device, dtype)
        self.second = _linear(hidden, hidden, generator).to(device, dtype)
        self.last = _linear(hidden, entries, generator).to(device, dtype)
        with torch.no_grad():
            self.last.weight.zero_()  # G = I at the start
        rows, columns = torch.tril_indices(n, n, device=device)
        # Where entry (i, j) of a symmetric matrix stands among those of its lower triangle.
        place = torch.zeros(n, n, dtype=torch.long, device=device)
        place[rows, columns] = place[columns, rows] = torch.arange(entries, device=device)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        self.register_buffer("place", place, persistent=False)

    @classmethod
    def fitted_to(cls, metric: AbstractMetric, steps: int = 1000) -> Self:
        """A network made for these very metrics and trained on them: what the LNE metric does when given none."""
        g = metric.as_matrix().detach()
        # bfloat16 has not the digits to train with.
        dtype = g.dtype if g.dtype == torch.float64 else torch.float32
        network = cls(g.shape[-1], dtype=dtype, device=g.device)
        network.fit(lambda _: metric, steps)
        return network

    def forward(self, g: Tensor) -> Tensor:
        """`G = I + network(P, A)`, symmetric. Shapes: (..., n, n) → (..., n, n)."""
        hidden = torch.tanh(self.second(torch.tanh(self.first(g[..., self.rows, self.columns]))))
        return torch.eye(self.n, dtype=g.dtype, device=g.device) + self.last(hidden)[..., self.place]

    def check_size(self, metric: AbstractMetric) -> None:
        """Raises: ConfigError when the metric's n is not this network's."""
        if metric.shape[-1] != self.n:
            raise ConfigError(
                f"this StrongInverse is for blocks of {self.n} weights, the metric has {metric.shape[-1]}: make one of "
                "that size, or change the block"
            )

    def fit(
        self,
        sample: Callable[[torch.Generator], AbstractMetric],
        steps: int = 1000,
        learning_rate: float = 3e-3,
        seed: int = 0,
    ) -> Tensor:
        """Train on `‖I − gG‖²` (Eq. 28) by Adam with a cosine schedule; returns the last loss, a mean over blocks.

        Args:
            sample: gives the metrics of a step, to be drawn with the generator it is called with: blocks of the
                current weights, or of weights like those to come.
            steps: how many.
            learning_rate: at the start.
            seed: of that generator.
        """
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(self.parameters(), lr=learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        loss = torch.zeros(())
        with torch.enable_grad():
            for _ in range(steps):
                metric = sample(generator)
                self.check_size(metric)
                g = metric.as_matrix().detach().to(self.first.weight.dtype)
                loss = self._misfit(g).square().sum((-2, -1)).mean()
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
        return loss.detach()

    def matrix(self, metric: AbstractMetric) -> Tensor:
        """G, a constant of the weights. Shape (..., n, n), in the metric's dtype."""
        self.check_size(metric)
        g = metric.as_matrix().detach()
        with torch.no_grad():
            return self(g.to(self.first.weight.dtype)).to(g.dtype)

    def misfit(self, metric: AbstractMetric) -> Tensor:
        """`‖I − gG‖` (Frobenius), shape (...): how far G is from the inverse; 0 where it is the inverse."""
        with torch.no_grad():
            return torch.linalg.matrix_norm(self._misfit(metric.as_matrix().to(self.first.weight.dtype)))

    def solve(self, metric: AbstractMetric, v: Tensor) -> Tensor:
        """`G v`, with the derivative `d(g⁻¹v) = g⁻¹(dv − dg g⁻¹v)`, G in place of g⁻¹. Shapes: (..., n) → (..., n).

        Differentiating the network would give the slope of an interpolation, which no training has asked for.
        """
        inverse = self.matrix(metric)
        solved = (inverse @ v.unsqueeze(-1)).squeeze(-1)
        moved = metric.matvec(solved.detach())
        return solved - (inverse @ (moved - moved.detach()).unsqueeze(-1)).squeeze(-1)

    def _misfit(self, g: Tensor) -> Tensor:
        return torch.eye(self.n, dtype=g.dtype, device=g.device) - g @ self(g)


def _linear(fan_in: int, fan_out: int, generator: torch.Generator) -> nn.Linear:
    """A layer with normal weights of variance 1/fan_in, drawn from `generator` alone."""
    # An ordinary nn.Linear would draw from, and move, torch's ambient generator.
    layer = nn.Linear(fan_in, fan_out, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        layer.weight.copy_(torch.randn(fan_out, fan_in, generator=generator) / fan_in**0.5)
        layer.bias.zero_()
    return layer
