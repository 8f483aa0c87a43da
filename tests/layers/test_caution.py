"""`convert` warns of what the checker calls unsafe."""

from __future__ import annotations

import logging

import pytest
from torch import nn

import lowbit
from lowbit.layers import cautions
from lowbit.theory.verdicts import verdict_table


def net() -> nn.Sequential:
    layers = [module for _ in range(4) for module in (nn.Linear(4, 4), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(4, 2))


def convert(caplog: pytest.LogCaptureFixture, **options: str) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="lowbit"):
        lowbit.convert(net(), weights=1, activations=2, **options)  # type: ignore[arg-type]
    return [record.getMessage() for record in caplog.records]


def test_once_for_all_layers_in_the_checkers_words(caplog: pytest.LogCaptureFixture) -> None:
    (message,) = convert(caplog, activation_quantizer="staircase", activation_estimator="identity")
    assert message.startswith(
        "activation estimator 'identity' with quantizer 'staircase' of 2 bits is unsafe (1, 3 and 2 more): "
    )
    for text in verdict_table()["identity|staircase|2"]["objections"]:
        assert text in message
    assert "lowbit check identity --quantizer 'staircase(bits=2)'" in message
    assert "out of a ReLU" not in message


def test_behind_a_relu_it_says_what_becomes_of_the_pair(caplog: pytest.LogCaptureFixture) -> None:
    (message,) = convert(caplog, activation_estimator="identity")
    assert "with quantizer 'unsigned' of 2 bits is unsafe (2, 4 and 1 more)" in message
    assert "Where these inputs come out of a ReLU" in message


def test_nothing_is_said_of_the_others(caplog: pytest.LogCaptureFixture) -> None:
    assert convert(caplog) == []
    assert convert(caplog, estimator="identity") == []  # on weights
    for name in ("relu", "clipped", "log-tailed", "reverse-exponential"):
        assert convert(caplog, activation_quantizer="staircase", activation_estimator=name) == []


def test_the_advice_names_the_options(caplog: pytest.LogCaptureFixture) -> None:
    (message,) = convert(caplog, activation_quantizer="staircase", activation_estimator="ewgs(delta=1.0)")
    assert "`lowbit check 'ewgs(delta=1.0)' --quantizer 'staircase(bits=2)'`" in message


def test_each_pair_has_a_message_of_its_own() -> None:
    plan = lowbit.plan(
        net(),
        weights=32,
        activations=2,
        activation_quantizer="staircase",
        activation_estimator="identity",
        overrides={"1": {"activations": 4}, "3": {"activation_estimator": "clipped"}},
    )
    first, second = cautions(plan)
    assert "of 4 bits is unsafe (1)" in first
    assert "of 2 bits is unsafe (5, 7)" in second
