"""The Ricci-flow method's fast mode, and how it gets on with everything around it."""

from __future__ import annotations

import copy
import re
import warnings

import pytest
import torch
from torch import Tensor, nn

import lowbit
from lowbit._errors import ConfigError
from lowbit.geometry import largest_tau
from lowbit.methods import AbstractMethod, StepRecord, build_method
from straddling import noise
from tolerances import assert_close

LOSS = nn.CrossEntropyLoss()
F64 = torch.float64
NAMES = ("2", "5")


def net(norm: bool = False, dtype: torch.dtype = F64) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.BatchNorm2d(4) if norm else nn.Identity(),
        nn.Flatten(),
        nn.Linear(64, 6),
        nn.Linear(6, 3),
    )
    return lowbit.convert(model.to(dtype), weights=1, estimator="identity")


def batches(count: int, size: int = 8, dtype: torch.dtype = F64) -> list[tuple[Tensor, Tensor]]:
    labels = torch.randint(3, (count, size), generator=torch.Generator().manual_seed(5))
    return [(noise(size, 1, 8, 8, seed=k, dtype=dtype), labels[k]) for k in range(count)]


def run(
    method: AbstractMethod, model: nn.Module, data: list[tuple[Tensor, Tensor]], lr: float = 0.1
) -> list[StepRecord]:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return [method.step(model, batch, LOSS, optimizer) for batch in data]


def same(left: nn.Module, right: nn.Module, operation: str) -> None:
    for (name, a), b in zip(left.named_parameters(), right.parameters(), strict=True):
        assert_close(a.detach(), b.detach(), operation), name


def test_fast_with_everything_is_faithful() -> None:
    """Without batch normalisation, the whole batch at every step is Algorithm 2 however it is computed."""
    faithful, fast = net(), net()
    a = run(build_method("ricci(mode=faithful, alpha=0.3)"), faithful, batches(4))
    b = run(build_method("ricci(shift_fraction=1, interval=1, alpha=0.3)"), fast, batches(4))
    assert a[-1].metrics["ricci_n"] > 0
    for left, right in zip(a, b, strict=True):
        assert left.metrics.keys() == right.metrics.keys()
        for key, value in left.metrics.items():
            assert_close(right.metrics[key], value, "dense")
    same(fast, faithful, "dense")


def test_between_evaluations_n_and_its_gradient_are_kept() -> None:
    """Interval 2 against a loop that evaluates N by itself at even steps, from the first half of the batch."""
    model, data = net(), batches(6)
    method = build_method("ricci(interval=2, shift_fraction=0.5, alpha=0.3, epsilon=1e9, together=False)")
    probe = build_method("ricci(mode=faithful, alpha=1, epsilon=0)")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    slopes: dict[str, Tensor] = {}
    seen = []
    for step, (images, labels) in enumerate(data):
        if step % 2 == 0:  # with the gate shut and α = 1 the gradient that is left is ∂N/∂w
            twin = copy.deepcopy(model)
            record = probe.step(twin, (images[:4], labels[:4]), LOSS, torch.optim.SGD(twin.parameters(), lr=0.1))
            if step:
                slopes = {name: twin.get_parameter(f"{name}.weight").grad.clone() for name in NAMES}
                n = record.metrics["ricci_n"]
        start = copy.deepcopy(model)
        found = method.step(model, (images, labels), LOSS, optimizer).metrics["ricci_n"]
        seen.append(float(found))
        if step < 2:
            assert found == 0
            continue
        assert_close(found, n, "dense")
        start.zero_grad()
        LOSS(start(images), labels).backward()
        for name in NAMES:
            before, after = start.get_parameter(f"{name}.weight"), model.get_parameter(f"{name}.weight")
            natural = ((before - after) / 0.1 - 0.3 * slopes[name]).detach().reshape(-1)
            flat = before.detach().reshape(-1)
            u = torch.tanh(largest_tau(flat, 0.9) * flat)
            plain = natural - u * (u @ natural)  # g times it
            assert_close(plain.reshape(before.shape), before.grad, "dense")
    assert seen[0] == seen[1] == 0
    assert len(set(seen)) == 3


def test_resuming_between_two_evaluations_is_exact() -> None:
    whole, data = net(), batches(7)
    expected = run(build_method("ricci(interval=3, alpha=0.3)"), whole, data)
    first, method = net(), build_method("ricci(interval=3, alpha=0.3)")
    run(method, first, data[:4])
    second = build_method("ricci(interval=3, alpha=0.3)")
    second.load_state_dict(copy.deepcopy(method.state_dict()))
    found = run(second, first, data[4:])
    assert [r.metrics["ricci_n"] for r in found] == [r.metrics["ricci_n"] for r in expected[4:]]
    for a, b in zip(first.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("mode", ["fast, interval=2, alpha=0.3", "faithful, alpha=0.3", "gradient"])
def test_gradient_accumulation_adds_up(mode: str) -> None:
    """Without batch normalisation a batch in parts is the batch."""
    whole, parts = net(), net()
    a = run(build_method(f"ricci(mode={mode})"), whole, batches(5))
    b = run(build_method(f"ricci(mode={mode})", micro_batches=3), parts, batches(5))
    for left, right in zip(a, b, strict=True):
        assert_close(right.loss, left.loss, "dense")
        assert right.correct == left.correct
        assert_close(right.metrics["ricci_n"], left.metrics["ricci_n"], "dense")
    same(parts, whole, "dense")


@pytest.mark.parametrize("mode", ["fast, interval=2", "faithful"])
def test_it_works_under_bf16_autocast(mode: str) -> None:
    model = net(norm=True, dtype=torch.float32)
    method, optimizer = build_method(f"ricci(mode={mode}, alpha=0.3)"), torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in batches(6, dtype=torch.float32):
        with torch.autocast("cpu", torch.bfloat16):
            record = method.step(model, batch, lambda outputs, labels: LOSS(outputs.float(), labels), optimizer)
    assert record.metrics["ricci_n"] > 0
    assert all(value.isfinite() and value.dtype == torch.float32 for value in record.metrics.values())
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("mode", ["fast, interval=2", "faithful"])
def test_a_compiled_model_steps_like_an_eager_one(mode: str) -> None:
    eager, model = net(norm=True), net(norm=True)
    a = run(build_method(f"ricci(mode={mode}, alpha=0.3)"), eager, batches(3))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "<class 'torch.*should not be instantiated", DeprecationWarning)
        compiled = torch.compile(model, backend="aot_eager")
        b = run(build_method(f"ricci(mode={mode}, alpha=0.3)"), compiled, batches(3))
    assert b[-1].layer_names == NAMES
    for left, right in zip(a, b, strict=True):
        assert_close(right.metrics["ricci_n"], left.metrics["ricci_n"], "dense")
    same(model, eager, "dense")


def test_the_state_does_not_depend_on_wrappers() -> None:
    model = net()
    wrapped = nn.Sequential()
    wrapped.add_module("module", model)  # as DDP names it
    first, second = build_method("ricci"), build_method("ricci")
    run(first, wrapped, batches(1))
    run(second, model, batches(1))
    assert set(first.state_dict()["memory"]) == set(second.state_dict()["memory"]) == {"2.weight", "5.weight"}


def parallel(rank: int, port: int, mode: str, results: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(net())
    method = build_method(f"ricci(mode={mode}, alpha=0.3, shift_fraction=1, interval=2)" if mode == "fast" else SPEC)
    data = [(images[rank::2], labels[rank::2]) for images, labels in batches(5)]
    records = run(method, model, data)
    if rank == 0:
        torch.save([model.module.state_dict(), records[-1].metrics["ricci_n"]], results)
    torch.distributed.destroy_process_group()


SPEC = "ricci(mode=faithful, alpha=0.3)"


@pytest.mark.parametrize("mode", ["fast", "faithful"])
def test_two_processes_do_what_one_does(mode: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = str(tmp_path / "state.pt")
    torch.multiprocessing.start_processes(parallel, (port, mode, results), nprocs=2, start_method="fork")
    state, n = torch.load(results, weights_only=True)
    model = net()
    spec = f"ricci(mode={mode}, alpha=0.3, shift_fraction=1, interval=2)" if mode == "fast" else SPEC
    records = run(build_method(spec), model, batches(5))
    assert_close(n, records[-1].metrics["ricci_n"], "dense")
    for key, value in model.state_dict().items():
        assert_close(state[key], value, "dense")


def test_a_given_tau_that_breaks_positive_definiteness() -> None:
    model = net()
    message = (
        r"layer '2': at τ = 50 the metric is not positive definite.*the largest admissible τ is \d.* over all layers"
    )
    with pytest.raises(ConfigError, match=message):
        run(build_method("ricci(tau=50)"), model, batches(1))
    with pytest.raises(ConfigError) as refused:
        build_method("ricci(tau=50)").check(model, torch.optim.SGD(model.parameters(), lr=0.1))
    largest = re.search(r"and (\S+) over all layers", str(refused.value))
    assert largest is not None
    build_method(f"ricci(tau={largest[1]})").check(model, torch.optim.SGD(model.parameters(), lr=0.1))
    records = run(build_method("ricci(tau=0.1)"), net(), batches(2))
    assert (records[0].layer_metrics["norm_squared"] < 0.9).all()


def test_weights_that_outgrow_a_given_tau_lower_it() -> None:
    model = net()
    method = build_method("ricci(tau=0.3)")
    run(method, model, batches(1))
    with torch.no_grad():
        model[5].weight.mul_(100)
    record = run(method, model, batches(2)[1:])[0]
    assert record.layer_metrics["norm_squared"].max() <= 0.9 + 1e-12
    assert record.metrics["correction"].isfinite()


@pytest.mark.parametrize("block", ["layer", "channel", 4])
def test_virtual_metrics_stay_positive_definite_however_far_they_go(block: str | int) -> None:
    """With ‖u‖² ≤ ρ in all five metrics of Eq. 35, ‖ρ-bounded differences‖ bound N by (2ρ·(1 + ½ + ½))²."""
    method, model = build_method(f"ricci(mode=faithful, block={block}, alpha=0, epsilon=1e9)"), net()
    records = run(method, model, batches(4), lr=100.0)
    for memory in method.state_dict()["memory"].values():
        assert memory["u"].square().sum(-1).max() <= 0.9 + 1e-12
    assert 1e-3 < records[-1].metrics["ricci_n"] <= 16 * 0.9**2


@pytest.mark.parametrize("mode", ["fast", "faithful"])
def test_learned_scales_take_their_first_value_from_the_ordinary_pass(mode: str) -> None:
    data = batches(1, dtype=torch.float32)
    images, labels = data[0]
    loud = [(images * torch.arange(1, 9)[:, None, None, None], labels)]  # each example of another size
    models = []
    for spec in ("plain", f"ricci(mode={mode})"):
        torch.manual_seed(0)
        inner = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3))
        models.append(lowbit.convert(inner, weights=2, activations=2, activation_quantizer="unsigned"))
        run(build_method(spec), models[-1], loud, lr=0.0)
    for (name, a), b in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_sequences_shift_along_a_stated_axis() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3)]
    model = lowbit.convert(nn.Sequential(*layers).double(), weights=1)
    data = [(noise(8, 2, 8, seed=k, dtype=F64), batches(3)[k][1]) for k in range(3)]
    records = run(build_method("ricci(axes=-1, interval=1)"), model, data)
    assert records[-1].metrics["ricci_n"] > 0
    assert records[-1].layer_names == ("2",)
    assert method_memory(run_and_keep("ricci(axes=-1, interval=1)", model, data)).shape == (2, 1, 48)


def run_and_keep(spec: str, model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> AbstractMethod:
    method = build_method(spec)
    run(method, model, data)
    return method


def method_memory(method: AbstractMethod) -> Tensor:
    (memory,) = method.state_dict()["memory"].values()
    return memory["u"]
