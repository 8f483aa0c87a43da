"""What holds for every metric operator: it acts as its matrix would, without forming it, in every dtype and shape."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lowbit.geometry import LNEMetric, largest_tau
from straddling import noise
from tolerances import assert_close

# One entry for each metric: shape of the weights and dtype → the operator.
OPERATORS: dict[str, Callable[..., LNEMetric]] = {
    "lne-automatic-tau": lambda *shape, dtype=torch.float64: LNEMetric(
        noise(*shape, dtype=dtype), largest_tau(noise(*shape, dtype=dtype), 0.9)
    ),
    "lne-fixed-tau": lambda *shape, dtype=torch.float64: LNEMetric(noise(*shape, dtype=dtype), 0.05),
}
every_operator = pytest.mark.parametrize("make", OPERATORS.values(), ids=OPERATORS)
every_shape = pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (2, 3, 4)], ids=str)


@every_shape
@every_operator
def test_acts_as_its_matrix(make: Callable[..., LNEMetric], shape: tuple[int, ...]) -> None:
    metric = make(*shape)
    v, g = noise(*shape, seed=1, dtype=torch.float64), metric.as_matrix()
    assert metric.shape == g.shape
    assert_close(metric.matvec(v), (g @ v.unsqueeze(-1)).squeeze(-1), "dense")
    assert_close(metric.solve(v), torch.linalg.solve(g, v), "dense")
    assert_close(metric.logdet(), torch.logdet(g), "dense")
    eigenvalues = torch.linalg.eigvalsh(g)
    low, high = metric.eigenvalue_bounds()
    assert_close(low, eigenvalues.amin(-1), "dense")
    assert_close(high, eigenvalues.amax(-1), "dense")
    assert_close(metric.dominance_margin(), _margin(g), "dense")


def _margin(g: Tensor) -> Tensor:
    diagonal = g.diagonal(dim1=-2, dim2=-1)
    return (diagonal - (g.abs().sum(-1) - diagonal.abs())).amin(-1)


@every_operator
def test_symmetric_positive_and_linear(make: Callable[..., LNEMetric]) -> None:
    metric = make(20)
    a, b = noise(20, seed=1, dtype=torch.float64), noise(20, seed=2, dtype=torch.float64)
    assert_close(metric.matvec(a) @ b, a @ metric.matvec(b), "dense")
    assert_close(metric.solve(a) @ b, a @ metric.solve(b), "dense")
    assert metric.matvec(a) @ a > 0
    assert_close(metric.solve(2 * a - b), 2 * metric.solve(a) - metric.solve(b), "dense")


@every_operator
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_dtype_is_kept(make: Callable[..., LNEMetric], dtype: torch.dtype) -> None:
    metric = make(3, 8, dtype=dtype)
    v = noise(3, 8, seed=1, dtype=dtype)
    for result in (metric.matvec(v), metric.solve(v), metric.logdet(), *metric.eigenvalue_bounds()):
        assert result.dtype == dtype
        assert result.isfinite().all()


class LargestResult(TorchDispatchMode):
    """Notes the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple) else (result,):
            if isinstance(part, Tensor):
                self.numel = max(self.numel, part.numel())
        return result


@every_operator
def test_no_matrix_is_formed(make: Callable[..., LNEMetric]) -> None:
    n = 500
    v = noise(n, seed=1, dtype=torch.float64).requires_grad_()
    with LargestResult() as largest:
        metric = make(n)
        total = metric.matvec(v).sum() + metric.solve(v).sum() + metric.logdet()
        total = total + metric.dominance_margin() + sum(metric.eigenvalue_bounds())
        total.backward()
    assert largest.numel == n
    with LargestResult() as dense:
        metric.as_matrix()
    assert dense.numel == n * n  # the probe does see matrices
