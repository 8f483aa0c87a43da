"""Small networks for the tests of the export: many kinds of layers in few nodes, since torch takes seconds to trace."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lowbit import calibrate, convert


class Kinds(nn.Module):
    """Convolutions of every kind, a transposed one and a 1d one, a residual, poolings, linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm1 = nn.BatchNorm2d(8)
        self.relu1 = nn.ReLU()
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.relu2 = nn.ReLU()
        self.grouped = nn.Conv2d(8, 8, (3, 1), padding=(2, 0), dilation=2, groups=2)
        self.pool = nn.MaxPool2d(2)
        self.spread = nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1)
        self.relu3 = nn.ReLU()
        self.line = nn.Conv1d(6, 5, 3, stride=2, padding=1)
        self.norm3 = nn.BatchNorm1d(5)
        self.hidden = nn.Linear(5, 7, bias=False)
        self.last = nn.Linear(7, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 8, 8) to (N, 1)."""
        x = self.relu1(self.norm1(self.first(x)))
        x = x + self.relu2(self.norm2(self.depthwise(x)))
        x = self.pool(self.grouped(x))
        x = self.relu3(self.spread(x))
        x = self.norm3(self.line(x.flatten(2)))
        x = torch.relu(self.hidden(x.mT))  # a linear layer on three dimensions
        return self.last(x.mean(1))


class Paddings(nn.Module):
    """Paddings that ONNX's convolutions do not know, a layer that is used twice, three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.around = nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular")
        self.mirrored = nn.Conv2d(4, 4, 3, padding=(2, 1), padding_mode="reflect", groups=2)
        self.again = nn.Conv2d(4, 4, 2, padding="same")
        self.edges = nn.Conv2d(4, 4, 3, padding=1, padding_mode="replicate")
        self.solid = nn.Conv3d(4, 3, (2, 3, 3), padding=(1, 0, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 2, 6, 6) to (N, 3, …)."""
        x = torch.relu(self.mirrored(self.around(x)))
        x = torch.relu(self.again(self.again(x)))
        return self.solid(torch.stack([x, self.edges(x)], 2))


def trained(model: nn.Module, example: Tensor, **options: Any) -> nn.Module:
    """The model converted, with scales and statistics taken from the example, for evaluation. Draws: seed before."""
    converted = convert(model, **{"keep_float": (), **options})
    for module in converted.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.weight)  # of both signs
            nn.init.normal_(module.bias)
    calibrate(converted, example)
    converted.train()
    converted(example)
    return converted.eval()
