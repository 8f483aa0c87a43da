"""Geometry: metrics as operators. A leaf: it imports nothing of lowbit."""

from lowbit.geometry.lne import Inverse, LNEMetric, largest_tau, outer_difference_norm_squared

__all__ = ["Inverse", "LNEMetric", "largest_tau", "outer_difference_norm_squared"]
