"""Geometry: metrics as operators. A leaf: it imports nothing of lowbit but its errors."""

from lowbit.geometry._base import AbstractMetric
from lowbit.geometry.blocks import Block, check_block, from_blocks, to_blocks
from lowbit.geometry.closeness import dominance_margin, epsilon_closeness, positive_definite_margin
from lowbit.geometry.curvature import MetricFunction, christoffel, ricci_tensor, riemann, scalar_curvature
from lowbit.geometry.divergence import (
    bregman_divergence,
    convex_function,
    inverse_mirror_map,
    lne_divergence,
    mirror_map,
    taylor,
)
from lowbit.geometry.flow import Equation, FlowState, grid_curvature, random_metric, ricci_flow
from lowbit.geometry.hessian import HessianMetric, diagonal_difference_norm_squared
from lowbit.geometry.lne import Inverse, LNEMetric, outer_difference_norm_squared
from lowbit.geometry.mirror import (
    AbstractMirror,
    EntropicMirror,
    EuclideanSimplexMirror,
    Iterate,
    LNEMirror,
    TanhMirror,
    mirror_descent,
    project_simplex,
)
from lowbit.geometry.spectral import PeriodicGrid
from lowbit.geometry.strong import STRONG_LIMIT, StrongInverse
from lowbit.geometry.tau import (
    Tau,
    TauRule,
    largest_admissible_tau,
    largest_dominant_tau,
    largest_tau,
    require_positive_definite,
)

__all__ = [
    "STRONG_LIMIT",
    "AbstractMetric",
    "AbstractMirror",
    "Block",
    "EntropicMirror",
    "Equation",
    "EuclideanSimplexMirror",
    "FlowState",
    "HessianMetric",
    "Inverse",
    "Iterate",
    "LNEMetric",
    "LNEMirror",
    "MetricFunction",
    "PeriodicGrid",
    "StrongInverse",
    "TanhMirror",
    "Tau",
    "TauRule",
    "bregman_divergence",
    "check_block",
    "christoffel",
    "convex_function",
    "diagonal_difference_norm_squared",
    "dominance_margin",
    "epsilon_closeness",
    "from_blocks",
    "grid_curvature",
    "inverse_mirror_map",
    "largest_admissible_tau",
    "largest_dominant_tau",
    "largest_tau",
    "lne_divergence",
    "mirror_descent",
    "mirror_map",
    "outer_difference_norm_squared",
    "positive_definite_margin",
    "project_simplex",
    "random_metric",
    "require_positive_definite",
    "ricci_flow",
    "ricci_tensor",
    "riemann",
    "scalar_curvature",
    "taylor",
    "to_blocks",
]
