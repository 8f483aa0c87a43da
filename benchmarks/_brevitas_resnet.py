"""ResNet-20 with Brevitas layers, for comparison: W1A32 and W2A2."""

from __future__ import annotations

from typing import Any

from torch import nn


def quantize(model: nn.Module, weights: int, activations: int) -> nn.Module:
    """Replace every convolution but the first by Brevitas's, and every ReLU that feeds one by a quantized ReLU if asked
    to.

    1-bit weights: `SignedBinaryWeightPerTensorConst`. More: `Int8WeightPerTensorFloat` at the width given, with a
    learned scale; activations: `Uint8ActPerTensorFloat`, learned scale too. The statistics phase is one step, so that
    steps timed later are the ones that make up a training run.
    """
    import brevitas.nn as qnn
    from brevitas.quant import Int8WeightPerTensorFloat, SignedBinaryWeightPerTensorConst, Uint8ActPerTensorFloat

    relus = [name for name, module in model.named_modules() if isinstance(module, nn.ReLU)]
    first = True
    for name, module in list(model.named_modules()):
        parent = model.get_submodule(name.rpartition(".")[0])
        own = name.rpartition(".")[2]
        if isinstance(module, nn.Conv2d):
            if not first:
                options: dict[str, Any] = {"weight_quant": SignedBinaryWeightPerTensorConst}
                if weights > 1:
                    options = {
                        "weight_quant": Int8WeightPerTensorFloat,
                        "weight_bit_width": weights,
                        "weight_scaling_impl_type": "parameter_from_stats",
                    }
                conv = qnn.QuantConv2d(
                    module.in_channels,
                    module.out_channels,
                    3,
                    stride=module.stride,
                    padding=module.padding,
                    bias=module.bias is not None,
                    **options,
                )
                setattr(parent, own, conv)
            first = False
        elif isinstance(module, nn.ReLU) and activations < 32 and name != relus[-1]:
            relu = qnn.QuantReLU(act_quant=Uint8ActPerTensorFloat, bit_width=activations, collect_stats_steps=1)
            setattr(parent, own, relu)
    return model
