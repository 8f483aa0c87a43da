"""What holds for every registered method. A new method is tested here without a line being added."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowbit
from lowbit._errors import ConfigError, LowbitError, UnknownNameError
from lowbit.methods import METHODS, AbstractMethod, StepRecord, build_method

every_method = pytest.mark.parametrize("name", METHODS.names())
LOSS = nn.CrossEntropyLoss()


def net(seed: int = 0) -> nn.Module:
    """Two latent weights, batch normalisation, float layers at both ends, a learned activation scale."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    )
    return lowbit.convert(model, weights=1, activations=4, estimator="identity")


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [
        (torch.randn(6, 1, 6, 6, generator=generator), torch.randint(0, 3, (6,), generator=generator))
        for _ in range(count)
    ]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)


def run(
    method: AbstractMethod, model: nn.Module, data: list[tuple[Tensor, Tensor]], **optimizer: Any
) -> list[StepRecord]:
    chosen = torch.optim.SGD(model.parameters(), lr=0.05, **optimizer)
    return [method.step(model, batch, LOSS, chosen) for batch in data]


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@every_method
def test_it_is_documented(name: str) -> None:
    cls = METHODS.get(name)
    first = (cls.__doc__ or "").splitlines()[0]
    assert first.endswith((".", ";", ","))
    assert len(first) > 20
    assert "Args:" in (cls.__doc__ or "")


@every_method
def test_it_works_in_a_plain_loop_of_five_lines(name: str) -> None:
    model, loader = net(), batches(8)[:1] * 8
    method, optimizer = build_method(name), torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for batch in loader:
        losses.append(method.step(model, batch, LOSS, optimizer).loss)
    assert min(losses[1:]) < losses[0]  # it learns the batch by heart


@every_method
def test_a_step_moves_every_kind_of_weight(name: str) -> None:
    model = net()
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    run(build_method(name), model, batches(2))
    latent = {key for key, _ in lowbit.latent_parameters(model)}
    scales = {key for key, _ in lowbit.scale_parameters(model)}
    assert latent
    assert scales
    for key, parameter in model.named_parameters():
        if not key.endswith(("0.bias", "3.bias")):  # batch normalisation makes these two idle
            assert not torch.equal(parameter, before[key]), key
        assert parameter.isfinite().all(), key


@every_method
def test_the_record(name: str) -> None:
    model = net()
    lowbit.calibrate(model, batches(1)[0][0])
    images, labels = batches(1)[0]
    outputs = copy.deepcopy(model)(images).detach()
    (record,) = run(build_method(name), model, [(images, labels)])
    assert torch.equal(record.loss, LOSS(outputs, labels))  # of the batch itself, before the weights move
    assert record.correct.dtype == torch.int64
    assert record.correct == sum(int(row.argmax()) == int(label) for row, label in zip(outputs, labels, strict=True))
    for value in (record.loss, record.correct, *record.metrics.values()):
        assert value.shape == ()
        assert not value.requires_grad
        assert value.isfinite()


@every_method
def test_the_batch_is_not_written_to_and_the_mode_stays(name: str) -> None:
    model = net()
    images, labels = batches(1)[0]
    run(build_method(name), model, [(images, labels)])
    assert torch.equal(images, batches(1)[0][0])
    assert torch.equal(labels, batches(1)[0][1])
    assert all(module.training for module in model.modules())


@every_method
def test_batch_statistics_move_once_per_step(name: str) -> None:
    model = net()
    images, labels = batches(1)[0]
    lowbit.calibrate(model, images)
    twin = copy.deepcopy(model)
    twin(images)
    run(build_method(name), model, [(images, labels)])
    statistics = [key for key, _ in model.named_buffers() if "running" in key or "tracked" in key]
    assert len(statistics) == 6
    for key in statistics:
        assert torch.equal(model.get_buffer(key), twin.get_buffer(key)), key


@every_method
@pytest.mark.parametrize("stop", [1, 2])
def test_it_resumes_exactly(name: str, stop: int) -> None:
    data = batches(4)
    whole, method = net(), build_method(name)
    optimizer = sgd(whole)
    records = [method.step(whole, batch, LOSS, optimizer) for batch in data]

    first, method = net(), build_method(name)
    optimizer = sgd(first)
    for batch in data[:stop]:
        method.step(first, batch, LOSS, optimizer)
    saved = through_a_file([first.state_dict(), optimizer.state_dict(), method.state_dict()])

    second, method = net(seed=1), build_method(name)
    optimizer = sgd(second)
    for member, state in zip((second, optimizer, method), saved, strict=True):
        member.load_state_dict(state)
    for batch, expected in zip(data[stop:], records[stop:], strict=True):
        record = method.step(second, batch, LOSS, optimizer)
        assert torch.equal(record.loss, expected.loss)
        assert record.metrics.keys() == expected.metrics.keys()
        assert all(torch.equal(value, expected.metrics[key]) for key, value in record.metrics.items())
    for key, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[key], value), key


@every_method
def test_the_state_is_a_snapshot(name: str) -> None:
    model, method = net(), build_method(name)
    run(method, model, batches(1))
    state = method.state_dict()
    before = copy.deepcopy(state)
    run(method, model, batches(2)[1:])
    assert_same(state, before)
    fresh = build_method(name)
    fresh.load_state_dict(state)
    assert_same(fresh.state_dict(), before)


def assert_same(left: Any, right: Any) -> None:
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key, value in left.items():
            assert_same(value, right[key])
    else:
        assert torch.equal(left, right) if isinstance(left, Tensor) else left == right


@every_method
def test_the_state_of_another_method_is_refused(name: str) -> None:
    with pytest.raises(LowbitError, match=r"written\s+by another method"):
        build_method(name).load_state_dict({"momentum of something else": torch.zeros(2)})


@every_method
def test_clip_norm_is_honoured(name: str) -> None:
    def norm_of_the_gradients(clip_norm: float | None) -> Tensor:
        model = net()
        run(build_method(name, clip_norm=clip_norm), model, batches(2))
        return torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()

    free = norm_of_the_gradients(None)
    assert free > 0.02
    torch.testing.assert_close(norm_of_the_gradients(0.01), torch.tensor(0.01), rtol=1e-3, atol=0)
    assert norm_of_the_gradients(1e6) == free


@every_method
def test_clipping_looks_at_the_weights_that_move_only(name: str) -> None:
    """Gradients of weights that no optimizer holds pile up from step to step, and must not shrink the others."""

    def moved(clip_norm: float | None) -> Tensor:
        model = net()
        optimizer = torch.optim.SGD([p for key, p in model.named_parameters() if not key.startswith("9.")], lr=0.01)
        method = build_method(name, clip_norm=clip_norm)
        with torch.no_grad():
            model[9].bias.grad = torch.full_like(model[9].bias, 1e9)
        method.step(model, batches(1)[0], LOSS, optimizer)
        return model[3].weight.detach()

    assert torch.equal(moved(1e6), moved(None))


@every_method
def test_the_backward_that_is_given_is_used(name: str) -> None:
    calls: list[float] = []

    def tripled(loss: Tensor, **options: Any) -> None:
        calls.append(float(loss.detach()))
        (3 * loss).backward(**options)

    plainly, scaled = net(), net()
    run(build_method(name), plainly, batches(1))
    run(build_method(name, backward=tripled), scaled, batches(1))
    assert calls
    for key in ("0.weight", "3.weight", "9.bias"):
        torch.testing.assert_close(scaled.get_parameter(key).grad, 3 * plainly.get_parameter(key).grad, msg=key)


@every_method
def test_it_works_with_any_optimizer(name: str) -> None:
    for family in (torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop):
        model, method = net(), build_method(name)
        optimizer = family(model.parameters(), lr=1e-3)
        before = model[3].weight.detach().clone()
        for batch in batches(2):
            assert method.step(model, batch, LOSS, optimizer).loss.isfinite()
        assert not torch.equal(model[3].weight, before)


@every_method
def test_an_unknown_option_is_answered_with_the_nearest(name: str) -> None:
    with pytest.raises(UnknownNameError, match=f"method '{name}' has no option 'alpah': .*it takes: "):
        build_method(f"{name}(alpah=3)")
    with pytest.raises(ConfigError, match=f"method '{name}': 'clip_norm' is no option"):
        build_method(f"{name}(clip_norm=3)")


def test_an_unknown_method() -> None:
    with pytest.raises(UnknownNameError, match="unknown method 'plian': did you mean 'plain'"):
        build_method("plian")
