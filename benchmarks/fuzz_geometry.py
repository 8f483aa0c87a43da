"""Random layers, compiled: is every result that of the trained layer, on every instruction set?

    python -m benchmarks.fuzz_geometry --layers 1000

Each layer is a convolution or linear layer of random shape, stride, padding, dilation, groups, bits and quantizers;
a batch normalisation, a ReLU and a second layer follow, so that sums, epilogues and codes all take part. Run it with
a kernel module built with -DLOWBIT_SANITIZE=ON to have memory errors and undefined behaviour reported as well.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
from collections import Counter
from typing import Any

import torch
from torch import nn

import lowbit
from lowbit.deploy.kernels.compiled import CompiledModule
from lowbit.deploy.kernels.loader import instruction_sets

ACTIVATIONS = ("unsigned", "lsq", "sign")
WEIGHTS = {1: ("sign", "sign(scale=mean-abs, granularity=channel)"), 2: ("lsq", "ternary", "uniform")}


def random_net(rng: random.Random) -> tuple[nn.Sequential, tuple[int, ...], dict[str, Any]]:
    """A float net, the shape of its input and the options to convert it with."""
    groups = rng.choice((1, 1, 1, 2, 3))
    channels, middle = groups * rng.randint(1, 24), groups * rng.randint(1, 24)
    if rng.random() < 0.1:
        channels = middle = groups = rng.randint(1, 70)  # depthwise
    last = rng.randint(1, 80)
    if rng.random() < 0.2:
        net = nn.Sequential(nn.Linear(channels, middle), nn.BatchNorm1d(middle), nn.ReLU(), nn.Linear(middle, last))
        return net, (channels,), bits(rng)
    kernel = (rng.randint(1, 5), rng.randint(1, 5))
    dilation = (rng.randint(1, 2), rng.randint(1, 3))
    padding = tuple(rng.randint(0, d * (k - 1)) for k, d in zip(kernel, dilation, strict=True))
    size = tuple(d * (k - 1) + 1 + rng.choice((0, 1, 2, 7, 30)) for k, d in zip(kernel, dilation, strict=True))
    stride = (rng.randint(1, 3), rng.randint(1, 3))
    first = nn.Conv2d(channels, middle, kernel, stride, padding, dilation, groups, bias=rng.random() < 0.5)  # type: ignore[arg-type]
    net = nn.Sequential(first, nn.BatchNorm2d(middle), nn.ReLU(), nn.Conv2d(middle, last, 1))
    return net, (channels, *size), bits(rng)


def bits(rng: random.Random) -> dict[str, Any]:
    """Bits and quantizers for both sides."""
    weights, activations = rng.choice((1, 1, 2, 2, 3, 4, 8)), rng.choice((1, 1, 2, 2, 3, 4, 8))
    kinds = [k for k in ACTIVATIONS if (k != "sign" or activations == 1) and (k != "lsq" or activations > 1)]
    quantizer = rng.choice(WEIGHTS.get(weights, ("lsq", "uniform(scale=max-abs)")))
    return {
        "weights": weights,
        "activations": activations,
        "quantizer": quantizer,
        "activation_quantizer": rng.choice(kinds),
    }


def check(seed: int) -> str:
    """One random net on every instruction set: "same", or what differs."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    net, shape, options = random_net(rng)
    model = lowbit.convert(net, keep_float=(), **options)
    nn.init.normal_(net[1].weight)  # type: ignore[arg-type]
    model.train()
    model(torch.randn(4, *shape))
    model.eval()
    x = torch.randn(rng.choice((1, 2, 3)), *shape) * 2
    with torch.no_grad():
        expected = model(x)
    for isa in instruction_sets():
        compiled = CompiledModule(model, threads=rng.choice((1, 1, 2)), isa=isa)
        if "kernels: convolution" not in compiled.describe(x):
            return "on torch"
        if not torch.equal(compiled(x), expected):
            return f"seed {seed} differs on {isa}: {net[0]}, {options}, {tuple(x.shape)}"
    return "same"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    logging.getLogger("lowbit").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    found = Counter(check(args.seed + i) for i in range(args.layers))
    wrong = [outcome for outcome in found if outcome.startswith("seed")]
    print(json.dumps(dict(found)) if args.json else "\n".join(f"{n:6d}  {outcome}" for outcome, n in found.items()))
    if wrong:
        sys.exit(f"{len(wrong)} of {args.layers} layers differ")


if __name__ == "__main__":
    main()
