"""The networks and settings of the inference benchmark, and the shapes of their layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import lowbit
from lowbit.models import build_model


@dataclass(frozen=True)
class Net:
    """A registered model with options, and what it is given."""

    spec: str
    size: tuple[int, int, int]
    classes: int

    def build(self) -> nn.Module:
        """The float net, in evaluation, with random weights and normalisations that have seen random data."""
        channels, height, width = self.size
        model = build_model(self.spec, self.classes, channels, (height, width), seed=0)
        with torch.no_grad():
            model.train()(self.images(8, seed=1))
        return model.eval()

    def images(self, batch: int, seed: int) -> Tensor:
        return torch.randn(batch, *self.size, generator=torch.Generator().manual_seed(seed))


NETS = {
    "resnet20": Net("resnet20", (3, 32, 32), 10),
    "resnet20-b": Net("resnet20(shortcut=B)", (3, 32, 32), 10),
    "resnet18": Net("resnet18", (3, 224, 224), 1000),
    "mlp": Net("mlp(hidden=(1024, 1024, 1024))", (1, 28, 28), 10),
    "mobilenet": Net("mobilenet", (3, 96, 96), 1000),
}
USUAL = ("resnet20", "resnet18", "mlp", "mobilenet")


@dataclass(frozen=True)
class Setting:
    """Bits of weights and activations; of the first and last layer's, too, unless they stay float."""

    weights: int
    activations: int
    edges: int = 32

    @property
    def product(self) -> str:
        """The kind of product, by the names of `benchmarks.ceiling`, that a processor offers for these bits."""
        if self.activations == 32:
            return "float32"
        return "binary" if self.weights == self.activations == 1 else "int8"

    def convert(self, net: Net) -> nn.Module:
        """The net in these bits, its scales calibrated, in evaluation."""
        model = net.build()
        overrides: dict[str, dict[str, Any]] = {}
        if self.edges != 32:
            names = [name for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
            both = {"weights": self.edges, "activations": self.edges}
            # images have both signs, what comes to the last layer has none
            overrides = {names[0]: {**both, "activation_quantizer": "lsq"}, names[-1]: both}
        keep = ("first", "last") if self.edges == 32 else ()
        converted = lowbit.convert(model, self.weights, self.activations, keep_float=keep, overrides=overrides)
        if min(self.activations, self.edges) < 32:
            lowbit.calibrate(converted, net.images(8, seed=2))
        return converted.eval()


SETTINGS = {
    "W1A1": Setting(1, 1),
    "W2A2": Setting(2, 2),
    "W4A4": Setting(4, 4),
    "W1A32": Setting(1, 32),
    "W1A1-edges8": Setting(1, 1, edges=8),
    "W2A2-edges8": Setting(2, 2, edges=8),
    "W4A4-edges8": Setting(4, 4, edges=8),
}
USUAL_SETTINGS = ("W1A1", "W2A2", "W4A4", "W1A32")


@dataclass(frozen=True)
class LayerShape:
    """A convolution or linear layer (a 1×1 convolution of a 1×1 image) and the image that it sees."""

    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    groups: int
    height: int
    width: int

    @property
    def outputs(self) -> int:
        """Positions of the result."""
        return -(-self.height // self.stride) * -(-self.width // self.stride)

    @property
    def macs(self) -> int:
        return self.out_channels * self.outputs * self.in_channels // self.groups * self.kernel**2

    def __str__(self) -> str:
        kernel = f"{self.kernel}x{self.kernel}" + (f"/{self.stride}" if self.stride > 1 else "")
        groups = f" g{self.groups}" if self.groups > 1 else ""
        return f"{self.in_channels}→{self.out_channels} {kernel}{groups} @ {self.height}x{self.width}"


def layer_shapes(net: Net) -> dict[str, LayerShape]:
    """The net's layers by name, in the order in which they run."""
    model = net.build()
    found: dict[str, LayerShape] = {}
    with torch.no_grad(), _watching(model, found):
        model(net.images(1, seed=0))
    return found


def macs(net: Net) -> int:
    """Multiply–accumulates of one image, all layers."""
    return sum(shape.macs for shape in layer_shapes(net).values())


@contextmanager
def _watching(model: nn.Module, found: dict[str, LayerShape]) -> Iterator[None]:
    def shape(module: Any, x: Tensor) -> LayerShape:
        if isinstance(module, nn.Linear):
            return LayerShape(module.in_features, module.out_features, 1, 1, 1, 1, 1)
        kernel, stride = int(module.kernel_size[0]), int(module.stride[0])
        return LayerShape(module.in_channels, module.out_channels, kernel, stride, module.groups, *x.shape[-2:])

    def watch(name: str, module: nn.Module) -> Any:
        return module.register_forward_hook(lambda m, given, _: found.update({name: shape(m, given[0])}))

    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    handles = [watch(name, module) for name, module in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
