"""Estimators: what flows back through the staircase?

One file per estimator or tight family; adding a file adds a name. `build_estimator("ewgs(delta=0.1)")` makes one.
"""

from lowbit._registry import discover
from lowbit.estimators._base import ESTIMATORS, AbstractEstimator, build_estimator, check_pair, staircase

discover(__name__, list(__path__))

__all__ = ["ESTIMATORS", "AbstractEstimator", "build_estimator", "check_pair", "staircase"]
