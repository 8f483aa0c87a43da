"""Random nets, compiled: is every result that of the trained net, on every path of the kernels?

    python -m benchmarks.fuzz_geometry --layers 1000
    python -m benchmarks.sanitized benchmarks.fuzz_geometry --layers 1000    # memory errors and undefined behaviour too

Each net begins with a convolution of random shape, stride, padding, dilation and groups, or is a chain of linear
layers on 1 to 40 rows; bits (1 to 8) and quantizers are random. Batch normalisation and a ReLU follow, then, or not, a
max-pooling and a residual block, whose convolution may be grouped or depthwise, and in the end a convolution, a linear
layer on the flattened map, or one on the means of its channels. Sums, epilogues, codes and poolings all take part.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import re
import sys
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

import lowbit
from lowbit.deploy.kernels.compiled import CompiledModule
from lowbit.deploy.kernels.loader import paths

ACTIVATIONS = ("unsigned", "lsq", "sign")
WEIGHTS = {1: ("sign", "sign(scale=mean-abs, granularity=channel)"), 2: ("lsq", "ternary", "uniform")}
BITS = (1, 1, 1, 2, 2, 2, 3, 4, 4, 5, 6, 7, 8, 8)
MOST_ROWS = 40
OPERATIONS = ("convolution", "map", "pool", "mean", "subsample")
WAYS = ("pool", "counted", "thresholds", "phases")
LARGEST_FLAT = 4096
"""Numbers of a map that is flattened: linear layers on larger ones take the time of many other cases."""


class Residual(nn.Module):
    """x + norm(conv(x)), and a ReLU or none behind it."""

    def __init__(self, conv: nn.Conv2d, rectifies: bool) -> None:
        super().__init__()
        self.conv = conv
        self.norm = nn.BatchNorm2d(conv.out_channels)
        self.rectifies = rectifies

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        y = self.norm(self.conv(x)) + x
        return y.relu() if self.rectifies else y


def random_net(rng: random.Random) -> tuple[nn.Sequential, tuple[int, ...], dict[str, Any]]:
    """A float net, the shape of its input and the options to convert it with."""
    options = bits(rng)
    if rng.random() < 0.3:
        options["overrides"] = {"0": bits(rng)}
    if rng.random() < 0.2:
        channels, middle, last = rng.randint(1, 150), rng.randint(1, 150), rng.randint(1, 80)
        layers: list[nn.Module] = [nn.Linear(channels, middle), nn.BatchNorm1d(middle), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(middle, last, bias=rng.random() < 0.5)), (channels,), options
    first, size = random_conv(rng)
    middle = first.out_channels
    layers = [first, nn.BatchNorm2d(middle), *([nn.ReLU()] if rng.random() < 0.8 else [])]
    with torch.no_grad():
        height, width = nn.Sequential(first)(torch.zeros(1, first.in_channels, *size)).shape[2:]
    if rng.random() < 0.4 and (pool := random_pool(rng, min(height, width))) is not None:
        layers.append(pool)
        height, width = pool(torch.zeros(1, 1, height, width)).shape[2:]
    if rng.random() < 0.3:
        layers.append(Residual(same_conv(rng, middle), rng.random() < 0.7))
    layers += random_end(rng, middle, height * width)
    return nn.Sequential(*layers), (first.in_channels, *size), options


def random_conv(rng: random.Random) -> tuple[nn.Conv2d, tuple[int, int]]:
    """A convolution of any geometry, and the height and width of its input."""
    groups = rng.choice((1, 1, 1, 2, 3))
    channels, middle = groups * rng.randint(1, 24), groups * rng.randint(1, 24)
    if rng.random() < 0.15:
        channels = middle = groups = rng.randint(1, 70)  # depthwise
    kernel = (rng.randint(1, 5), rng.randint(1, 5))
    dilation = (rng.randint(1, 2), rng.randint(1, 3))
    padding = tuple(rng.randint(0, d * (k - 1)) for k, d in zip(kernel, dilation, strict=True))
    size = [d * (k - 1) + 1 + rng.choice((0, 1, 2, 7, 30)) for k, d in zip(kernel, dilation, strict=True)]
    stride = (rng.randint(1, 3), rng.randint(1, 3))
    if rng.random() < 0.3:  # as nets have them
        kernel, dilation, padding, stride = (3, 3), (1, 1), (1, 1), (1, 1)
    conv = nn.Conv2d(channels, middle, kernel, stride, padding, dilation, groups, bias=rng.random() < 0.5)  # type: ignore[arg-type]
    return conv, (max(size[0], kernel[0]), max(size[1], kernel[1]))


def same_conv(rng: random.Random, channels: int) -> nn.Conv2d:
    """A convolution that keeps a map's shape: plain, grouped or depthwise."""
    groups = rng.choice([g for g in (1, 2, 3, channels) if channels % g == 0])
    kernel = rng.choice((1, 3, 5))
    return nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=groups, bias=rng.random() < 0.5)


def random_pool(rng: random.Random, size: int) -> nn.MaxPool2d | None:
    """A max-pooling, if one fits a map of this least width."""
    kernel = rng.randint(1, 4)
    padding = rng.randint(0, kernel // 2)
    return None if size + 2 * padding < kernel else nn.MaxPool2d(kernel, rng.randint(1, 3), padding)


def random_end(rng: random.Random, channels: int, positions: int) -> list[nn.Module]:
    """The last layer, of as many channels and positions."""
    last, bias, kind = rng.randint(1, 80), rng.random() < 0.5, rng.random()
    if kind < 0.25 and channels * positions <= LARGEST_FLAT:
        return [nn.Flatten(), nn.Linear(channels * positions, last, bias)]
    if kind < 0.5:
        return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, last, bias)]
    return [nn.Conv2d(channels, last, 1, bias=bias)]


def bits(rng: random.Random) -> dict[str, Any]:
    """Bits and quantizers for both sides."""
    weights, activations = rng.choice(BITS), rng.choice(BITS)
    kinds = [k for k in ACTIVATIONS if (k != "sign" or activations == 1) and (k != "lsq" or activations > 1)]
    quantizer = rng.choice(WEIGHTS.get(weights, ("lsq", "uniform(scale=max-abs)")))
    return {
        "weights": weights,
        "activations": activations,
        "quantizer": quantizer,
        "activation_quantizer": rng.choice(kinds),
    }


def check(seed: int, seen: Counter[str]) -> str:
    """One random net on every path: "same", "on torch", or what differs; notes in `seen` what ran where."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    net, shape, options = random_net(rng)
    model = lowbit.convert(net, keep_float=(), **options)
    for norm in model.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(norm.weight)
    model.train()
    model(torch.randn(4, *shape))
    model.eval()
    rows = rng.randint(1, MOST_ROWS) if len(shape) == 1 else rng.choice((1, 2, 3))
    x = torch.randn(rows, *shape) * 2
    with torch.no_grad():
        expected = model(x)
    seen.update(features_of(net))
    for isa in paths():
        compiled = CompiledModule(model, threads=rng.choice((1, 1, 2)), isa=isa)
        described = compiled.describe(x)
        if "kernels: convolution" not in described:
            return "on torch"
        seen.update(kinds_of(described, isa))
        if not torch.equal(compiled(x), expected):
            return f"seed {seed} differs on {isa}: {net}, {options}, {tuple(x.shape)}"
    return "same"


def kinds_of(described: str, isa: str) -> set[str]:
    """The kinds of operations of a program."""
    found = set()
    for line in described.splitlines():
        words = re.findall(r"[a-z]+", line)
        if words[0] != "kernels" or len(words) < 2 or words[1] not in OPERATIONS:
            continue
        on = ", on bytes" if not {"narrow", "wide"} & set(words) else ", on planes"
        found.add(f"{isa}: {words[1]}{on if words[1] == 'convolution' else ''}")
        found.update(f"{isa}: convolution, {word}" for word in WAYS if word in words[2:])
    return found


def features_of(net: nn.Sequential) -> set[str]:
    """What a net has."""
    found = set()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            groups = (
                "depthwise " if module.groups == module.in_channels > 1 else "grouped " if module.groups > 1 else ""
            )
            found.add(f"{groups}convolution")
        elif not isinstance(module, (nn.Sequential, nn.ReLU, nn.BatchNorm1d, nn.BatchNorm2d)):
            found.add(type(module).__name__)
    return {f"nets with {name}" for name in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=1000, help="how many nets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    logging.getLogger("lowbit").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    seen = Counter[str]()
    found = Counter(check(args.seed + i, seen) for i in range(args.layers))
    wrong = [outcome for outcome in found if outcome.startswith("seed")]
    if args.json:
        print(json.dumps({**found, "operations": dict(sorted(seen.items()))}))
    else:
        print("\n".join(f"{n:6d}  {kind}" for kind, n in [*sorted(seen.items()), *found.items()]))
    if wrong:
        sys.exit(f"{len(wrong)} of {args.layers} nets differ")


if __name__ == "__main__":
    main()
