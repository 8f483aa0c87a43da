"""The resolution of a quantized ReLU: the distance α between its levels that fits a distribution best.

Lloyd's iteration alternates two steps: every positive x goes to the nearest of the levels α, 2α, …, q·α or to 0
(`k = clip(round(x/α), 0, q)`), then α becomes the least-squares slope `E[k·x]/E[k²]`.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

SAMPLE = 1 << 16  # of a calibration tensor, so many of its values are looked at
ROUNDS = 1000  # a fit to data stops here if it has not settled


@functools.cache
def half_gaussian_resolution(bits: int) -> float:
    """The fixed point of Lloyd's iteration for x = max(0, N(0, 1)): 1.2240, 0.6508, 0.3534, 0.1932 for 1 to 4 bits.

    With the thresholds `t_k = (k − ½)·α`, `E[k·x] = Σ φ(t_k)` and `E[k²] = Σ (2k − 1)·(1 − Φ(t_k))`, k = 1 … q.

    Args:
        bits: b, with q = 2^b − 1.

    Source: the fit is that of [cai2017hwgq], Sec. 3.1.2, and [yin2019understanding], Sec. 4; the closed sums and the
    accelerated iteration (Steffensen's) are ours.
    """
    k = torch.arange(1, 2**bits, dtype=torch.float64)

    def step(alpha: float) -> float:
        t = (k - 0.5) * alpha
        weighted = torch.exp(-t * t / 2).sum() / math.sqrt(2 * math.pi)
        squares = ((2 * k - 1) * torch.special.erfc(t / math.sqrt(2)) / 2).sum()
        return float(weighted / squares)

    alpha = 3.0 / 2**bits
    for _ in range(100):
        first = step(alpha)
        second = step(first)
        curvature = second - 2 * first + alpha
        if abs(first - alpha) <= 1e-13 * alpha or curvature == 0:
            break
        jump = alpha - (first - alpha) ** 2 / curvature
        alpha = jump if 0.5 * alpha < jump < 2 * alpha else second
    return alpha


def lloyd_resolution(x: Tensor, bits: int) -> Tensor:
    """The resolution that Lloyd's iteration finds for the positive values of x.

    Args:
        x: any shape; of more than 2^16 values, so many are drawn, always the same places.
        bits: b, with q = 2^b − 1.

    Returns: α, shape (), positive; 0 where no value is.
    """
    x = x.detach().flatten()
    if x.numel() > SAMPLE:
        # Drawn, not every so-many-th: that would be one column of every image, or one channel.
        places = torch.randint(x.numel(), (SAMPLE,), generator=torch.Generator().manual_seed(0))
        x = x[places.to(x.device)]
    x = x[x > 0]
    alpha = half_gaussian_resolution(bits) * (x * x).sum().div(max(1, x.numel())).sqrt()
    for _ in range(ROUNDS if x.numel() else 0):
        k = (x / alpha).round_().clamp_(0, 2**bits - 1)
        new = torch.where(k.any(), (k * x).sum() / (k * k).sum(), alpha)
        settled = bool((new - alpha).abs() <= 1e-5 * alpha)
        alpha = new
        if settled:
            break
    return alpha
