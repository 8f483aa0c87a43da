"""What holds for every registered estimator. A new one is tested here without a line being added."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor

from lowbit._errors import ConfigError
from lowbit.estimators import ESTIMATORS, AbstractEstimator, build_estimator, check_pair, staircase
from lowbit.layers import FakeQuantize
from lowbit.quantizers import QUANTIZERS, AbstractQuantizer, Grid, build_quantizer
from straddling import ALL_ESTIMATORS, ALL_QUANTIZERS, PAIRS, extremes, fits, gradient, label, noise, straddling
from tolerances import assert_close

every_estimator = pytest.mark.parametrize("estimator", ALL_ESTIMATORS, ids=label)
every_pair = pytest.mark.parametrize(
    ("estimator", "quantizer"), PAIRS, ids=[f"{label(e)}-{label(q)}" for e, q in PAIRS]
)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)

ROLES = ("weights", "activations")
SIGN = QUANTIZERS.get("sign")()


def relaxes(estimator: AbstractEstimator) -> bool:
    return type(estimator).relax is not AbstractEstimator.relax


def smallest_grid(estimator: AbstractEstimator) -> AbstractQuantizer:
    return SIGN if estimator.binary_only else QUANTIZERS.get("staircase" if estimator.one_sided_only else "lsq")(bits=2)


@pytest.mark.parametrize("name", ESTIMATORS.names())
def test_says_what_it_is(name: str) -> None:
    cls = ESTIMATORS.get(name)
    assert cls.examples()
    assert cls.__doc__
    assert cls.__doc__.strip().splitlines()[0].strip()
    assert "Source:" in cls.__doc__
    assert cls.roles
    assert cls.roles <= set(ROLES)
    assert cls.needs <= {"z", "codes"}
    assert build_estimator(name) == cls()  # every option has a default


@every_estimator
def test_is_a_frozen_value(estimator: AbstractEstimator) -> None:
    assert dataclasses.is_dataclass(estimator)
    with pytest.raises(dataclasses.FrozenInstanceError):
        estimator.anything = 1  # type: ignore[attr-defined]
    assert copy.deepcopy(estimator) == estimator
    assert hash(copy.deepcopy(estimator)) == hash(estimator)


@every_pair
def test_forward_is_the_quantizers_bit_for_bit(estimator: AbstractEstimator, quantizer: AbstractQuantizer) -> None:
    z = extremes(quantizer.grid, torch.float32)
    assert torch.equal(staircase(z, quantizer, estimator), quantizer.discretize(z.clone()))


@every_estimator
def test_fake_quantize_gives_the_quantizers_values(estimator: AbstractEstimator) -> None:
    x = noise(4, 3, 4)
    for original in ALL_QUANTIZERS:
        if fits(estimator, original):
            quantizer = copy.deepcopy(original)
            layer = FakeQuantize(quantizer, estimator)
            if not relaxes(estimator):
                assert torch.equal(layer.train()(x), quantizer(x)), label(original)
            assert torch.equal(layer.eval()(x), quantizer(x)), label(original)


@every_pair
def test_autograd_gives_the_vjp(estimator: AbstractEstimator, quantizer: AbstractQuantizer) -> None:
    z = straddling(quantizer.grid)
    grad = noise(z.numel())
    expected = estimator.vjp(z, quantizer.discretize(z), grad, quantizer.grid)
    assert torch.equal(gradient(estimator, quantizer, z, grad), expected)
    by_func = torch.func.grad(lambda z: (staircase(z, quantizer, estimator) * grad).sum())(z)
    assert torch.equal(by_func, expected)


@every_pair
def test_vmap_over_independent_tensors_equals_a_loop(
    estimator: AbstractEstimator, quantizer: AbstractQuantizer
) -> None:
    one = straddling(quantizer.grid)
    z = torch.stack([one, 0.3 * one.flip(0), noise(one.numel(), seed=5)])
    grad = noise(*z.shape, seed=6)
    per_tensor = torch.func.grad(lambda z, g: (staircase(z, quantizer, estimator) * g).sum())
    batched = torch.func.vmap(per_tensor)(z, grad)
    looped = torch.stack([gradient(estimator, quantizer, a, g) for a, g in zip(z, grad, strict=True)])
    assert_close(batched, looped, "reordered")


# torch's own tracer instantiates the Function; outside a suite that turns warnings into errors nobody sees it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@every_estimator
def test_compiles_into_one_graph(estimator: AbstractEstimator) -> None:
    quantizer = smallest_grid(estimator)
    z = straddling(quantizer.grid).requires_grad_()
    grad = noise(z.numel())
    torch._dynamo.reset()
    compiled = torch.compile(lambda z: staircase(z, quantizer, estimator), fullgraph=True, backend="aot_eager")
    codes = compiled(z)
    assert torch.equal(codes, quantizer.discretize(z.detach()))
    (result,) = torch.autograd.grad(codes, z, grad)
    assert_close(result, gradient(estimator, quantizer, z, grad), "reordered")


@every_pair
def test_no_gradient_in_no_gradient_out(estimator: AbstractEstimator, quantizer: AbstractQuantizer) -> None:
    z = straddling(quantizer.grid)
    result = gradient(estimator, quantizer, z, torch.zeros_like(z))
    assert torch.equal(result, torch.zeros_like(z))


WINDOWED = [(e, q) for e, q in PAIRS if e.window(q.grid) is not None]


@pytest.mark.parametrize(("estimator", "quantizer"), WINDOWED, ids=[f"{label(e)}-{label(q)}" for e, q in WINDOWED])
def test_a_declared_window_is_the_rule(estimator: AbstractEstimator, quantizer: AbstractQuantizer) -> None:
    window = estimator.window(quantizer.grid)
    assert window is not None
    z = extremes(quantizer.grid, torch.float32)
    grad = noise(z.numel())
    inside = (z >= window[0]) & (z <= window[1])
    assert torch.equal(gradient(estimator, quantizer, z, grad), grad * inside)


@every_estimator
def test_linear_in_the_gradient_exactly_if_declared(estimator: AbstractEstimator) -> None:
    quantizer = smallest_grid(estimator)
    z = straddling(quantizer.grid, torch.float64)
    a, b = noise(z.numel(), seed=1, dtype=z.dtype), noise(z.numel(), seed=2, dtype=z.dtype)

    def vjp(grad: Tensor) -> Tensor:
        return estimator.vjp(z, quantizer.discretize(z), grad, quantizer.grid)

    together, apart = vjp(2 * a - 3 * b), 2 * vjp(a) - 3 * vjp(b)
    if estimator.linear_in_grad:
        assert_close(together, apart, "dense")
    else:
        assert (together - apart).abs().max() > 1e-3


@every_estimator
def test_elementwise_exactly_if_declared(estimator: AbstractEstimator) -> None:
    quantizer = smallest_grid(estimator)
    z = noise(3, 4, seed=1, dtype=torch.float64)
    grad = noise(3, 4, seed=2, dtype=torch.float64)
    before = estimator.vjp(z, quantizer.discretize(z), grad, quantizer.grid)
    other_z, other_grad = z.clone(), grad.clone()
    other_z[0, 0], other_grad[0, 0] = 3.0, 5.0
    after = estimator.vjp(other_z, quantizer.discretize(other_z), other_grad, quantizer.grid)
    elsewhere = torch.ones_like(z, dtype=torch.bool)
    elsewhere[0, 0] = False
    assert torch.equal(before[elsewhere], after[elsewhere]) == estimator.elementwise


@every_dtype
@every_estimator
def test_dtype_shape_and_device_are_kept(estimator: AbstractEstimator, dtype: torch.dtype) -> None:
    quantizer = smallest_grid(estimator)
    for device in ("cpu", "meta"):
        for shape in ((6, 4), (2, 3, 2, 2), (5,), ()):
            z = noise(*shape, dtype=dtype).to(device)
            result = estimator.vjp(z, quantizer.discretize(z), torch.ones_like(z), quantizer.grid)
            assert (result.dtype, result.shape, result.device.type) == (dtype, z.shape, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_pair
def test_finite_everywhere(estimator: AbstractEstimator, quantizer: AbstractQuantizer, dtype: torch.dtype) -> None:
    everything = extremes(quantizer.grid, dtype)
    lone = [everything[-1:], everything[-2:], torch.zeros(3, dtype=dtype), everything[everything.isinf()].repeat(2)]
    for z in (everything, *lone):
        for grad in (torch.ones_like(z), noise(z.numel(), seed=3, dtype=dtype)):
            assert gradient(estimator, quantizer, z, grad).isfinite().all(), z


@every_estimator
def test_progress_changes_it_exactly_if_declared(estimator: AbstractEstimator) -> None:
    before = copy.deepcopy(estimator)
    stages = [estimator.at(progress) for progress in (0.0, 0.5, 1.0)]
    assert estimator == before  # `at` returns, it does not change
    if not estimator.annealed:
        assert all(stage is estimator for stage in stages)
        return
    quantizer = smallest_grid(estimator)
    z = straddling(quantizer.grid)
    codes = quantizer.discretize(z)
    # What anneals may be the gradient or the relaxed value.
    rules = [
        torch.cat([e.vjp(z, codes, torch.ones_like(z), quantizer.grid), e.relax(z, codes, quantizer.grid)])
        for e in stages
    ]
    assert not torch.allclose(rules[0], rules[1])
    assert not torch.allclose(rules[1], rules[2])
    assert stages[2].at(0.5) == stages[1]  # progress is absolute, not an increment


@every_estimator
def test_needs_is_honest(estimator: AbstractEstimator) -> None:
    quantizer = smallest_grid(estimator)
    z = straddling(quantizer.grid)
    operands = {"z": z, "codes": quantizer.discretize(z)}
    grad = noise(z.numel())
    expected = estimator.vjp(operands["z"], operands["codes"], grad, quantizer.grid)
    kept: dict[str, Tensor | None] = {k: v if k in estimator.needs else None for k, v in operands.items()}
    assert torch.equal(estimator.vjp(**kept, grad=grad, grid=quantizer.grid), expected)  # type: ignore[arg-type]
    for name in estimator.needs:  # nothing is kept for nothing
        with pytest.raises((AttributeError, TypeError)):
            estimator.vjp(**(kept | {name: None}), grad=grad, grid=quantizer.grid)  # type: ignore[arg-type]


@every_estimator
def test_only_what_it_needs_is_kept_for_the_backward_pass(estimator: AbstractEstimator) -> None:
    quantizer = smallest_grid(estimator)
    z = straddling(quantizer.grid).requires_grad_()
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        staircase(z, quantizer, estimator)
    assert len(saved) == len(estimator.needs)


@every_estimator
@pytest.mark.parametrize("role", ROLES)
def test_roles_and_quantizers_are_enforced(estimator: AbstractEstimator, role: str) -> None:
    for name in ("sign", "ternary", "lsq", "unsigned", "staircase"):
        quantizer = build_quantizer(name, 1 if name == "sign" else 2)
        suits = name == "sign" or not estimator.binary_only
        if estimator.one_sided_only:
            suits = name in ("unsigned", "staircase")
        if role in estimator.roles and suits:
            check_pair(estimator, quantizer, role)
            continue
        with pytest.raises(ConfigError, match=ESTIMATORS.name_of(type(estimator), default="?")) as caught:
            check_pair(estimator, quantizer, role)
        _, _, offered = str(caught.value).rpartition(": ")
        for other in offered.split(", "):  # what the message recommends can indeed be used
            check_pair(ESTIMATORS.get(other)(), quantizer, role)


@every_estimator
def test_the_forward_pass_is_relaxed_exactly_if_overridden(estimator: AbstractEstimator) -> None:
    quantizer = smallest_grid(estimator)
    z = straddling(quantizer.grid)
    codes = quantizer.discretize(z)
    relaxed = estimator.relax(z, codes, quantizer.grid)
    if not relaxes(estimator):
        assert relaxed is codes
        return
    assert (relaxed.shape, relaxed.dtype) == (codes.shape, codes.dtype)
    assert relaxed.min() >= quantizer.grid.low
    assert relaxed.max() <= quantizer.grid.high
    assert torch.equal(quantizer.discretize(relaxed), codes)  # on the same side of every threshold


@dataclasses.dataclass(frozen=True)
class SoftRounding(AbstractEstimator):
    """A toy that trains on tanh(z) instead of on the codes; never registered, as a user's own may be."""

    linear_in_grad = True
    elementwise = True
    annealed = False
    binary_only = False
    roles = frozenset({"weights"})
    needs = frozenset()

    @classmethod
    def examples(cls) -> list[AbstractEstimator]:
        return [cls()]

    def vjp(self, z: Tensor, codes: Tensor, grad: Tensor, grid: Grid) -> Tensor:
        raise AssertionError("the relaxed value has a gradient of its own")

    def relax(self, z: Tensor, codes: Tensor, grid: Grid) -> Tensor:
        return torch.tanh(z)


def test_a_relaxing_estimator_reaches_the_forward_pass_in_training_only() -> None:
    layer = FakeQuantize(QUANTIZERS.get("sign")(), SoftRounding())
    x = noise(3, 4).requires_grad_()
    soft = layer.train()(x)
    assert torch.equal(soft, torch.tanh(x))
    (grad,) = torch.autograd.grad(soft.sum(), x)
    assert_close(grad, 1 - torch.tanh(x.detach()).square(), "formula")
    assert torch.equal(layer.eval()(x), layer.quantizer(x))
    assert set(layer.eval()(x).detach().unique().tolist()) == {-1.0, 1.0}


def test_an_estimator_that_was_never_registered_is_checked_too() -> None:
    check_pair(SoftRounding(), SIGN, "weights")
    with pytest.raises(ConfigError, match="'SoftRounding' does not act on activations"):
        check_pair(SoftRounding(), SIGN, "activations")


def test_an_object_passes_through_and_an_unknown_name_is_met_with_the_nearest() -> None:
    own = SoftRounding()
    assert build_estimator(own) is own
    with pytest.raises(ValueError, match="did you mean 'clipped'"):
        build_estimator("cliped")
    with pytest.raises(ValueError, match=r"no option 'dleta': did you mean 'delta'\? it takes: delta"):
        build_estimator("ewgs(dleta=0.1)")
