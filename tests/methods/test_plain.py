"""The plain method is the loop that everyone writes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import lowbit
from lowbit.methods import build_method


@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_it_is_the_hand_written_loop(clip_norm: float | None) -> None:
    torch.manual_seed(0)
    float_model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    model = lowbit.convert(float_model, weights=1, activations=2)
    twin = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    data = [(torch.randn(5, 4, generator=generator), torch.randint(0, 3, (5,), generator=generator)) for _ in range(5)]
    loss_fn = nn.CrossEntropyLoss(label_smoothing=0.1)

    method = build_method("plain", clip_norm=clip_norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    records = [method.step(model, batch, loss_fn, optimizer) for batch in data]

    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    for (inputs, labels), record in zip(data, records, strict=True):
        optimizer.zero_grad()
        outputs = twin(inputs)
        loss = loss_fn(outputs, labels)
        loss.backward()
        if clip_norm is not None:
            assert nn.utils.clip_grad_norm_(twin.parameters(), clip_norm) > clip_norm
        optimizer.step()
        assert torch.equal(record.loss, loss)
        assert record.correct == (outputs.argmax(1) == labels).sum()
        assert record.metrics == {}
    for (name, left), right in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(left, right), name


def test_it_keeps_no_state() -> None:
    method = build_method("plain")
    assert method.state_dict() == {}
    method.load_state_dict({})


def test_outputs_that_are_no_classes_are_not_counted() -> None:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    record = build_method("plain").step(
        model, (torch.randn(5, 4), torch.randn(5, 3)), nn.functional.mse_loss, optimizer
    )
    assert record.correct is None
