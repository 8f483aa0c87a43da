"""Spec strings: one spelling for "this member, with these options"."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lowbit import _spec
from lowbit._errors import ConfigError, UnknownNameError
from lowbit.estimators import build_estimator
from lowbit.quantizers import PerGroup, build_quantizer


@pytest.mark.parametrize(
    ("spec", "name", "options"),
    [
        ("ewgs", "ewgs", {}),
        ("  ewgs ", "ewgs", {}),
        ("ewgs()", "ewgs", {}),
        ("ewgs (delta=0.01)", "ewgs", {"delta": 0.01}),
        ("a(x=1, y=-2.5, z=1e-3)", "a", {"x": 1, "y": -2.5, "z": 1e-3}),
        ("a(x=True, y=False, z=None)", "a", {"x": True, "y": False, "z": None}),
        ("a(x=(1, 2), y=[3], z={'k': 4})", "a", {"x": (1, 2), "y": [3], "z": {"k": 4}}),
        ("a(x=auto)", "a", {"x": "auto"}),
        ("sign(scale=mean-abs)", "sign", {"scale": "mean-abs"}),
        ("lsq( scale = max-abs , granularity = group:64 )", "lsq", {"scale": "max-abs", "granularity": "group:64"}),
        ("a(x=mypackage.nets:small, y=data/cifar10)", "a", {"x": "mypackage.nets:small", "y": "data/cifar10"}),
        ("a(x='b=c, d', y=\"e=f)\")", "a", {"x": "b=c, d", "y": "e=f)"}),
        ("a(x='', y='it is')", "a", {"x": "", "y": "it is"}),
        ("mypackage.nets:small(width=8)", "mypackage.nets:small", {"width": 8}),
        ("a(x=1,)", "a", {"x": 1}),
    ],
)
def test_good_forms(spec: str, name: str, options: dict[str, Any]) -> None:
    assert _spec.parse(spec) == (name, options)


@pytest.mark.parametrize(
    "spec",
    [
        "a(", "a(x=1", "a(x=1))", "a(1)", "a(x)", "a(x=1, 2)", "a(*x)", "a(**x)", "a(x=)", "a(=1)", "(x=1)", " (x=1)",
        "a(x=1)(y=2)", "a(x=1).b(y=2)", "a(x=1)[0]", "a(x=1) + 1", "a(x=1) b", "a(x=b c)", "a(x=\0)",
    ],
)  # fmt: skip
def test_bad_forms(spec: str) -> None:
    with pytest.raises(ConfigError, match="is not of the form name"):
        _spec.parse(spec)


@pytest.mark.parametrize("value", ["1 - 2", "-x", "(a, b)", "{[1]: 2}", "x[0]", "lambda: 0", "1 if 2 else 3"])
def test_values_that_are_not_plain(value: str) -> None:
    with pytest.raises(ConfigError, match=r"option 'x' of .* is not a plain value"):
        _spec.parse(f"a(x={value})")


def test_an_option_is_given_once() -> None:
    with pytest.raises(ConfigError, match=r"option 'x' of .* is given twice"):
        _spec.parse("a(x=1, x=2)")


plain = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.none(), st.text())


@given(st.dictionaries(st.text("xyz", min_size=1, max_size=3), plain, max_size=4))
@example({"x": "'\" =a,", "y": "\\' =b)"})
def test_whatever_python_writes_is_read_back(options: dict[str, Any]) -> None:
    written = ", ".join(f"{k}={v!r}" for k, v in options.items())
    assert _spec.parse(f"name({written})") == ("name", options)


def small(width: int, rate: float = 0.5, bias: bool = True, kind: str = "plain", shape: tuple[int, ...] = ()) -> Any:
    return width, rate, bias, kind, shape


def anything(**options: object) -> dict[str, object]:
    return options


def test_call_takes_the_users_options_and_as_much_context_as_fits() -> None:
    assert _spec.call("net", small, {"rate": 1}, {"width": 3, "unheard": 4}) == (3, 1, True, "plain", ())
    assert _spec.call("net", anything, {"a": 1}, {"b": 2}) == {"a": 1, "b": 2}  # an open-ended signature takes it all


def test_what_the_context_decides_is_not_for_the_user() -> None:
    with pytest.raises(ConfigError, match="net: 'rate' is no option, it follows from the rest of the configuration"):
        _spec.call("net", small, {"rate": 1}, {"width": 3, "rate": 2.0})


def test_a_spec_within_a_spec_stays_text() -> None:
    name, options = _spec.parse("fc*(weights=2, quantizer=lsq(granularity=group:4), estimator=ewgs(delta=0.5))")
    assert name == "fc*"
    assert options["weights"] == 2
    assert _spec.parse(options["quantizer"]) == ("lsq", {"granularity": "group:4"})
    assert _spec.parse(options["estimator"]) == ("ewgs", {"delta": 0.5})


def test_call_refuses_unknown_options() -> None:
    with pytest.raises(UnknownNameError, match=r"^net has no option 'widht': did you mean 'width'\? it takes: bias, "):
        _spec.call("net", small, {"widht": 3})


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("width", 2.5, "int"),
        ("width", "wide", "int"),
        ("width", True, "int"),
        ("rate", "fast", "float"),
        ("rate", True, "float"),
        ("bias", "false", r"bool \(True or False\)"),
        ("bias", 0, "bool"),
        ("kind", 3, "str"),
    ],
)
def test_call_refuses_the_wrong_type(option: str, value: object, wanted: str) -> None:
    with pytest.raises(ConfigError, match=f"^net: option '{option}' takes a {wanted}.* {value!r} was given"):
        _spec.call("net", small, {"width": 1, option: value})


def test_call_says_which_option_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"^net: missing a required argument: 'width'"):
        _spec.call("net", small, {})


def test_specs_reach_quantizers_and_estimators() -> None:
    quantizer = build_quantizer("sign(scale=mean-abs, granularity=group:4, detach=False)", 1)
    assert quantizer.granularity == PerGroup(4)
    assert (quantizer.scaling.policy, quantizer.scaling.detach) == ("mean-abs", False)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="option 'detach' takes a bool"):
        build_quantizer("sign(detach=false)", 1)
    with pytest.raises(ConfigError, match="option 'delta' takes a float; 'small' was given"):
        build_estimator("ewgs(delta=small)")
