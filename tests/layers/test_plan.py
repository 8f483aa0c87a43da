"""Which layers are converted, how, and why; and what is said about arguments that do not fit."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import lowbit
from lowbit._errors import ConfigError, LowbitError, UnknownNameError
from lowbit.estimators import build_estimator
from lowbit.layers import ConversionPlan
from lowbit.quantizers import build_quantizer


def net() -> nn.Module:
    blocks = nn.ModuleDict({"one": nn.Conv2d(4, 4, 3), "two": nn.Conv2d(4, 4, 3)})
    return nn.ModuleDict({"stem": nn.Conv2d(2, 4, 3), "blocks": blocks, "mid": nn.Linear(4, 4), "fc": nn.Linear(4, 2)})


def actions(decided: ConversionPlan) -> dict[str, str]:
    return {row.name: row.reason if row.options is None else f"W{_short(row)}" for row in decided.layers}


def _short(row: Any) -> str:
    return f"{row.options.weights}A{row.options.activations} {row.reason}"


def test_first_and_last_stay_float_by_default() -> None:
    assert actions(lowbit.plan(net(), weights=1, activations=2)) == {
        "stem": "keep_float: first",
        "blocks.one": "W1A2 default",
        "blocks.two": "W1A2 default",
        "mid": "W1A2 default",
        "fc": "keep_float: last",
    }


def test_first_and_last_mean_layers_that_could_be_converted() -> None:
    model = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.LSTM(4, 4))
    assert [row.action for row in lowbit.plan(model).layers] == ["keep", "keep", "convert", "keep", "keep"]
    assert lowbit.plan(model).layers[0].reason == "Embedding is not among the kinds that convert"


def test_the_only_layer_is_first_and_last() -> None:
    decided = lowbit.plan(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))
    assert actions(decided) == {"1": "keep_float: first"}
    assert decided.describe() == "0 layers converted; kept in float: 1 (keep_float: first)"


def test_a_model_without_layers() -> None:
    decided = lowbit.plan(nn.Sequential(nn.ReLU()))
    assert decided.layers == ()
    assert decided.describe() == "0 layers converted; kept in float: none"
    assert type(decided.apply()[0]) is nn.ReLU


def test_keep_float_takes_names_and_patterns() -> None:
    decided = lowbit.plan(net(), keep_float=("blocks.*", "mid"))
    assert actions(decided) == {
        "stem": "W1A32 default",
        "blocks.one": "keep_float: blocks.*",
        "blocks.two": "keep_float: blocks.*",
        "mid": "keep_float: mid",
        "fc": "W1A32 default",
    }
    assert [row.name for row in decided.converted] == ["stem", "fc"]


def test_a_later_override_wins_and_adds_to_an_earlier_one() -> None:
    overrides = {"blocks.*": {"weights": 4, "activations": 8}, "*.two": {"weights": 2}}
    decided = lowbit.plan(net(), overrides=overrides)
    assert actions(decided)["blocks.one"] == "W4A8 override"
    assert actions(decided)["blocks.two"] == "W2A8 override"
    assert actions(decided)["mid"] == "W1A32 default"
    reversed_order = lowbit.plan(net(), overrides=dict(reversed(overrides.items())))
    assert actions(reversed_order)["blocks.two"] == "W4A8 override"


def test_an_override_wins_over_keep_float() -> None:
    decided = lowbit.plan(net(), overrides={"stem": {"weights": 8}, "mid": "float"})
    assert actions(decided)["stem"] == "W8A32 override"
    assert actions(decided)["mid"] == "override: float"


def test_an_override_may_bring_bits_back_after_float() -> None:
    decided = lowbit.plan(net(), overrides={"blocks.*": "float", "blocks.two": {"weights": 3}})
    assert actions(decided)["blocks.one"] == "override: float"
    assert actions(decided)["blocks.two"] == "W3A32 override"


def test_every_option_can_be_overridden() -> None:
    wanted = {
        "weights": 2,
        "activations": 4,
        "estimator": "ewgs",
        "quantizer": "ternary",
        "activation_quantizer": "lsq",
        "activation_estimator": "identity",
    }
    layer = lowbit.convert(net(), overrides={"mid": wanted})["mid"]
    weight, inputs = layer.weight_quantizer, layer.input_quantizer
    assert type(weight.quantizer).__name__ == "Ternary"
    assert type(inputs.quantizer).__name__ == "LSQ"
    assert inputs.quantizer.bits == 4
    assert weight.estimator == build_estimator("ewgs")
    assert inputs.estimator == build_estimator("identity")


def test_bits_choose_the_quantizers_unless_told() -> None:
    chosen = {}
    for bits in (1, 2, 8):
        layer = lowbit.convert(net(), weights=bits, activations=bits)["mid"]
        chosen[bits] = [type(q.quantizer).__name__ for q in (layer.weight_quantizer, layer.input_quantizer)]
    assert chosen == {1: ["Sign", "Unsigned"], 2: ["LSQ", "Unsigned"], 8: ["LSQ", "Unsigned"]}


def test_an_estimator_may_be_an_object() -> None:
    rule = build_estimator("ewgs(delta=0.3)")
    layer = lowbit.convert(net(), weights=2, estimator=rule)["mid"]
    assert layer.weight_quantizer.estimator is rule


def test_the_activation_estimator_does_not_follow_the_weights() -> None:
    layer = lowbit.convert(net(), activations=2, estimator="reste")["mid"]
    assert layer.input_quantizer.estimator == build_estimator("clipped")


def test_planning_draws_no_random_numbers_and_touches_nothing() -> None:
    model = net()
    before = torch.get_rng_state()
    types = [type(m) for m in model.modules()]
    lowbit.plan(model, weights=2, activations=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert [type(m) for m in model.modules()] == types


def test_the_table_has_a_row_for_every_layer() -> None:
    decided = lowbit.plan(net(), weights=1, activations=2, overrides={"mid": {"weights": 32}})
    console = Console(file=io.StringIO(), width=120)
    console.print(decided.render())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    rows = {line.split()[1]: line.split() for line in text.splitlines() if line.startswith("│")}
    assert set(rows) == {"stem", "blocks.one", "blocks.two", "mid", "fc"}
    assert [cell for cell in rows["blocks.one"] if cell != "│"] == [
        "blocks.one",
        "Conv2d",
        "1",
        "bit",
        "2",
        "bit",
        "default",
    ]
    assert [cell for cell in rows["mid"] if cell != "│"] == ["mid", "Linear", "float", "2", "bit", "override"]
    assert rows["fc"].count("float") == 2


def test_the_plan_as_text() -> None:
    text = lowbit.plan(net()).describe()
    assert text == "3 layers converted; kept in float: stem (keep_float: first), fc (keep_float: last)"


@pytest.mark.parametrize("bits", [0, 9, -1, 16, 2.5, 2.0, 32.0, True, "2", None])
@pytest.mark.parametrize("key", ["weights", "activations"])
@pytest.mark.parametrize("where", ["argument", "override"])
def test_bits_that_do_not_exist(bits: object, key: str, where: str) -> None:
    arguments: dict[str, Any] = {key: bits} if where == "argument" else {"overrides": {"mid": {key: bits}}}
    with pytest.raises(ConfigError, match=f"{key}={bits!r}: expected a number of bits from 1 to 8, or 32 for float"):
        lowbit.plan(net(), **arguments)


def test_arguments_are_checked_even_where_no_layer_uses_them() -> None:
    only = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="weights=9"):
        lowbit.plan(only, weights=9)
    with pytest.raises(UnknownNameError, match="did you mean 'clipped'"):
        lowbit.plan(only, estimator="cliped")
    with pytest.raises(UnknownNameError, match="did you mean 'ternary'"):
        lowbit.plan(only, quantizer="ternery")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"overrides": {"blocks.thre": "float"}}, UnknownNameError, "overrides: no layer .* is called 'blocks.thre'"),
        ({"overrides": {"mod": "float"}}, UnknownNameError, "did you mean 'mid'\\? the layers are: stem, blocks.one"),
        ({"keep_float": ("blocks.on",)}, UnknownNameError, "keep_float: .* did you mean 'blocks.one'"),
        (
            {"overrides": {"mid": {"weight": 2}}},
            UnknownNameError,
            "'mid' has no option 'weight': did you mean 'weights'",
        ),
        ({"overrides": {"mid": "flot"}}, ConfigError, "override 'mid': expected options or 'float', 'flot' was given"),
        ({"overrides": {"mid": 4}}, ConfigError, "override 'mid': expected options such as .*, 4 was given"),
        ({"overrides": ["mid"]}, ConfigError, "overrides takes a mapping"),
        ({"keep_float": "first"}, ConfigError, r"keep_float takes a list of names; write \('first',\)"),
        ({"keep_float": None}, ConfigError, "keep_float takes a list of names, \\(\\) for none; None was given"),
        ({"keep_float": (1,)}, ConfigError, "keep_float takes a list of names"),
        (
            {"quantizer": "sign", "weights": 2},
            ConfigError,
            "layer 'blocks.one': .*'sign' takes 1 bits, 2 were asked for",
        ),
        ({"quantizer": "lsq"}, ConfigError, "'lsq' takes 2 to 8 bits, 1 were asked for"),
        ({"quantizer": "lqs", "weights": 2}, UnknownNameError, "unknown quantizer 'lqs': did you mean 'lsq'"),
        ({"quantizer": "lsq(granularty=channel)", "weights": 2}, UnknownNameError, "did you mean 'granularity'"),
        (
            {"estimator": "reste", "weights": 2},
            ConfigError,
            "layer 'blocks.one': estimator 'reste' .* sign quantizer only",
        ),
        ({"activations": 2, "activation_estimator": "lne"}, ConfigError, "'lne' does not act on activations"),
        ({"estimator": 3}, ConfigError, "estimator=3: expected the name of an estimator"),
        ({"quantizer": build_quantizer("sign", 1)}, ConfigError, "expected the name of a quantizer"),
        (
            {"activations": 2, "activation_quantizer": "unsigned(granularity=channel)"},
            ConfigError,
            "layer 'blocks.one': a learned per-channel scale needs the tensor's shape",
        ),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, Any], error: type[LowbitError], message: str) -> None:
    with pytest.raises(error, match=f"(?s){message}"):
        lowbit.plan(net(), **arguments)


def test_only_layers_that_convert_can_be_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2), nn.Linear(2, 2))
    with pytest.raises(UnknownNameError, match=r"no layer that can be converted is called '1': .*the layers are: 0, 2"):
        lowbit.plan(model, overrides={"1": {"weights": 2}})


def test_printing_the_plan_shows_every_layer_and_why() -> None:
    text = str(lowbit.plan(net(), weights=2, activations=3))
    assert text.count("keep_float") == 2
    assert "2 bit" in text
    assert "3 bit" in text


@pytest.mark.parametrize("quantizer", ["uniform", "ternary", "unsigned(scale=max-abs)", "lsq(scale=max-abs)"])
def test_activations_take_no_scale_that_depends_on_the_batch(quantizer: str) -> None:
    with pytest.raises(ConfigError, match="would depend on the others of its batch"):
        lowbit.plan(net(), weights=32, activations=2, activation_quantizer=quantizer)


def test_weights_take_no_unsigned_quantizer() -> None:
    with pytest.raises(ConfigError, match="every negative weight 0"):
        lowbit.plan(net(), weights=2, quantizer="unsigned")


def test_the_number_of_bits_is_given_once() -> None:
    with pytest.raises(ConfigError, match=r"names 4 bits, but 2 were asked for"):
        lowbit.plan(net(), weights=2, quantizer="lsq(bits=4)")


def test_a_conversion_that_converts_nothing_says_so(caplog: pytest.LogCaptureFixture) -> None:
    lowbit.convert(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), weights=1)
    assert "nothing was made low-bit: 0 layers converted; kept in float: 0 (keep_float: first)" in caplog.text
