"""The Ricci-flow method as dense matrices in float64, computed straight from Eq. 26 to 36, and a net to try it on."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import lowbit
from lowbit.geometry import largest_tau

LOSS = nn.CrossEntropyLoss()
RATES = {"3.weight": 0.1, "6.weight": 0.01}


def net(seed: int = 0) -> nn.Module:
    """Latent weights of 16 and 12 numbers, small enough for dense matrices; float layers at both ends."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.Conv2d(2, 2, 2),
        nn.BatchNorm2d(2),
        nn.Flatten(),
        nn.Linear(18, 3),
        nn.Linear(3, 3),
    )
    return lowbit.convert(model.double(), weights=1, estimator="identity")


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(5, 1, 6, 6, generator=generator, dtype=torch.float64)
    return images, torch.randint(0, 3, (5,), generator=generator)


def optimizer_for(model: nn.Module) -> torch.optim.Optimizer:
    rest = [p for name, p in model.named_parameters() if name not in RATES]
    groups = [{"params": [model.get_parameter(name)], "lr": rate} for name, rate in RATES.items()]
    return torch.optim.SGD([*groups, {"params": rest}], lr=0.1)


@dataclass(frozen=True)
class Case:
    """Options of the method, and what they mean with dense matrices."""

    alpha: float
    epsilon: float
    rho: float = 0.9
    inverse: str = "exact"
    metric: str = "lne"
    block: str | int = "layer"
    shifts: tuple[int, int, int, int] = (1, -1, 1, -1)

    @property
    def spec(self) -> str:
        options = ", ".join(f"{key}={value}" for key, value in vars(self).items())
        return f"ricci(mode=faithful, {options})"

    def blocks(self, w: Tensor) -> list[Tensor]:
        """The indices of the flattened weights that make up each block."""
        index = torch.arange(w.numel())
        if self.block == "layer":
            return [index]
        return list(index.split(w[0].numel() if self.block == "channel" else int(self.block)))

    def g(self, w: Tensor, tau: Tensor) -> Tensor:
        """Eq. 26 as a dense matrix, or the Hessian of Eq. 14."""
        u = torch.tanh(tau * w)
        return (
            torch.diag(1 - u * u) if self.metric == "hessian" else torch.eye(len(w), dtype=w.dtype) - torch.outer(u, u)
        )

    def solve(self, g: Tensor, v: Tensor) -> Tensor:
        weak = 2 * torch.eye(len(g), dtype=g.dtype) - g  # Cor. 19
        return weak @ v if self.inverse == "weak" else torch.linalg.solve(g, v)


def slow_translate(images: Tensor, rows: int, columns: int) -> Tensor:
    result = torch.zeros_like(images)
    height, width = images.shape[-2:]
    for row in range(height):
        for column in range(width):
            if 0 <= row - rows < height and 0 <= column - columns < width:
                result[..., row, column] = images[..., row - rows, column - columns]
    return result


def gradients(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    twin = copy.deepcopy(model)
    twin.zero_grad()
    LOSS(twin(images), labels).backward()
    return {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}


@dataclass
class Dense:
    """Algorithm 2 with dense matrices; remembers g(t)|a of every block of every layer."""

    case: Case
    previous: dict[str, list[list[Tensor]]] = field(default_factory=dict)
    n: dict[str, float] = field(default_factory=dict)
    gated: dict[str, float] = field(default_factory=dict)
    correction: dict[str, float] = field(default_factory=dict)

    def residual(self, now: Tensor, previous: list[Tensor]) -> Tensor:
        """N of Eq. 35 for one block."""
        k1, k2, j1, j2 = previous
        k, j = self.case.shifts[0] - self.case.shifts[1], self.case.shifts[2] - self.case.shifts[3]
        minus_two_ric = (k1 - k2) / k - (j1 - j2) / j
        return ((now - k1) - minus_two_ric).square().sum()

    def step(self, model: nn.Module, images: Tensor, labels: Tensor, rates: dict[str, float]) -> dict[str, Tensor]:
        """The gradient that every parameter should have after the step."""
        result = gradients(model, images, labels)
        k1, k2, j1, j2 = self.case.shifts
        moved = [slow_translate(images, *shift) for shift in ((k1, 0), (k2, 0), (0, j1), (0, j2))]
        shifted = [gradients(model, each, labels) for each in moved]
        for name, rate in rates.items():
            plain = result[name].reshape(-1)
            natural, self.n[name], slope = self.layer(name, model.get_parameter(name).detach(), plain, shifted, rate)
            self.gated[name] = float(self.n[name] > self.case.epsilon)
            self.correction[name] = float((natural - plain).norm() / plain.norm())
            result[name] = (natural * (not self.gated[name]) + self.case.alpha * slope).reshape(result[name].shape)
        return result

    def layer(
        self, name: str, weight: Tensor, plain: Tensor, shifted: list[dict[str, Tensor]], rate: float
    ) -> tuple[Tensor, float, Tensor]:
        """The natural gradient, N and ∂N/∂w of one layer."""
        case, w = self.case, weight.reshape(-1)
        natural, slope, n = torch.zeros_like(w), torch.zeros_like(w), 0.0
        metrics = []
        for number, index in enumerate(case.blocks(weight)):
            tau = self.tau(w[index])
            g = case.g(w[index], tau)
            natural[index] = case.solve(g, plain[index])
            moves = [rate * case.solve(g, each[name].reshape(-1)[index]) for each in shifted]
            if case.metric == "lne":
                tau = torch.stack([tau, *(self.tau(w[index] - move) for move in moves)]).amin(0)
            metrics.append([case.g(w[index] - move, tau) for move in moves])
            if name in self.previous:

                def flow(v: Tensor, number: int = number, tau: Tensor = tau, move: Tensor = moves[0]) -> Tensor:
                    return self.residual(case.g(v - move, tau), self.previous[name][number])

                share = 1 / len(case.blocks(weight))
                n += share * float(flow(w[index]))
                slope[index] = share * central_differences(flow, w[index])
        self.previous[name] = metrics
        return natural, n, slope

    def tau(self, w: Tensor) -> Tensor:
        """τ of one block."""
        if self.case.metric == "hessian":
            return (math.atanh(math.sqrt(self.case.rho)) / w.abs().max()).reshape(1)
        return largest_tau(w, self.case.rho)


def central_differences(function: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
    away = 1e-5 * torch.eye(len(w), dtype=w.dtype)
    return torch.stack([(function(w + a) - function(w - a)) / 2e-5 for a in away])


def mean(values: dict[str, float]) -> Tensor:
    return torch.tensor(sum(values.values()) / len(values), dtype=torch.float64)
