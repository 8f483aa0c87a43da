"""The Ricci-flow method against dense matrices in float64, computed straight from Eq. 26 to 36."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

import lowbit
from lowbit._errors import CheckpointError, ConfigError
from lowbit.geometry import largest_tau, outer_difference_norm_squared
from lowbit.methods import StepRecord, build_method
from lowbit.methods.ricci import translate
from tolerances import assert_close

LOSS = nn.CrossEntropyLoss()
RATES = {"3.weight": 0.1, "6.weight": 0.01}


def net(seed: int = 0) -> nn.Module:
    """Latent weights of 16 and 12 numbers, small enough for dense matrices; float layers at both ends."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.Conv2d(2, 2, 2),
        nn.BatchNorm2d(2),
        nn.Flatten(),
        nn.Linear(18, 3),
        nn.Linear(3, 3),
    )
    return lowbit.convert(model.double(), weights=1, estimator="identity")


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(5, 1, 6, 6, generator=generator, dtype=torch.float64)
    return images, torch.randint(0, 3, (5,), generator=generator)


def optimizer_for(model: nn.Module) -> torch.optim.Optimizer:
    rest = [p for name, p in model.named_parameters() if name not in RATES]
    groups = [{"params": [model.get_parameter(name)], "lr": rate} for name, rate in RATES.items()]
    return torch.optim.SGD([*groups, {"params": rest}], lr=0.1)


def slow_translate(images: Tensor, rows: int, columns: int) -> Tensor:
    result = torch.zeros_like(images)
    height, width = images.shape[-2:]
    for row in range(height):
        for column in range(width):
            if 0 <= row - rows < height and 0 <= column - columns < width:
                result[..., row, column] = images[..., row - rows, column - columns]
    return result


def metric(w: Tensor, tau: Tensor) -> Tensor:
    """g of Eq. 26 as a dense matrix."""
    u = torch.tanh(tau * w)
    return torch.eye(len(w), dtype=w.dtype) - torch.outer(u, u)


def inverse(g: Tensor, kind: str) -> Tensor:
    return torch.linalg.inv(g) if kind == "exact" else 2 * torch.eye(len(g), dtype=g.dtype) - g  # Cor. 19


def gradients(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    twin = copy.deepcopy(model)
    twin.zero_grad()
    LOSS(twin(images), labels).backward()
    return {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}


@dataclass
class Dense:
    """Algorithm 2 with dense matrices; remembers g(t)|a of every layer."""

    alpha: float
    epsilon: float
    rho: float = 0.9
    kind: str = "exact"
    previous: dict[str, list[Tensor]] = field(default_factory=dict)
    n: dict[str, float] = field(default_factory=dict)
    gated: dict[str, float] = field(default_factory=dict)
    correction: dict[str, float] = field(default_factory=dict)

    def residual(self, now: list[Tensor], previous: list[Tensor]) -> Tensor:
        """N of Eq. 35; k1 − k2 = j1 − j2 = 2."""
        k1, k2, j1, j2 = previous
        minus_two_ric = (k1 - k2) / 2 - (j1 - j2) / 2
        return ((now[0] - k1) - minus_two_ric).square().sum()

    def step(self, model: nn.Module, images: Tensor, labels: Tensor, rates: dict[str, float]) -> dict[str, Tensor]:
        """The gradient that every parameter should have after the step."""
        result = gradients(model, images, labels)
        shifted = [
            gradients(model, slow_translate(images, *shift), labels) for shift in ((1, 0), (-1, 0), (0, 1), (0, -1))
        ]
        for name, rate in rates.items():
            w = model.get_parameter(name).detach().reshape(-1)
            tau = largest_tau(w, self.rho)
            solve = inverse(metric(w, tau), self.kind)
            moves = [rate * solve @ each[name].reshape(-1) for each in shifted]
            slope, n = torch.zeros_like(w), 0.0
            if name in self.previous:

                def flow(v: Tensor, name: str = name, tau: Tensor = tau, moves: list[Tensor] = moves) -> Tensor:
                    return self.residual([metric(v - move, tau) for move in moves], self.previous[name])

                n = float(flow(w))
                for i in range(len(w)):  # central differences
                    away = torch.zeros_like(w)
                    away[i] = 1e-5
                    slope[i] = (flow(w + away) - flow(w - away)) / 2e-5
            self.previous[name] = [metric(w - move, tau) for move in moves]
            plain = result[name].reshape(-1)
            natural = solve @ plain
            self.n[name], self.gated[name] = n, float(n > self.epsilon)
            self.correction[name] = float((natural - plain).norm() / plain.norm())
            result[name] = (natural * (n <= self.epsilon) + self.alpha * slope).reshape(result[name].shape)
        return result


def mean(values: dict[str, float]) -> Tensor:
    return torch.tensor(sum(values.values()) / len(values), dtype=torch.float64)


def spec(alpha: float, epsilon: float, rho: float = 0.9, kind: str = "exact") -> str:
    return f"ricci(alpha={alpha}, epsilon={epsilon}, rho={rho}, inverse={kind})"


CASES = [
    (0.3, 1e9, 0.9, "exact"),
    (0.3, 0.0, 0.9, "exact"),
    (0.3, 0.05, 0.9, "exact"),  # between the two layers' N: one gate open, one shut
    (0.1, 1e9, 0.5, "weak"),
]


@pytest.mark.parametrize(("alpha", "epsilon", "rho", "kind"), CASES)
def test_three_steps_against_dense_matrices(alpha: float, epsilon: float, rho: float, kind: str) -> None:
    model = net()
    method, optimizer = build_method(spec(alpha, epsilon, rho, kind)), optimizer_for(model)
    dense = Dense(alpha, epsilon, rho, kind)
    shut = []
    for step in range(3):
        expected = dense.step(model, *batch(step), RATES)
        record = method.step(model, batch(step), LOSS, optimizer)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            operation = "finite difference" if name in RATES else "reordered"
            assert_close(parameter.grad, expected[name], operation)
        assert_close(record.metrics["ricci_n"], mean(dense.n), "frobenius")
        assert_close(record.metrics["ricci_gated"], mean(dense.gated), "reordered")
        assert_close(record.metrics["ricci_correction"], mean(dense.correction), "dense")
        shut.append(sum(dense.gated.values()))

    assert min(dense.n.values()) > 1e-4  # there was something to compare
    assert shut == {1e9: [0, 0, 0], 0.0: [0, 2, 2], 0.05: [0, 1, 1]}[epsilon]


def test_the_first_step_has_no_history() -> None:
    """Whatever α and ε: no g(t) yet, hence the natural gradient alone."""
    model = net()
    expected = Dense(0.0, float("inf")).step(model, *batch(0), RATES)
    record = build_method(spec(5.0, 0.0)).step(model, batch(0), LOSS, optimizer_for(model))
    assert record.metrics["ricci_n"] == 0
    assert record.metrics["ricci_gated"] == 0
    for name in RATES:
        assert_close(model.get_parameter(name).grad, expected[name], "dense")


def test_an_open_gate_and_no_flow_is_the_natural_gradient() -> None:
    model = net()
    method, optimizer = build_method("ricci(alpha=0, epsilon=1e30)"), optimizer_for(model)
    for step in range(2):
        plain = gradients(model, *batch(step))
        weights = {name: model.get_parameter(name).detach().clone().reshape(-1) for name in RATES}
        method.step(model, batch(step), LOSS, optimizer)
        for name, w in weights.items():
            g = metric(w, largest_tau(w, 0.9))
            assert torch.linalg.eigvalsh(g).min() > 0
            natural = torch.linalg.solve(g, plain[name].reshape(-1))
            assert_close(model.get_parameter(name).grad.reshape(-1), natural, "dense")
            assert (natural - plain[name].reshape(-1)).norm() > 1e-3 * natural.norm()


def test_a_shut_gate_and_no_flow_leaves_the_latent_weights_where_they_are() -> None:
    model = net()
    method, optimizer = build_method(spec(0.0, 0.0)), optimizer_for(model)
    method.step(model, batch(0), LOSS, optimizer)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    method.step(model, batch(1), LOSS, optimizer)
    for name, parameter in model.named_parameters():
        idle = name in RATES or name in ("0.bias", "3.bias")  # batch normalisation cancels these biases
        assert torch.allclose(parameter, before[name], atol=1e-12) == idle, name


@pytest.mark.parametrize("rows", [-1, 0, 1])
@pytest.mark.parametrize("columns", [-1, 0, 1])
def test_translate_against_a_slow_twin(rows: int, columns: int) -> None:
    images = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    moved = translate(images, rows, columns)
    assert torch.equal(moved, slow_translate(images, rows, columns))
    assert moved.shape == images.shape


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
    method, optimizer = build_method(spec(0.1, 1e9)), optimizer_for(model)
    dense = Dense(0.1, 1e9)
    for step in range(2):
        expected = dense.step(model, *batch(step), {"6.weight": RATES["6.weight"]})
        record = method.step(model, batch(step), LOSS, optimizer)
        assert_close(model[6].weight.grad, expected["6.weight"], "finite difference")
        assert_close(record.metrics["ricci_n"], mean(dense.n), "frobenius")
    assert torch.equal(model[3].weight, before)
    assert set(method.state_dict()["previous"]) == {"6.weight"}


def test_weights_outside_the_optimizer_are_left_out() -> None:
    model = net()
    before = model[6].weight.detach().clone()
    method = build_method("ricci")
    optimizer = torch.optim.SGD([model[3].weight, model[0].weight], lr=0.1)
    for step in range(2):
        assert method.step(model, batch(step), LOSS, optimizer).loss.isfinite()
    assert torch.equal(model[6].weight, before)
    assert set(method.state_dict()["previous"]) == {"3.weight"}


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
    assert set(method.state_dict()["previous"]) == {"main.3.weight", "main.6.weight", "side.weight"}


def step_with(
    model: nn.Module, inputs: Tensor | None = None, parameters: list[nn.Parameter] | None = None
) -> StepRecord:
    images, labels = batch(0)
    optimizer = torch.optim.SGD(parameters or list(model.parameters()), lr=0.1)
    return build_method("ricci").step(model, (images if inputs is None else inputs, labels), LOSS, optimizer)


def test_inputs_must_be_images() -> None:
    with pytest.raises(ConfigError, match=r"shifts images \(N, C, H, W\); inputs of shape \(5, 6, 6\) were given"):
        step_with(net(), inputs=batch(0)[0][:, 0])


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
        ("rho=0", "rho=0 .* must lie between 0 and 1"),
        ("rho=1", "rho=1 .* must lie between 0 and 1"),
        ("shift=2", r"shift=2 .* must stay below 4 pixels"),
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
    method = build_method("ricci")
    method.load_state_dict({"previous": {"3.weight": torch.zeros(4, 3, dtype=torch.float64)}})
    model = net()
    with pytest.raises(CheckpointError, match=r"layer '3.weight' with 3 weights, the model has 16 there"):
        method.step(model, batch(0), LOSS, optimizer_for(model))


def test_the_history_follows_the_weights_dtype() -> None:
    model = net().float()
    method, optimizer = build_method("ricci"), optimizer_for(model)
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
