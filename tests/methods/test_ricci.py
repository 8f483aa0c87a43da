"""The Ricci-flow method against dense matrices in float64, computed straight from Eq. 26 to 36."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import lowbit
from lowbit._errors import CheckpointError, ConfigError
from lowbit.geometry import largest_tau, outer_difference_norm_squared
from lowbit.methods import AbstractMethod, StepRecord, build_method
from ricci_twin import (
    LOSS,
    RATES,
    Case,
    Dense,
    batch,
    gradients,
    mean,
    net,
    optimizer_for,
)
from tolerances import assert_close

CASES = [
    Case(0.3, 1e9),
    Case(0.3, 0.0),
    Case(0.3, 0.05),  # between the two layers' N: one gate open, one shut
    Case(0.1, 1e9, rho=0.5, inverse="weak"),
    Case(0.3, 1e9, block="channel"),
    Case(0.3, 1e9, block=5),  # a ragged last group in both layers
    Case(0.3, 1e9, metric="hessian"),
    Case(0.3, 1e9, metric="hessian", block="channel"),
    Case(0.3, 1e9, shifts=(2, -1, 0, 3)),
    Case(0.3, 1e9, inverse="exact", shifts=(-1, 1, 1, -1), block=4),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.spec[21:-1])
def test_three_steps_against_dense_matrices(case: Case) -> None:
    model = net()
    method, optimizer = build_method(case.spec), optimizer_for(model)
    dense = Dense(case)
    shut = []
    for step in range(3):
        expected = dense.step(model, *batch(step), RATES)
        record = method.step(model, batch(step), LOSS, optimizer)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            operation = "finite difference" if name in RATES else "reordered"
            assert_close(parameter.grad, expected[name], operation)
        assert_close(record.metrics["ricci_n"], mean(dense.n), "frobenius")
        assert_close(record.metrics["gated"], mean(dense.gated), "reordered")
        assert_close(record.metrics["correction"], mean(dense.correction), "dense")
        assert record.layer_names == ("3", "6")
        assert_close(
            record.layer_metrics["ricci_n"], torch.tensor(list(dense.n.values()), dtype=torch.float64), "frobenius"
        )
        shut.append(sum(dense.gated.values()))

    assert min(dense.n.values()) > 1e-6  # there was something to compare
    if case.epsilon < 1e9:
        assert shut == {0.0: [0, 2, 2], 0.05: [0, 1, 1]}[case.epsilon]


def test_the_first_step_has_no_history() -> None:
    """Whatever α and ε: no g(t) yet, hence the natural gradient alone."""
    model = net()
    expected = Dense(Case(0.0, float("inf"))).step(model, *batch(0), RATES)
    record = build_method(Case(5.0, 0.0).spec).step(model, batch(0), LOSS, optimizer_for(model))
    assert record.metrics["ricci_n"] == 0
    assert record.metrics["gated"] == 0
    for name in RATES:
        assert_close(model.get_parameter(name).grad, expected[name], "dense")


def test_gradient_mode_is_algorithm_1() -> None:
    """Natural gradient alone, without any shifted pass: inputs need not even be images."""
    model = net()
    method, optimizer = build_method("ricci(mode=gradient, rho=0.7)"), optimizer_for(model)
    for step in range(2):
        expected = Dense(Case(0.0, float("inf"), rho=0.7)).step(model, *batch(step), RATES)
        record = method.step(model, batch(step), LOSS, optimizer)
        for name in RATES:
            assert_close(model.get_parameter(name).grad, expected[name], "dense")
        assert record.metrics["ricci_n"] == 0
    assert method.state_dict()["memory"] == {}


def test_an_open_gate_and_no_flow_is_the_natural_gradient() -> None:
    model = net()
    method, optimizer = build_method("ricci(mode=faithful, alpha=0, epsilon=1e30)"), optimizer_for(model)
    for step in range(2):
        plain = gradients(model, *batch(step))
        weights = {name: model.get_parameter(name).detach().clone().reshape(-1) for name in RATES}
        method.step(model, batch(step), LOSS, optimizer)
        for name, w in weights.items():
            g = Case(0, 0).g(w, largest_tau(w, 0.9))
            assert torch.linalg.eigvalsh(g).min() > 0
            natural = torch.linalg.solve(g, plain[name].reshape(-1))
            assert_close(model.get_parameter(name).grad.reshape(-1), natural, "dense")
            assert (natural - plain[name].reshape(-1)).norm() > 1e-3 * natural.norm()


def test_a_shut_gate_and_no_flow_leaves_the_latent_weights_where_they_are() -> None:
    model = net()
    method, optimizer = build_method(Case(0.0, 0.0).spec), optimizer_for(model)
    method.step(model, batch(0), LOSS, optimizer)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    method.step(model, batch(1), LOSS, optimizer)
    for name, parameter in model.named_parameters():
        idle = name in RATES or name in ("0.bias", "3.bias")  # batch normalisation cancels these biases
        assert torch.allclose(parameter, before[name], atol=1e-12) == idle, name


def test_the_residual_keeps_its_digits_in_float32() -> None:
    """Metrics of consecutive steps differ by 10⁻⁴ or less; N is then 10⁻⁸, beside products of size 1."""
    generator = torch.Generator().manual_seed(0)
    coefficients = torch.tensor([-1.0, 0.5, -0.5])
    base = torch.randn(500, generator=generator)
    base = 0.95 * base / base.norm()
    for size in (1e-2, 1e-3, 1e-4, 1e-5):
        u = torch.stack([base * (1 + size * torch.randn(500, generator=generator)) for _ in range(5)])
        first, second = u[[0, 1, 3]], u[[1, 2, 4]]
        a, b = first.double(), second.double()
        dense = torch.einsum(
            "t,tij->ij", coefficients.double(), a[:, :, None] * a[:, None] - b[:, :, None] * b[:, None]
        )
        found = outer_difference_norm_squared(coefficients, first, second)
        torch.testing.assert_close(found.double(), dense.square().sum(), rtol=2e-5, atol=0)
        assert found > 0
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(outer_difference_norm_squared(coefficients, first, second), found)


def test_frozen_latent_weights_are_left_out() -> None:
    model = net()
    model[3].weight.requires_grad_(False)
    before = model[3].weight.clone()
    method, optimizer = build_method(Case(0.1, 1e9).spec), optimizer_for(model)
    dense = Dense(Case(0.1, 1e9))
    for step in range(2):
        expected = dense.step(model, *batch(step), {"6.weight": RATES["6.weight"]})
        record = method.step(model, batch(step), LOSS, optimizer)
        assert_close(model[6].weight.grad, expected["6.weight"], "finite difference")
        assert_close(record.metrics["ricci_n"], mean(dense.n), "frobenius")
    assert torch.equal(model[3].weight, before)
    assert set(method.state_dict()["memory"]) == {"6.weight"}


def test_weights_outside_the_optimizer_are_left_out() -> None:
    model = net()
    before = model[6].weight.detach().clone()
    method = build_method("ricci")
    optimizer = torch.optim.SGD([model[3].weight, model[0].weight], lr=0.1)
    for step in range(2):
        assert method.step(model, batch(step), LOSS, optimizer).loss.isfinite()
    assert torch.equal(model[6].weight, before)
    assert set(method.state_dict()["memory"]) == {"3.weight"}


class Spare(nn.Module):
    """A model with a layer that is not always used."""

    def __init__(self) -> None:
        super().__init__()
        self.main = net()
        self.side = lowbit.convert(nn.Linear(3, 3).double(), keep_float=())
        self.path = ["main", "side"]

    def forward(self, x: Tensor) -> Tensor:
        for name in self.path:
            x = self.get_submodule(name)(x)
        return x


def test_a_layer_that_the_loss_does_not_reach_is_left_out() -> None:
    model = Spare()
    method, optimizer = build_method("ricci"), torch.optim.SGD(model.parameters(), lr=0.1)
    method.step(model, batch(0), LOSS, optimizer)
    kept = model.side.weight.detach().clone()
    model.path = ["main"]
    method.step(model, batch(1), LOSS, optimizer)
    assert torch.equal(model.side.weight, kept)
    model.path = ["main", "side"]
    method.step(model, batch(2), LOSS, optimizer)
    assert not torch.equal(model.side.weight, kept)


def test_tied_latent_weights_count_once() -> None:
    model = Spare()
    model.path = ["main", "side", "tied"]
    model.tied = copy.deepcopy(model.side)
    model.tied.weight = model.side.weight
    method = build_method("ricci")
    method.step(model, batch(0), LOSS, torch.optim.SGD(model.parameters(), lr=0.1))
    assert set(method.state_dict()["memory"]) == {"main.3.weight", "main.6.weight", "side.weight"}


def step_with(
    model: nn.Module, inputs: Tensor | None = None, parameters: list[nn.Parameter] | None = None
) -> StepRecord:
    images, labels = batch(0)
    optimizer = torch.optim.SGD(parameters or list(model.parameters()), lr=0.1)
    return build_method("ricci").step(model, (images if inputs is None else inputs, labels), LOSS, optimizer)


def test_inputs_must_be_images() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.Linear(4, 3)).double()
    with pytest.raises(ConfigError, match=r"shifts images \(N, C, H, W\); inputs of shape \(N, 6, 6\) were given"):
        step_with(lowbit.convert(model, keep_float=("first",)), inputs=batch(0)[0][:, 0])


def test_there_must_be_latent_weights_that_move() -> None:
    message = "'ricci' needs latent weights that move: convert the model to a few bits"
    model = net()
    with pytest.raises(ConfigError, match=message):
        step_with(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).double())
    with pytest.raises(ConfigError, match=message):
        step_with(model, parameters=[model[0].weight])
    for name in RATES:
        model.get_parameter(name).requires_grad_(False)
    with pytest.raises(ConfigError, match=message):
        step_with(model)


def test_the_loss_must_depend_on_them() -> None:
    model = Spare()
    model.main = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).double()
    model.path = ["main"]
    with pytest.raises(ConfigError, match="the loss depends on none of the model's latent weights"):
        step_with(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("alpha=-1", "alpha=-1 .* must be a number that is not negative"),
        ("epsilon=-0.5", "epsilon=-0.5 .* must be a number that is not negative"),
        ("rho=0", "rho=0 must lie between 0 and 1"),
        ("rho=1", "rho=1 must lie between 0 and 1"),
        ("tau=0", r"tau=0 .*must be a positive number or auto or dominance"),
        ("margin=1", r"margin=1 must be at least 0 and below 1"),
        ("block=rows", r"block='rows' of method 'ricci' must be layer, channel or a positive group size"),
        ("shifts=(2, -2, 1, -1)", r"k1 and k2 must differ, by less than 4 pixels"),
        ("shifts=(1, -1, 0, 0)", r"j1 and j2 must differ, by less than 4 pixels"),
        ("shifts=(1, -1)", r"four whole numbers k1, k2, j1, j2"),
        ("shifts=(0.5, -0.5, 1, -1)", r"four whole numbers k1, k2, j1, j2"),
        ("axes=0", r"axes=\(0,\) of method 'ricci' must be one or two different axes .*other than 0"),
        ("axes=(2, 2)", r"must be one or two different axes"),
        ("mode=quick", "mode='quick' of method 'ricci' must be fast, faithful or gradient"),
        ("metric=euclidean", "metric='euclidean' of method 'ricci' must be lne or hessian"),
        ("mode=faithful, interval=2", "interval=2 of method 'ricci' belongs to mode=fast; mode=faithful was asked for"),
        (
            "mode=gradient, alpha=0.1",
            "alpha=0.1 .* belongs to mode=fast and mode=faithful; mode=gradient was asked",
        ),
        ("mode=gradient, axes=-1", "axes=-1 .* belongs to mode=fast and mode=faithful.* would have no effect"),
        ("interval=0", "interval=0 .* must be a number of steps, 1 or more"),
        ("shift_fraction=half", "shift_fraction='half' of method 'ricci' must be above 0"),
        ("together=no", "together='no' of method 'ricci' must be True or False"),
        ("transform=5", "transform=5 of method 'ricci' must be a function, or package.module:function"),
        ("metric=hessian, inverse=weak", "inverse='weak' of method 'ricci' is one of metric=lne"),
        ("shift_fraction=0", "shift_fraction=0 .* must be above 0 and at most 1"),
        ("inverse=strong", "inverse='strong' .* must be exact or weak"),
    ],
)
def test_options_that_do_not_fit(options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_method(f"ricci({options})")


def test_nan_is_no_option() -> None:
    with pytest.raises(ConfigError, match="alpha=nan"):
        type(build_method("ricci"))(alpha=float("nan"))  # type: ignore[call-arg]


def test_the_state_of_another_model_is_refused() -> None:
    method = build_method("ricci(mode=faithful)")
    other = {"u": torch.zeros(4, 1, 3, dtype=torch.float64), "n": torch.zeros(()), "slope": None}
    method.load_state_dict({**method.state_dict(), "steps": 4, "memory": {"3.weight": other}})
    model = net()
    message = r"layer '3.weight' as 1 x 3 weights under 4 shifts, here it is 1 x 16 weights under 4 shifts"
    with pytest.raises(CheckpointError, match=message):
        method.step(model, batch(0), LOSS, optimizer_for(model))


def test_a_state_of_other_options_is_refused() -> None:
    first = build_method("ricci")
    run_one(first)
    for options in ("block=channel", "shifts=(2,-1,2,-1)", "metric=hessian"):
        with pytest.raises(CheckpointError, match=r"was written with .*'layer'.* give these options as they were"):
            build_method(f"ricci({options})").load_state_dict(first.state_dict())
    gradient = build_method("ricci(mode=gradient)")
    gradient.load_state_dict(first.state_dict())
    assert gradient.state_dict()["memory"] == {}
    build_method("ricci(mode=faithful, alpha=1)").load_state_dict(first.state_dict())


def run_one(method: AbstractMethod) -> None:
    model = net()
    method.step(model, batch(0), LOSS, optimizer_for(model))


def test_the_history_follows_the_weights_dtype() -> None:
    model = net().float()
    method, optimizer = build_method("ricci(mode=faithful)"), optimizer_for(model)
    images, labels = batch(0)
    method.step(model, (images.float(), labels), LOSS, optimizer)
    model.double()
    record = method.step(model, (images, labels), LOSS, optimizer_for(model))
    assert record.metrics["ricci_n"] > 0


def test_the_natural_gradient_is_not_applied_twice() -> None:
    model = lowbit.convert(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3)), estimator="lne", keep_float=()
    )
    batch = torch.randn(2, 1, 8, 8), torch.tensor([0, 1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="applies g⁻¹ itself"):
        build_method("ricci").step(model, batch, nn.functional.cross_entropy, optimizer)
