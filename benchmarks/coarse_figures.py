"""The figures of docs/coarse.md that no command prints: python -m benchmarks.coarse_figures

1. Norm of the coarse gradient by depth: ResNet-20, freshly initialised, 2-bit quantized ReLUs, every third convolution.
2. Closed forms of the Gaussian problem against 200,000 samples, in standard errors.
3. Along the teacher's direction, beyond its norm: coarse gradient of `relu` and population gradient, 2 bits.
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import cross_entropy

import lowbit
from lowbit.estimators import build_estimator
from lowbit.models import build_model
from lowbit.quantizers import build_quantizer
from lowbit.theory import (
    Population,
    Teacher,
    binary_coarse_gradient,
    binary_gradients,
    binary_loss,
    sample_gradients,
)


def depth() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(64, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 10, (64,), generator=generator)
    for estimator in ("clipped", "log-tailed", "relu", "identity", "reverse-exponential"):
        model = lowbit.convert(
            build_model("resnet20", 10, 3, (32, 32), 0),
            weights=32,
            activations=2,
            activation_quantizer="staircase",
            activation_estimator=estimator,
        )
        cross_entropy(model.train()(images), labels).backward()  # type: ignore[no-untyped-call]
        norms = [float(p.grad.norm()) for p in model.parameters() if p.ndim == 4 and p.grad is not None]
        print(f"{estimator:<20}", *(f"{norm:9.3f}" for norm in norms[::3]))


def samples() -> None:
    generator = torch.Generator().manual_seed(7)
    quantizer = build_quantizer("staircase", 1)
    teacher = Teacher(torch.randn(5, generator=generator).double(), torch.randn(6, generator=generator).double())
    along = teacher.w / teacher.w.norm()
    across = torch.randn(6, generator=generator).double()
    across -= (across @ along) * along
    across /= across.norm()
    worst: dict[str, float] = {}
    for theta in (0.3, 1.0, math.pi / 2, 2.2, 3.0):
        for norm in (0.5, 2.0):
            w = norm * (math.cos(theta) * along + math.sin(theta) * across)
            v = torch.randn(5, generator=generator).double()
            for name in ("relu", "clipped", "identity"):
                found = sample_gradients(v, w, teacher, quantizer, build_estimator(name), 200_000, generator)
                off = (found.w.mean - binary_coarse_gradient(v, w, teacher, name)).abs() / found.w.error
                worst[name] = max(worst.get(name, 0.0), float(off.max()))
            off = (found.loss.mean - binary_loss(v, w, teacher)).abs() / found.loss.error
            worst["loss"] = max(worst.get("loss", 0.0), float(off))
            off = (found.v.mean - binary_gradients(v, w, teacher)[0]).abs() / found.v.error
            worst["by v"] = max(worst.get("by v", 0.0), float(off.max()))
    print("largest deviation in standard errors:", {name: round(value, 2) for name, value in worst.items()})


def norms() -> None:
    teacher = Teacher(torch.ones(4), torch.tensor([1.0, 0.0, 0.0]))
    population = Population(build_quantizer("staircase", 2), teacher)
    for norm in (1.1, 1.2, 1.5):
        w = norm * teacher.w
        v = population.best_v(w)
        coarse = float(population.coarse_gradient(v, w, build_estimator("relu"))[0])
        print(f"norm {norm}: coarse gradient {coarse:.4f}, population {float(population.gradients(v, w)[1][0]):.4f}")


if __name__ == "__main__":
    depth()
    samples()
    norms()
