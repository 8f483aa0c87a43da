"""Small nets that the tests of deployment share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import lowbit


def float_net() -> nn.Sequential:
    """Every kind of layer that converts well in two dimensions: groups, strides, transposed, linear."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4),
        nn.BatchNorm2d(12),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(12, 4, 2, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 20),
        nn.ReLU(),
        nn.Linear(20, 10),
    )


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def trained(dtype: torch.dtype = torch.float32, **options: Any) -> nn.Module:
    """A converted net after a step of training, in evaluation."""
    torch.manual_seed(0)
    model = lowbit.convert(float_net(), **options).to(dtype)
    x = images().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return model.eval()
