"""MetaQuant's Algorithm 1 ([chen2019metaquant]) written out with dense autograd, and a model to try it on."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import lowbit
from lowbit.methods import AbstractMethod, build_method
from lowbit.methods._meta_network import MetaNetwork

LOSS = nn.CrossEntropyLoss()
RATES = {"2.weight": 0.1, "4.weight": 0.03}


def float_net(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Weights that become latent of 42 and 28 numbers; layers that stay float at both ends."""
    torch.manual_seed(seed)
    layers = [nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 4), nn.Linear(4, 3)]
    return nn.Sequential(*layers).to(dtype)


def net(seed: int = 0, dtype: torch.dtype = torch.float64, estimator: str = "identity") -> nn.Module:
    return lowbit.convert(float_net(seed, dtype), weights=1, estimator=estimator)


def batch(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    return inputs.to(dtype), torch.randint(0, 3, (8,), generator=generator)


def optimizer_for(model: nn.Module) -> torch.optim.Optimizer:
    rest = [p for name, p in model.named_parameters() if name not in RATES]
    groups = [{"params": [model.get_parameter(name)], "lr": rate} for name, rate in RATES.items()]
    return torch.optim.SGD([*groups, {"params": rest}], lr=0.05)


def phi(method: AbstractMethod) -> MetaNetwork:
    network: MetaNetwork = method._net  # type: ignore[attr-defined]
    return network


def prepared(spec: str) -> AbstractMethod:
    """The method with φ in float64, where it is as soon as it has seen such a model."""
    method = build_method(spec)
    phi(method).double()
    return method


class Sign(torch.autograd.Function):
    """Forward: the sign. Backward: the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.where(x >= 0, 1.0, -1.0).to(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Algorithm1:
    """Lines 3 to 13 as printed: w_t is a function of φ, and the loss at w_t is differentiated by φ.

    Q is the sign, π that of plain SGD; φ's optimizer is Adam with 10⁻³, as in the paper's experiments.
    """

    def __init__(self, spec: str) -> None:
        self.network: MetaNetwork = copy.deepcopy(phi(prepared(spec)))
        self.adam = torch.optim.Adam(self.network.parameters(), lr=1e-3)
        self.dorefa = "preprocess=none" not in spec
        self.model = float_net()
        self.weights = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.behind: dict[str, Tensor] = {}  # ∂L/∂ŵ
        self.memory: dict[str, Tensor | None] = dict.fromkeys(RATES)

    def tilde(self, w: Tensor) -> Tensor:
        """A(w), Eq. 1 and 2; the maximum is held constant, as Eq. 4 has it."""
        return torch.tanh(w) / (2 * torch.tanh(w).abs().max().detach()) + 0.5 if self.dorefa else w

    def slope(self, w: Tensor) -> Tensor:
        return (1 - torch.tanh(w) ** 2) / torch.tanh(w).abs().max() if self.dorefa else torch.ones_like(w)

    def quantize(self, w: Tensor) -> Tensor:
        """Straight through the sign, the chain rule through A."""
        result: Tensor = Sign.apply(2 * self.tilde(w) - 1 if self.dorefa else w)
        return result

    def updated(self) -> dict[str, Tensor]:
        """Line 4: w_t of every latent weight, differentiable by φ."""
        result = {name: self.weights[name] for name in RATES}
        for name, behind in self.behind.items():
            w = self.weights[name]
            out, self.memory[name] = self.network(behind.reshape(-1), self.tilde(w).reshape(-1), self.memory[name])
            result[name] = w - RATES[name] * out.reshape(w.shape) * self.slope(w)
        return result

    def iterate(self, inputs: Tensor, labels: Tensor) -> list[Tensor]:
        """One iteration; returns ∂L/∂φ: nothing in the first, where no w depends on φ."""
        latent = self.updated()
        rest = {n: w.clone().requires_grad_() for n, w in self.weights.items() if n not in RATES}
        quantized = {name: self.quantize(w) for name, w in latent.items()}
        for value in quantized.values():
            if self.behind:
                value.retain_grad()
            else:
                value.requires_grad_()
        self.adam.zero_grad()
        LOSS(functional_call(self.model, rest | quantized, (inputs,)), labels).backward()
        self.adam.step()
        self.behind = {name: grad_of(value).clone() for name, value in quantized.items()}
        self.memory = {name: m if m is None else m.detach() for name, m in self.memory.items()}
        self.weights = {name: w.detach() for name, w in latent.items()}
        self.weights |= {n: w.detach() - 0.05 * grad_of(w) for n, w in rest.items()}
        return [grad_of(p) for p in self.network.parameters() if p.grad is not None]


def grad_of(x: Tensor) -> Tensor:
    assert x.grad is not None
    return x.grad
