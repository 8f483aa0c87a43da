"""What holds for every metric operator: it acts as its matrix would, without forming it, in every dtype and shape."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lowbit.geometry import AbstractMetric, HessianMetric, LNEMetric, TauRule, dominance_margin, largest_tau
from straddling import noise
from tolerances import assert_close

# One entry for each metric: shape of the weights and dtype → the operator.
OPERATORS: dict[str, Callable[..., AbstractMetric]] = {
    "lne-automatic-tau": lambda *shape, dtype=torch.float64: LNEMetric(
        noise(*shape, dtype=dtype), largest_tau(noise(*shape, dtype=dtype), 0.9)
    ),
    "lne-dominant-tau": lambda *shape, dtype=torch.float64: LNEMetric(
        noise(*shape, dtype=dtype), TauRule("dominance")(noise(*shape, dtype=dtype))
    ),
    "lne-fixed-tau": lambda *shape, dtype=torch.float64: LNEMetric(noise(*shape, dtype=dtype), 0.05),
    "hessian-automatic-tau": lambda *shape, dtype=torch.float64: HessianMetric(
        noise(*shape, dtype=dtype), largest_tau(noise(*shape, dtype=dtype), 0.9)
    ),
    "hessian-fixed-tau": lambda *shape, dtype=torch.float64: HessianMetric(noise(*shape, dtype=dtype), 0.8),
}
every_operator = pytest.mark.parametrize("make", OPERATORS.values(), ids=OPERATORS)
every_shape = pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (2, 3, 4)], ids=str)


@every_shape
@every_operator
def test_acts_as_its_matrix(make: Callable[..., AbstractMetric], shape: tuple[int, ...]) -> None:
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
    assert_close(metric.positive_definite_margin(), eigenvalues.amin(-1), "dense")
    assert_close(metric.dominance_margin(), dominance_margin(g), "dense")
    assert_close(metric.solve(metric.matvec(v)), v, "dense")


# Weights and τ → the operator, for what is differentiated through its making.
KINDS: dict[str, Callable[[Tensor, float], AbstractMetric]] = {"lne": LNEMetric, "hessian": HessianMetric}


@pytest.mark.parametrize("operation", ["matvec", "solve", "logdet"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@given(n=st.integers(1, 12), batch=st.lists(st.integers(1, 3), max_size=1), seed=st.integers(0, 1000))
def test_gradients_are_those_of_the_dense_route(
    kind: Callable[[Tensor, float], AbstractMetric], operation: str, n: int, batch: list[int], seed: int
) -> None:
    w, v, probe = (noise(*batch, n, seed=seed + k, dtype=torch.float64).requires_grad_(k < 2) for k in range(3))
    metric = kind(w, 0.6 / n**0.5)
    if bool((metric.positive_definite_margin() < 0.02).any()):
        return
    g = metric.as_matrix()
    if operation == "logdet":
        pairs = metric.logdet().sum(), torch.logdet(g).sum()
    elif operation == "solve":
        pairs = (metric.solve(v) * probe).sum(), (torch.linalg.solve(g, v) * probe).sum()
    else:
        pairs = (metric.matvec(v) * probe).sum(), (g @ v.unsqueeze(-1) * probe.unsqueeze(-1)).sum()
    ours, dense = (torch.autograd.grad(value, [w, v], allow_unused=True, retain_graph=True) for value in pairs)
    for a, b in zip(ours, dense, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert_close(a, b, "dense")


def test_second_derivatives_by_finite_differences() -> None:
    w, v = (noise(4, seed=k, dtype=torch.float64).requires_grad_() for k in range(2))
    for kind in KINDS.values():
        assert torch.autograd.gradgradcheck(lambda w, v, kind=kind: kind(w, 0.2).solve(v), (w, v))


@every_operator
def test_symmetric_positive_and_linear(make: Callable[..., AbstractMetric]) -> None:
    metric = make(20)
    a, b = noise(20, seed=1, dtype=torch.float64), noise(20, seed=2, dtype=torch.float64)
    assert_close(metric.matvec(a) @ b, a @ metric.matvec(b), "dense")
    assert_close(metric.solve(a) @ b, a @ metric.solve(b), "dense")
    assert metric.matvec(a) @ a > 0
    assert_close(metric.solve(2 * a - b), 2 * metric.solve(a) - metric.solve(b), "dense")


@every_operator
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_dtype_is_kept(make: Callable[..., AbstractMetric], dtype: torch.dtype) -> None:
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
def test_no_matrix_is_formed(make: Callable[..., AbstractMetric]) -> None:
    n = 500
    v = noise(n, seed=1, dtype=torch.float64).requires_grad_()
    with LargestResult() as largest:
        metric = make(n)
        total = metric.matvec(v).sum() + metric.solve(v).sum() + metric.logdet()
        total = total + metric.dominance_margin() + sum(metric.eigenvalue_bounds())
        total = total + metric.epsilon_closeness(make(n))
        total.backward()
    assert largest.numel == n
    with LargestResult() as dense:
        metric.as_matrix()
    assert dense.numel == n * n  # the probe does see matrices
