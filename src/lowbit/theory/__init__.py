"""Networks and data small enough to be understood: what the papers prove something about, made to run.

Classes in subspaces and the two-linear-layer network ([long2021coarse]); the one-hidden-layer network with Gaussian
inputs ([yin2019understanding]): closed forms in `lowbit.theory.gaussian`, every staircase and estimator in
`lowbit.theory.gaussian_population`; the admissible class of estimators, and the checker that puts all of it to use.
"""

from lowbit.theory.admissibility import Admissibility, Violation, admissible
from lowbit.theory.descent import DescentOptions, Run, descend
from lowbit.theory.gaussian import (
    Teacher,
    binary_coarse_gradient,
    binary_gradients,
    binary_loss,
    binary_opposite,
    sample_gradients,
)
from lowbit.theory.gaussian_population import Population, critical_points, descend_population
from lowbit.theory.safety import SafetyReport, check_safety
from lowbit.theory.subspaces import Subspaces, angled_subspaces, draw, stack, subspaces_from_bases
from lowbit.theory.two_layer import TwoLayerNetwork, accuracy, check_second_layer, hinge, margins, second_layer

__all__ = [
    "Admissibility",
    "DescentOptions",
    "Population",
    "Run",
    "SafetyReport",
    "Subspaces",
    "Teacher",
    "TwoLayerNetwork",
    "Violation",
    "accuracy",
    "admissible",
    "angled_subspaces",
    "binary_coarse_gradient",
    "binary_gradients",
    "binary_loss",
    "binary_opposite",
    "check_safety",
    "check_second_layer",
    "critical_points",
    "descend",
    "descend_population",
    "draw",
    "hinge",
    "margins",
    "sample_gradients",
    "second_layer",
    "stack",
    "subspaces_from_bases",
]
