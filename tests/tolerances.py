"""How far a result may lie from its reference, by operation and dtype: the one table all tests take it from.

An entry is (relative, absolute). `exact` is not in the table: where integers or bits are meant, tests compare with
`torch.equal`.
"""

from __future__ import annotations

import torch
from torch import Tensor

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16

TOLERANCES: dict[tuple[str, torch.dtype], tuple[float, float]] = {
    # One formula evaluated twice, by torch and by NumPy in float64.
    ("formula", F64): (1e-12, 1e-14),
    ("formula", F32): (2e-5, 1e-6),
    ("formula", BF16): (4e-2, 1e-2),
    # The same arithmetic with sums in another order: vmap, compilation.
    ("reordered", F64): (1e-12, 1e-14),
    ("reordered", F32): (1e-5, 1e-6),
    # Q(Q(x)) where the second scale is computed from Q(x) and so differs in its last bits.
    ("requantized", F64): (1e-12, 1e-14),
    ("requantized", F32): (2e-6, 1e-7),
    ("requantized", BF16): (2e-2, 1e-2),
    # A sum over a tensor, as in the gradient of a scale.
    ("sum", F64): (1e-11, 1e-12),
    ("sum", F32): (1e-4, 1e-5),
    # O(n) operators against dense linear algebra; the condition number stays below 1e4 in the tests.
    ("dense", F64): (1e-9, 1e-10),
    # Norms of sums of outer products against the dense Frobenius norm.
    ("frobenius", F64): (1e-10, 1e-10),
    # Two derivatives of a metric by automatic differentiation against the closed form of the curvature.
    ("closed form", F64): (1e-8, 1e-8),
    # Fourier series cut off where their terms are below this.
    ("spectral", F64): (1e-8, 1e-9),
    # A flow in time at the default tolerance against another integrator, relative to what moves.
    ("flow", F64): (1e-5, 1e-6),
    # The strong inverse, trained on the very metric, against the dense inverse, and its gradients likewise.
    ("strong", F64): (1e-4, 1e-4),
    # Central differences with a step of 1e-6.
    ("finite difference", F64): (1e-5, 1e-6),
}


def assert_close(actual: Tensor, expected: Tensor, operation: str) -> None:
    """`actual` equals `expected` to the tolerance of `operation` in `actual`'s dtype; dtypes must agree."""
    relative, absolute = TOLERANCES[operation, actual.dtype]
    torch.testing.assert_close(actual, expected, rtol=relative, atol=absolute)
