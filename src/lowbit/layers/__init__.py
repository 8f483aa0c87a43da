"""Low-bit layers, and the conversion of a float model into them."""

from lowbit.layers.activation import QuantReLU
from lowbit.layers.caution import cautions
from lowbit.layers.conv import QuantConv1d, QuantConv2d, QuantConv3d, QuantConvTranspose2d
from lowbit.layers.conversion import ConversionPlan, LayerPlan, convert, plan
from lowbit.layers.cost import LayerSummary, Summary, summary
from lowbit.layers.fake_quantize import FakeQuantize, anneals, quantizers_of, set_progress
from lowbit.layers.inspect import (
    calibrate,
    frozen_statistics,
    latent_parameters,
    plain_name,
    quant_layers,
    scale_parameters,
)
from lowbit.layers.linear import QuantLinear
from lowbit.layers.normalisation import ExactBatchNorm1d, ExactBatchNorm2d, ExactBatchNorm3d, affine
from lowbit.layers.options import LayerOptions
from lowbit.layers.parts import weights_per_part
from lowbit.layers.product import is_integer, largest_sum

__all__ = [
    "ConversionPlan",
    "ExactBatchNorm1d",
    "ExactBatchNorm2d",
    "ExactBatchNorm3d",
    "FakeQuantize",
    "LayerOptions",
    "LayerPlan",
    "LayerSummary",
    "QuantConv1d",
    "QuantConv2d",
    "QuantConv3d",
    "QuantConvTranspose2d",
    "QuantLinear",
    "QuantReLU",
    "Summary",
    "affine",
    "anneals",
    "calibrate",
    "cautions",
    "convert",
    "frozen_statistics",
    "is_integer",
    "largest_sum",
    "latent_parameters",
    "plain_name",
    "plan",
    "quant_layers",
    "quantizers_of",
    "scale_parameters",
    "set_progress",
    "summary",
    "weights_per_part",
]
