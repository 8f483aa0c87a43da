"""The networks of MetaQuant that turn a weight's gradient behind the quantizer into one before it."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

Net: TypeAlias = Literal["fc", "multifc", "lstmfc"]
Nonlinearity: TypeAlias = Literal["none", "relu", "tanh"]

NETS: tuple[Net, ...] = get_args(Net)
NONLINEARITIES: tuple[Nonlinearity, ...] = get_args(Nonlinearity)


class FullyConnected(nn.Module):
    """`depth` linear layers from `inputs` numbers to one, with a nonlinearity between them: (n, inputs) → (n,).

    Args:
        inputs: numbers per example.
        hidden: numbers between two layers.
        depth: layers.
        nonlinearity: none, relu or tanh.
        bias: whether the layers add one.
    """

    def __init__(self, inputs: int, hidden: int, depth: int, nonlinearity: Nonlinearity, bias: bool) -> None:
        super().__init__()
        widths = [inputs, *[hidden] * (depth - 1), 1]
        self.layers = nn.ModuleList(nn.Linear(a, b, bias, device="meta") for a, b in itertools.pairwise(widths))
        self.nonlinearity = nonlinearity
        # A chain of matrices is one matrix: multiplied first, it saves `hidden` numbers per example.
        self.is_a_matrix = nonlinearity == "none" and not bias

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs) → (n,)."""
        if self.is_a_matrix:
            one = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
            return (x @ functools.reduce(lambda product, weight: weight @ product, self.parameters(), one).T)[:, 0]
        for index, layer in enumerate(self.layers):
            if index and self.nonlinearity != "none":
                x = torch.relu(x) if self.nonlinearity == "relu" else torch.tanh(x)
            x = layer(x)
        return x[:, 0]


class MetaNetwork(nn.Module):
    """M_φ: (∂L/∂ŵ, w̃) → ∂L/∂w̃, for each weight by itself; all shapes (n,).

    - fc (FCGrad): `FCs(g)`, [chen2019metaquant], Eq. 9;
    - multifc (MultiFC): `g·FCs(w̃)`, Eq. 10;
    - lstmfc (LSTMFC): `g·FCs(LSTM(w̃))`, Eq. 11: the LSTM sees one w̃ per training step and weight, and remembers.

    φ starts as torch's layers do, uniform in ±1/√(inputs) (±1/√hidden in the LSTM); only lstmfc has biases. Both as in
    the authors' code.

    Args:
        net: fc, multifc or lstmfc.
        hidden: hidden size.
        depth: fully connected layers.
        nonlinearity: σ between these.
        seed: of φ's first values.
        aligned_at: if M(1, w̃) comes out negative at this w̃, the last layer's first values change their sign, so that
            M starts downhill; None leaves that to chance.
    """

    def __init__(
        self, net: Net, hidden: int, depth: int, nonlinearity: Nonlinearity, seed: int, aligned_at: float | None
    ) -> None:
        super().__init__()
        self.net = net
        self.hidden = hidden
        remembers = net == "lstmfc"
        self.lstm = nn.LSTMCell(1, hidden, device="meta") if remembers else None
        self.fcs = FullyConnected(hidden if remembers else 1, hidden, depth, nonlinearity, bias=remembers)
        self.to_empty(device="cpu")
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            inputs = module.in_features if isinstance(module, nn.Linear) else hidden
            for parameter in module.parameters(recurse=False):
                nn.init.uniform_(parameter, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=generator)
        with torch.no_grad():
            if aligned_at is not None and self(torch.ones(1), torch.full((1,), aligned_at))[0] < 0:
                for parameter in self.fcs.layers[-1].parameters():
                    parameter.neg_()

    def forward(self, grad: Tensor, weight: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """∂L/∂w̃, and what the LSTM then remembers, (2, n, hidden): None at first, and in the other nets."""
        if self.net == "fc":
            return self.fcs(grad[:, None]), None
        if self.lstm is None:
            return grad * self.fcs(weight[:, None]), None
        hidden, cell = self.lstm(weight[:, None], None if memory is None else (memory[0], memory[1]))
        return grad * self.fcs(hidden), torch.stack([hidden, cell])
