"""metaquant: Chen et al. 2019, against Algorithm 1 of the paper in tests/metaquant_twin.py."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

import lowbit
from lowbit._errors import CheckpointError, ConfigError
from lowbit.methods import AbstractMethod, StepRecord, build_method, metaquant
from lowbit.methods._meta_network import NETS
from metaquant_twin import LOSS, RATES, Algorithm1, batch, float_net, grad_of, net, optimizer_for, phi, prepared
from tolerances import assert_close

SPECS = [
    "metaquant(net=multifc, hidden=5)",
    "metaquant(net=multifc, hidden=5, depth=3, nonlinearity=tanh)",
    "metaquant(net=fc, hidden=4)",
    "metaquant(net=fc, hidden=4, nonlinearity=relu, preprocess=none)",
    "metaquant(net=lstmfc, hidden=3)",
    "metaquant(net=lstmfc, hidden=3, depth=2, nonlinearity=tanh, preprocess=none)",
]
every_spec = pytest.mark.parametrize("spec", SPECS)


@every_spec
def test_four_steps_against_algorithm_1(spec: str) -> None:
    """Our step t makes the update that the paper's iteration t + 1 begins with."""
    model, method, paper = net(), prepared(spec), Algorithm1(spec)
    optimizer = optimizer_for(model)
    for step in range(4):
        slopes = paper.iterate(*batch(step))
        method.step(model, batch(step), LOSS, optimizer)
        found = [p.grad for p in phi(method).parameters() if p.grad is not None]
        assert len(found) == len(slopes) == (len(list(phi(method).parameters())) if step else 0)
        for mine, theirs in zip(found, slopes, strict=True):
            assert_close(mine, theirs, "dense")
            assert step == 1 or theirs.abs().max() > 0  # the LSTM has nothing to remember at first
        for mine, theirs in zip(phi(method).parameters(), paper.network.parameters(), strict=True):
            assert_close(mine.detach(), theirs.detach(), "dense")
        expected = paper.weights | copy.deepcopy(paper).updated()
        for name, parameter in model.named_parameters():
            assert_close(parameter.detach(), expected[name].detach(), "dense")
    assert (model[2].weight - net()[2].weight).abs().max() > 1e-4  # type: ignore[index]


@pytest.mark.parametrize("spec", [spec for spec in SPECS if "lstmfc" not in spec])  # whose memory is held constant
def test_the_gradient_of_phi_by_finite_differences(spec: str) -> None:
    """Of the loss to first order around w_t: only w_t = w_{t−1} − η·(what the method put in `.grad`) depends on φ."""
    frozen = f"{spec[:-1]}, meta_lr=0.0)"

    def second_step(entry: int, by: float) -> dict[str, Tensor]:
        """The latent weights after two steps, the second made with that number of φ larger by so much."""
        model, method = net(), prepared(frozen)
        optimizer = optimizer_for(model)
        method.step(model, batch(0), LOSS, optimizer)
        vector = nn.utils.parameters_to_vector(phi(method).parameters()).detach()
        vector[entry] += by
        nn.utils.vector_to_parameters(vector, phi(method).parameters())
        method.step(model, batch(1), LOSS, optimizer)
        return {name: model.get_parameter(name).detach() for name in RATES}

    model, method, paper = net(), prepared(frozen), Algorithm1(spec)
    optimizer = optimizer_for(model)
    for step in range(3):
        before = {name: model.get_parameter(name).detach().clone() for name in RATES}
        method.step(model, batch(step), LOSS, optimizer)
    behind = {name: past.grad for name, past in method._history.items()}  # type: ignore[attr-defined]
    found = torch.cat([grad_of(p).reshape(-1) for p in phi(method).parameters()])
    for entry in range(0, len(found), 3):
        up, down = second_step(entry, 1e-6), second_step(entry, -1e-6)
        slope = sum(
            (behind[name] * (paper.slope(before[name]) * (up[name] - down[name]) / 2e-6).reshape(-1)).sum()
            for name in RATES
        )
        assert_close(found[entry], torch.as_tensor(slope), "finite difference")


def run(
    spec: str | AbstractMethod, steps: int, model: nn.Module | None = None, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, AbstractMethod, list[StepRecord]]:
    model = net(dtype=dtype) if model is None else model
    method = build_method(spec) if isinstance(spec, str) else spec
    optimizer = optimizer_for(model)
    return model, method, [method.step(model, batch(step, dtype), LOSS, optimizer) for step in range(steps)]


@every_spec
@pytest.mark.parametrize("chunk", [1, 7, 28])
def test_pieces_change_nothing(spec: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _, expected = run(prepared(spec), 3, dtype=torch.float64)
    monkeypatch.setattr(metaquant, "CHUNK", chunk)
    pieces, _, records = run(prepared(spec), 3, dtype=torch.float64)
    for name in RATES:
        assert_close(pieces.get_parameter(name).detach(), whole.get_parameter(name).detach(), "dense")
    assert_close(records[-1].metrics["meta_cosine"], expected[-1].metrics["meta_cosine"], "dense")


@pytest.mark.parametrize("net_name", NETS)
def test_every_net_learns_a_batch_by_heart(net_name: str) -> None:
    """The latent weights alone: they and φ are all that moves."""
    model = net(dtype=torch.float32)
    method = build_method(f"metaquant(net={net_name}, hidden=10, meta_lr=0.01)")
    optimizer = torch.optim.SGD([model.get_parameter(name) for name in RATES], lr=0.5)
    losses = [float(method.step(model, batch(0, torch.float32), LOSS, optimizer).loss) for _ in range(80)]
    assert sum(losses[-10:]) / 10 < 0.8 * losses[0]


@every_spec
def test_it_resumes_exactly(spec: str) -> None:
    whole, _, expected = run(spec, 4)
    model, method, _ = run(spec, 2)
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    file.seek(0)
    again = build_method(spec)
    again.load_state_dict(torch.load(file, weights_only=True))
    optimizer = optimizer_for(model)
    for step in (2, 3):
        record = again.step(model, batch(step, torch.float32), LOSS, optimizer)
        assert torch.equal(record.loss, expected[step].loss)
        assert torch.equal(record.layer_metrics["meta_cosine"], expected[step].layer_metrics["meta_cosine"])
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, whole.get_parameter(name)), name


@every_spec
def test_the_state_is_a_snapshot(spec: str) -> None:
    model, method, _ = run(spec, 2)
    state = method.state_dict()
    before = copy.deepcopy(state)
    run(method, 2, model)
    assert repr(state) == repr(before)
    assert repr(method.state_dict()) != repr(before)


def test_the_figures_compare_with_the_straight_gradient() -> None:
    model, twin = net(), net()
    LOSS(twin(batch(0)[0]), batch(0)[1]).backward()
    _, _, (record,) = run("metaquant(net=lstmfc)", 1, model, torch.float64)
    assert record.layer_names == ("2", "4")
    for index, name in enumerate(RATES):
        straight, found = grad_of(twin.get_parameter(name)).reshape(-1), grad_of(model.get_parameter(name)).reshape(-1)
        cosine = torch.cosine_similarity(straight, found, dim=0)
        assert_close(record.layer_metrics["meta_cosine"][index], cosine, "sum")
        assert_close(record.layer_metrics["meta_gain"][index], found.norm() / straight.norm(), "sum")
    for name, values in record.layer_metrics.items():
        assert_close(record.metrics[name], values.mean(), "sum")


def test_a_linear_fcgrad_is_one_learned_rate() -> None:
    _, _, records = run("metaquant(net=fc, preprocess=none)", 3, dtype=torch.float64)
    for record in records:
        assert_close(record.layer_metrics["meta_cosine"].abs(), torch.ones(2, dtype=torch.float64), "sum")
    assert records[0].metrics["meta_gain"] != records[2].metrics["meta_gain"]


def test_phis_rate_falls_with_the_weights() -> None:
    model, method = net(), build_method("metaquant(meta_lr=0.01)")
    optimizer = optimizer_for(model)
    rates = []
    for step, factor in enumerate((0.5, 1.0, 0.1, 0.0)):
        for group, base in zip(optimizer.param_groups, (*RATES.values(), 0.05), strict=True):
            group["lr"] = factor * base
        before = copy.deepcopy(phi(method))
        method.step(model, batch(step), LOSS, optimizer)
        rates.append(method._adam.param_groups[0]["lr"])  # type: ignore[attr-defined]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.0])
    for mine, theirs in zip(phi(method).parameters(), before.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_seed_decides_and_the_global_one_stays() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, same, other = (build_method(f"metaquant(seed={seed})").state_dict()["phi"] for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    for name, value in first.items():
        assert torch.equal(value, same[name])
        assert not torch.equal(value, other[name])


@pytest.mark.parametrize(
    ("net_name", "preprocess"),
    [("fc", "none"), ("fc", "dorefa"), ("multifc", "dorefa"), ("lstmfc", "none"), ("lstmfc", "dorefa")],
)
def test_phi_starts_downhill_if_aligned(net_name: str, preprocess: str) -> None:
    model = net(dtype=torch.float32)
    with torch.no_grad():
        for name in RATES:
            model.get_parameter(name).mul_(0.01)
    signs = set()
    for seed in range(5):
        options = f"net={net_name}, hidden=10, preprocess={preprocess}, seed={seed}"
        _, _, (record,) = run(f"metaquant({options})", 1, copy.deepcopy(model))
        _, _, (chance,) = run(f"metaquant({options}, aligned=False)", 1, copy.deepcopy(model))
        assert record.metrics["meta_cosine"] > 0
        assert_close(chance.metrics["meta_cosine"].abs(), record.metrics["meta_cosine"], "sum")
        signs.add(float(chance.metrics["meta_cosine"].sign()))
    assert signs == {-1.0, 1.0}


class Wrapper(nn.Module):
    """What compilers and launchers put around a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._forward_module = model

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self._forward_module(x)
        return result


def test_wrappers_leave_names_and_steps_alone() -> None:
    bare, method, _ = run("metaquant", 3)
    model = net(dtype=torch.float32)
    again, wrapped = build_method("metaquant"), Wrapper(Wrapper(model))
    optimizer = optimizer_for(model)
    for step in range(3):
        record = again.step(wrapped, batch(step, torch.float32), LOSS, optimizer)
    assert record.layer_names == ("2", "4")
    assert again.state_dict()["history"].keys() == method.state_dict()["history"].keys() == RATES.keys()
    for name in RATES:
        assert torch.equal(bare.get_parameter(name), model.get_parameter(name))


@pytest.mark.parametrize("net_name", NETS)
def test_autocast_around_the_step_does_not_reach_phi(net_name: str) -> None:
    spec = f"metaquant(net={net_name})"
    _, plain, _ = run(spec, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model, method, _ = run(spec, 1)
        (past,) = [past for name, past in method._history.items() if name == "2.weight"]  # type: ignore[attr-defined]
        with torch.autocast("cpu", enabled=False):
            expected, _ = phi(plain)(past.grad, method._preprocessed(past.weight), None)  # type: ignore[attr-defined]
            expected = expected * method._calibration(past.weight)  # type: ignore[attr-defined]
    assert torch.equal(grad_of(model.get_parameter("2.weight")).reshape(-1), expected)
    assert {p.dtype for p in phi(method).parameters()} == {torch.float32}


def test_phi_follows_the_weights_to_another_dtype() -> None:
    model, method, _ = run("metaquant(net=lstmfc)", 2)
    run(method, 1, model.double(), torch.float64)
    assert {p.dtype for p in phi(method).parameters()} == {torch.float64}
    run(method, 1, model.bfloat16(), torch.bfloat16)
    assert {p.dtype for p in phi(method).parameters()} == {torch.float32}


def test_micro_batches_give_the_same_step() -> None:
    whole, _, _ = run(prepared("metaquant"), 3, dtype=torch.float64)
    method = build_method("metaquant", micro_batches=4)
    phi(method).double()
    parts, _, _ = run(method, 3, dtype=torch.float64)
    for name in RATES:
        assert_close(parts.get_parameter(name).detach(), whole.get_parameter(name).detach(), "dense")


def test_frozen_weights_and_weights_outside_the_optimizer_are_left_out() -> None:
    frozen = net(dtype=torch.float32)
    frozen[2].weight.requires_grad_(False)  # type: ignore[index]
    _, method, records = run("metaquant", 2, frozen)
    assert records[-1].layer_names == tuple(key.rpartition(".")[0] for key in method.state_dict()["history"]) == ("4",)
    outside, method = net(dtype=torch.float32), build_method("metaquant")
    optimizer = torch.optim.SGD([outside[2].weight], lr=0.1)  # type: ignore[index]
    assert method.step(outside, batch(0, torch.float32), LOSS, optimizer).layer_names == ("2",)


class Spare(nn.Module):
    """A model with a layer that is not always used."""

    def __init__(self) -> None:
        super().__init__()
        self.main = net(dtype=torch.float32)
        self.side = lowbit.convert(nn.Linear(3, 3), estimator="identity", keep_float=())
        self.used = ["main", "side"]

    def forward(self, x: Tensor) -> Tensor:
        for name in self.used:
            x = self.get_submodule(name)(x)
        return x


def test_a_layer_that_the_loss_does_not_reach_forgets() -> None:
    model, method = Spare(), build_method("metaquant(net=lstmfc)")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    names = []
    for step, used in enumerate((["main", "side"], ["main"], ["main", "side"])):
        model.used = used
        names.append(method.step(model, batch(step, torch.float32), LOSS, optimizer).layer_names)
    assert names == [("main.2", "main.4", "side"), ("main.2", "main.4"), ("main.2", "main.4", "side")]
    history = method.state_dict()["history"]
    assert history["side.weight"]["memory"] is None
    assert history["main.2.weight"]["memory"].shape == (2, 42, 100)


def test_no_gradient_is_no_trouble() -> None:
    model, method = net(dtype=torch.float32), build_method("metaquant")
    with torch.no_grad():
        model[5].weight.zero_()  # type: ignore[index]  # nothing flows back beyond it
        model[2].weight.zero_()  # type: ignore[index]
    record = method.step(model, batch(0, torch.float32), LOSS, optimizer_for(model))
    assert all(values.isfinite().all() for values in record.layer_metrics.values())
    assert all(p.isfinite().all() for p in model.parameters())


def test_the_clipped_estimator_will_do_and_no_other() -> None:
    run("metaquant", 1, net(dtype=torch.float32, estimator="clipped"))
    for estimator in ("dorefa", "md-tanh", "lne"):
        with pytest.raises(ConfigError, match=f"take the estimator 'identity' or 'clipped', not '{estimator}'"):
            run("metaquant", 1, net(dtype=torch.float32, estimator=estimator))


def test_there_must_be_latent_weights_that_move_and_are_reached() -> None:
    with pytest.raises(ConfigError, match="'metaquant' needs latent weights that move: convert the model"):
        run("metaquant", 1, float_net(dtype=torch.float32))
    model = Spare()
    model.main, model.used = float_net(dtype=torch.float32), ["main"]
    method, optimizer = build_method("metaquant"), torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="the loss depends on none of the model's latent weights"):
        method.step(model, batch(0, torch.float32), LOSS, optimizer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("net=lstm", "net='lstm' of method 'metaquant' must be one of fc, multifc, lstmfc"),
        ("nonlinearity=gelu", "nonlinearity='gelu' of method 'metaquant' must be one of none, relu, tanh"),
        ("preprocess=tanh", "preprocess='tanh' of method 'metaquant' must be one of dorefa, none"),
        ("hidden=0", "hidden=0 of method 'metaquant' must be a whole number, 1 or more"),
        ("depth=1.5", "depth=1.5 of method 'metaquant' must be a whole number"),
        ("meta_lr=-1.0", "meta_lr=-1.0 of method 'metaquant' must be a number that is not negative"),
        ("net=multifc, preprocess=none", "net=multifc of method 'metaquant' needs preprocess=dorefa"),
    ],
)
def test_options_are_checked(options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_method(f"metaquant({options})")


def test_the_state_of_another_model_or_network_is_refused() -> None:
    _, method, _ = run("metaquant", 1)
    state = method.state_dict()
    with pytest.raises(CheckpointError, match="give net, hidden and depth as they were"):
        build_method("metaquant(net=fc, hidden=7)").load_state_dict(state)
    state["history"]["2.weight"]["weight"] = torch.zeros(3)
    again = build_method("metaquant")
    again.load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"layer '2.weight' with 3 weights, the model has 42 there"):
        run(again, 1)
