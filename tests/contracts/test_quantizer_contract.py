"""What holds for every registered quantizer. A new one is tested here without a line being added."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowbit._errors import ConfigError, UnknownNameError
from lowbit.estimators import build_estimator
from lowbit.layers import FakeQuantize
from lowbit.quantizers import QUANTIZERS, AbstractQuantizer, PerGroup, build_quantizer
from lowbit.quantizers.scale import POLICIES
from straddling import ALL_QUANTIZERS, around, label, noise
from tolerances import assert_close

every_quantizer = pytest.mark.parametrize("original", ALL_QUANTIZERS, ids=label)
every_name = pytest.mark.parametrize("name", QUANTIZERS.names())
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)

LEARNED = [q for q in ALL_QUANTIZERS if q.scaling.policy == "learned"]  # type: ignore[attr-defined]
every_learned = pytest.mark.parametrize("original", LEARNED, ids=label)


def policy_of(quantizer: AbstractQuantizer) -> str:
    return quantizer.scaling.policy  # type: ignore[attr-defined, no-any-return]


def fresh(quantizer: AbstractQuantizer, dtype: torch.dtype = torch.float32) -> AbstractQuantizer:
    return copy.deepcopy(quantizer).to(dtype)


def fitting(quantizer: AbstractQuantizer, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """An input of a kind the quantizer is for."""
    x = noise(6, 3, 4, seed=seed, dtype=dtype)
    return x if quantizer.signed else x.relu()


def split(quantizer: AbstractQuantizer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Block view of x, its scale, its z."""
    blocks = quantizer.granularity.blocks(x)
    scale = quantizer.scale(blocks)
    return blocks, scale, quantizer.normalize(blocks, scale)


@every_name
def test_says_what_it_is(name: str) -> None:
    cls = QUANTIZERS.get(name)
    assert cls.__doc__
    assert cls.__doc__.strip().splitlines()[0].strip()
    assert "Source:" in cls.__doc__
    assert "Forward:" in cls.__doc__
    assert set(cls.policies) <= set(POLICIES)
    examples = cls.examples()
    assert {policy_of(q) for q in examples} == set(cls.policies)  # the suite sees every policy
    assert {q.grid.bits for q in examples} == set(cls.widths)  # and every width
    for bits in cls.widths:
        assert build_quantizer(name, bits).grid.bits == bits
        assert policy_of(build_quantizer(name, bits)) == cls.policies[0]


@every_quantizer
def test_codes_lie_on_the_grid_and_stand_for_the_values(original: AbstractQuantizer) -> None:
    quantizer = fresh(original)
    x = torch.cat([3 * fitting(quantizer, seed=s) for s in range(4)])
    values, codes = quantizer(x), quantizer.codes(x)
    assert (codes.dtype, codes.shape, values.shape) == (torch.int16, x.shape, x.shape)
    grid = quantizer.grid
    assert int(codes.min()) >= grid.low
    assert int(codes.max()) <= grid.high
    assert not ((codes - grid.low) % grid.step).any()
    blocks, scale, _ = split(quantizer, x)
    back = quantizer.dequantize(quantizer.granularity.blocks(codes.to(x.dtype)), scale)
    assert torch.equal(quantizer.granularity.restore(back, x), values)
    assert blocks.numel() == x.numel()


@every_quantizer
def test_the_grid_is_consistent(original: AbstractQuantizer) -> None:
    grid = original.grid
    assert (grid.high - grid.low) % grid.step == 0
    assert grid.count == len(range(grid.low, grid.high + 1, grid.step))
    assert 2 ** (grid.bits - 1) < grid.count <= 2**grid.bits
    quantizer = fresh(original)
    scale = torch.ones(())
    zero = quantizer.dequantize(torch.tensor(grid.zero), scale)  # a point that may lie between two codes
    assert torch.equal(zero, torch.zeros(()))
    assert original.signed == (quantizer.dequantize(torch.tensor(float(grid.low)), scale) < 0)


@every_quantizer
def test_quantizing_twice_changes_nothing(original: AbstractQuantizer) -> None:
    quantizer = fresh(original)
    for seed in range(5):
        once = quantizer(fitting(quantizer, seed))
        twice = quantizer(once)
        if quantizer.static or policy_of(quantizer) == "none":
            assert torch.equal(twice, once)
        else:  # the second scale is computed from the quantized values
            assert_close(twice, once, "requantized")
            assert torch.equal(quantizer.codes(twice), quantizer.codes(once))


@every_quantizer
@pytest.mark.parametrize("power", [-20, -1, 1, 30])
def test_a_power_of_two_in_the_input_leaves_the_codes(original: AbstractQuantizer, power: int) -> None:
    quantizer = fresh(original)
    x = fitting(quantizer)
    values, codes = quantizer(x), quantizer.codes(x)
    if policy_of(quantizer) in ("fitted", "learned"):
        with torch.no_grad():
            quantizer.scaling.value.mul_(2.0**power)  # type: ignore[attr-defined, union-attr]
    moved = quantizer.codes(x * 2.0**power)
    if getattr(quantizer, "transform", "none") == "tanh" or (
        not quantizer.signed and policy_of(quantizer) in ("none", "fixed")
    ):
        one_threshold = quantizer.rounding == "ceil" and quantizer.grid.count == 2  # at 0, whatever the scale
        assert (
            torch.equal(moved, codes) == one_threshold
        )  # tanh, the range [0, 1] and a fixed resolution have a scale of their own
        return
    assert torch.equal(moved, codes)
    factor = 1.0 if policy_of(quantizer) == "none" else 2.0**power
    assert torch.equal(quantizer(x * 2.0**power), values * factor)


@every_quantizer
def test_nothing_flows_through_the_bare_staircase(original: AbstractQuantizer) -> None:
    quantizer = fresh(original)
    x = fitting(quantizer).requires_grad_()
    y = quantizer(x)
    assert y.requires_grad == (policy_of(quantizer) == "learned")  # only a learned scale has a gradient
    if y.requires_grad:
        by_x, by_scale = torch.autograd.grad(
            y.square().sum(),
            [x, quantizer.scaling.value],  # type: ignore[attr-defined]
            allow_unused=True,
        )
        assert by_x is None
        assert by_scale.abs().min() > 0
    assert not quantizer.codes(x).requires_grad


@every_dtype
@every_quantizer
def test_dtype_and_device_are_kept(original: AbstractQuantizer, dtype: torch.dtype) -> None:
    quantizer = fresh(original, dtype)
    x = fitting(quantizer, dtype=dtype)
    y = quantizer(x)
    assert (y.dtype, y.shape, y.device) == (dtype, x.shape, x.device)
    assert (quantizer.codes(x) >= quantizer.grid.low).all()
    assert (quantizer.codes(x) <= quantizer.grid.high).all()
    if policy_of(quantizer) not in (
        "fitted",
        "learned",
    ):  # such a scale reads its first tensor: it cannot start on meta
        nowhere = quantizer(x.to("meta"))
        assert (nowhere.dtype, nowhere.shape, nowhere.device.type) == (dtype, x.shape, "meta")


@every_quantizer
def test_bfloat16_agrees_with_float32_within_one_step(original: AbstractQuantizer) -> None:
    x = fitting(original).bfloat16()
    coarse, fine = fresh(original, torch.bfloat16), fresh(original)
    apart = (coarse.codes(x) - fine.codes(x.float())).abs().max()
    # bf16 keeps 8 bits: z itself is off by up to 1 near the ends of an 8-bit grid.
    assert int(apart) <= (1 if original.grid.bits < 7 else 3) * original.grid.step
    assert_close(coarse(coarse(x)), coarse(x), "requantized")


@pytest.mark.parametrize("estimator", ["identity", "clipped"])
@every_quantizer
def test_zeros_are_finite_forwards_and_backwards(original: AbstractQuantizer, estimator: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        layer = FakeQuantize(fresh(original, dtype), build_estimator(estimator))
        x = torch.zeros(4, 8, dtype=dtype, requires_grad=True)
        y = layer(x)
        assert y.isfinite().all()
        y.sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
        for name, parameter in layer.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        if layer.quantizer.grid.zero == 0 and not layer.quantizer.grid.binary:
            assert not y.detach().any()


@every_quantizer
def test_non_finite_inputs_do_not_crash(original: AbstractQuantizer) -> None:
    for bad in (torch.nan, torch.inf, -torch.inf):
        quantizer = fresh(original)
        quantizer(fitting(quantizer))  # a learned scale is there before the damage
        x = fitting(quantizer)
        x[0, 0, 0] = bad
        assert quantizer(x).shape == x.shape
        assert quantizer.codes(x).shape == x.shape


@every_quantizer
def test_the_staircase_rises_and_saturates(original: AbstractQuantizer) -> None:
    grid = original.grid
    ends = torch.tensor([-torch.inf, torch.finfo(torch.float32).min, torch.finfo(torch.float32).max, torch.inf])
    assert original.discretize(ends).tolist() == [grid.low, grid.low, grid.high, grid.high]
    z = torch.linspace(grid.low - 1.0, grid.high + 1.0, 997)
    kept = z.clone()
    codes = original.discretize(z)
    assert (codes.diff() >= 0).all()
    assert torch.equal(z, kept)  # the input is not written to
    levels = torch.arange(grid.low, grid.high + 1, grid.step, dtype=torch.float32)
    assert torch.equal(codes.unique(), levels)
    assert torch.equal(original.discretize(levels.clone()), levels)


@every_quantizer
def test_ties(original: AbstractQuantizer) -> None:
    grid = original.grid
    zeros = torch.tensor([0.0, -0.0])
    if grid.binary:  # the tie of the sign is 0, and it goes up
        assert original.discretize(zeros).tolist() == [1.0, 1.0]
        return
    lower = torch.arange(grid.low, grid.high, grid.step, dtype=torch.float32)
    if original.rounding == "ceil":  # an integer keeps its code, what lies above it by more than rounding goes up
        assert torch.equal(original.discretize(lower.clone()), lower)
        assert torch.equal(original.discretize(lower * (1 + 2e-7)), lower)
        assert torch.equal(original.discretize(torch.where(lower > 0, lower * (1 + 1e-6), 1e-45)), lower + 1)
        return
    below, tie, above = around(lower + 0.5).split(lower.numel())
    assert torch.equal(original.discretize(below), lower)
    assert torch.equal(original.discretize(above), lower + 1)
    even = torch.where(lower % 2 == 0, lower, lower + 1)
    assert torch.equal(original.discretize(tie), even)


@every_name
def test_scale_policies_it_does_not_offer_are_refused(name: str) -> None:
    cls = QUANTIZERS.get(name)
    refused = [p for p in (*POLICIES, "nonsense") if p not in cls.policies]
    for policy in refused:
        with pytest.raises(ConfigError, match=re.escape(", ".join(cls.policies))) as caught:
            build_quantizer(f"{name}(scale={policy})", cls.widths[0])
        assert f"'{policy}'" in str(caught.value)


@every_name
def test_bits_it_does_not_offer_are_refused_naming_others(name: str) -> None:
    cls = QUANTIZERS.get(name)
    for bits in [b for b in (0, 1, 2, 3, 8, 9, 32) if b not in cls.widths]:
        with pytest.raises(ConfigError, match=f"'{name}' takes .* bits, {bits} were asked for") as caught:
            build_quantizer(name, bits)
        _, _, others = str(caught.value).rpartition(": ")
        if 1 <= bits <= 8:
            for other in others.split(", "):
                build_quantizer(other, bits)
        else:
            assert "none" in str(caught.value)


def test_objects_pass_through_and_unknown_names_are_met_with_the_nearest() -> None:
    quantizer = build_quantizer("lsq", 3)
    assert build_quantizer(quantizer, 3) is quantizer
    with pytest.raises(UnknownNameError, match="did you mean 'ternary'"):
        build_quantizer("ternery", 2)
    with pytest.raises(UnknownNameError, match="no option 'granulrity': did you mean 'granularity'"):
        build_quantizer("lsq(granulrity=channel)", 2)


@every_quantizer
def test_a_group_size_that_does_not_divide_is_refused(original: AbstractQuantizer) -> None:
    if not isinstance(original.granularity, PerGroup):
        assert fresh(original)(noise(2, 3, 3)).shape == (2, 3, 3)
        return
    assert original.granularity.size == 4
    with pytest.raises(ConfigError, match="group size 4 does not divide the 9 weights of a channel"):
        fresh(original)(noise(2, 3, 3))


@every_quantizer
@settings(max_examples=12)
@given(channels=st.integers(1, 4), groups=st.integers(1, 3), data=st.data())
def test_any_tensor(original: AbstractQuantizer, channels: int, groups: int, data: st.DataObject) -> None:
    """Values drawn from multiples of a step: many land on ties and ends, or are all equal, or all zero."""
    quantizer = fresh(original)
    size = channels * groups * 4
    whole = data.draw(st.lists(st.integers(-12, 12), min_size=size, max_size=size))
    x = torch.tensor(whole, dtype=torch.float32).reshape(channels, groups, 4) / data.draw(st.sampled_from([1, 2, 3, 8]))
    if not quantizer.signed:
        x = x.relu()
    values, codes = quantizer(x), quantizer.codes(x)
    assert values.isfinite().all()
    grid = quantizer.grid
    assert ((codes >= grid.low) & (codes <= grid.high) & ((codes - grid.low) % grid.step == 0)).all()
    if grid.zero == 0:
        assert (values * x >= 0).all()  # no value has the wrong sign
    assume(bool(quantizer.granularity.blocks(x).abs().amax(-1).min() > 0) or grid.zero == 0)
    again = quantizer(values)
    assert_close(again, values, "requantized")


@every_learned
def test_a_learned_scale_is_initialised_once(original: AbstractQuantizer) -> None:
    quantizer = fresh(original)
    scaling = quantizer.scaling  # type: ignore[attr-defined]
    assert not scaling.initialized
    quantizer(fitting(quantizer))
    first = scaling.value.detach().clone()
    assert scaling.initialized
    assert not torch.equal(first, torch.ones_like(first))
    quantizer(5 * fitting(quantizer))
    assert torch.equal(scaling.value, first)
    scaling.reset()
    quantizer(4 * fitting(quantizer))
    assert torch.equal(scaling.value, 4 * first)  # the rule is homogeneous


@every_learned
def test_a_learned_scale_survives_the_state_dict(original: AbstractQuantizer) -> None:
    quantizer, other = fresh(original), fresh(original)
    quantizer(fitting(quantizer))
    with torch.no_grad():
        quantizer.scaling.value.mul_(1.25)  # type: ignore[attr-defined, union-attr]
    other.load_state_dict(quantizer.state_dict(), strict=True)
    x = 3 * fitting(quantizer, seed=1)
    assert torch.equal(other(x), quantizer(x))  # also: not initialised afresh from x
    untouched, follower = fresh(original), fresh(original)
    follower(fitting(original))
    follower.load_state_dict(untouched.state_dict(), strict=True)
    assert torch.equal(follower(x), untouched(x))  # a state without a scale makes the next tensor set it


@every_learned
def test_a_float_checkpoint_has_no_scale_and_resets_it(original: AbstractQuantizer) -> None:
    quantizer = fresh(original)
    quantizer(fitting(quantizer))
    quantizer.load_state_dict({}, strict=True)
    x = 3 * fitting(quantizer)
    assert torch.equal(quantizer(x), fresh(original)(x))
