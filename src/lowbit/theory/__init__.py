"""Networks and data small enough to be understood: what the papers prove something about, made to run."""

from lowbit.theory.descent import DescentOptions, Run, descend
from lowbit.theory.subspaces import Subspaces, angled_subspaces, draw, stack, subspaces_from_bases
from lowbit.theory.two_layer import TwoLayerNetwork, accuracy, check_second_layer, hinge, margins, second_layer

__all__ = [
    "DescentOptions",
    "Run",
    "Subspaces",
    "TwoLayerNetwork",
    "accuracy",
    "angled_subspaces",
    "check_second_layer",
    "descend",
    "draw",
    "hinge",
    "margins",
    "second_layer",
    "stack",
    "subspaces_from_bases",
]
