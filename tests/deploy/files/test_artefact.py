"""A saved model, loaded into a float or a converted one, computes the same bits; what does not fit is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowbit
from deploy_nets import float_net, images, trained
from lowbit._errors import ArtefactError
from lowbit.deploy import load, observe, save
from lowbit.layers import ExactBatchNorm2d, QuantConv2d, latent_parameters

WEIGHTS = {
    1: ["sign", "sign(scale=mean-abs)", "sign(scale=mean-abs, granularity=channel)", "sign(scale=learned)"],
    2: ["ternary", "ternary(granularity=channel, threshold=0.5)", "lsq"],
    3: ["uniform", "lsq(granularity=group:4)"],
    5: ["lsq(granularity=channel)"],
    8: ["lsq(scale=max-abs)", "uniform(scale=max-abs, granularity=channel, transform=tanh)"],
}
INPUTS = [
    (32, None),
    (1, "sign"),
    (2, "unsigned"),
    (8, "lsq"),
    (4, "unsigned(scale=none)"),
    (2, "staircase"),
    (3, "staircase(scale=learned)"),
    (3, "staircase(scale=fitted)"),
    (3, "staircase(resolution=0.3)"),
]


def loaded_and_saved(model: nn.Module, target: nn.Module, path: Path, x: Tensor) -> nn.Module:
    """`target` after loading what was saved of `model`, held against it bit by bit."""
    save(model, path)
    assert load(target, path) is target
    first, second = observe(model, x), observe(target, x)
    assert first.tensors().keys() == second.tensors().keys()
    assert all(torch.equal(value, second.tensors()[key]) for key, value in first.tensors().items())
    assert torch.equal(target(x), model(x))
    return target


def check_round_trip(tmp_path: Path, dtype: torch.dtype = torch.float32, **options: Any) -> None:
    model, x = trained(dtype, keep_float=("first",), **options), images().to(dtype)
    path, again = tmp_path / "net.lowbit", tmp_path / "again.lowbit"
    from_float = loaded_and_saved(model, float_net().to(dtype), path, x)
    converted = lowbit.convert(float_net(), keep_float=("first",), **options).to(dtype)
    loaded_and_saved(model, converted, path, x)
    # A loaded model is saved to the very same file, and takes another one.
    for loaded in (from_float, converted):
        save(loaded, again)
        assert again.read_bytes() == path.read_bytes()
        loaded_and_saved(model, loaded, again, x)


@pytest.mark.parametrize(("bits", "spec"), [(bits, spec) for bits, specs in WEIGHTS.items() for spec in specs])
@pytest.mark.parametrize(("activations", "inputs"), [(32, None), (3, "lsq")])
def test_every_kind_of_weight(tmp_path: Path, bits: int, spec: str, activations: int, inputs: str | None) -> None:
    overrides = {"3": {"quantizer": "lsq(granularity=group:6)"}} if "group" in spec else None
    check_round_trip(
        tmp_path,
        weights=bits,
        quantizer=spec,
        activations=activations,
        activation_quantizer=inputs,
        overrides=overrides,
    )


@pytest.mark.parametrize(("bits", "spec"), INPUTS)
def test_every_kind_of_input(tmp_path: Path, bits: int, spec: str | None) -> None:
    check_round_trip(tmp_path, weights=1, activations=bits, activation_quantizer=spec)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    check_round_trip(tmp_path, dtype, weights=3, activations=2)
    check_round_trip(tmp_path, dtype, weights=1, quantizer="sign(scale=mean-abs, granularity=channel)")


def test_weights_in_float_with_quantized_relus(tmp_path: Path) -> None:
    check_round_trip(tmp_path, weights=32, activations=2, activation_quantizer="staircase(scale=learned)")


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv3d])
def test_one_and_three_dimensions(tmp_path: Path, kind: Callable[..., nn.Module]) -> None:
    norm = nn.BatchNorm1d if kind is nn.Conv1d else nn.BatchNorm3d
    net = nn.Sequential(kind(2, 4, 3, padding=1), norm(4))
    x = torch.randn(2, 2, *[5] * (1 if kind is nn.Conv1d else 3))
    model = lowbit.convert(net, weights=2, activations=2, activation_quantizer="lsq", keep_float=())
    model(x)
    loaded_and_saved(model.eval(), copy.deepcopy(net), tmp_path / "a", x)


def test_a_loaded_model_evaluates_and_refuses_to_train(tmp_path: Path) -> None:
    model = trained(weights=1, activations=2)
    save(model, tmp_path / "a")
    loaded = load(float_net(), tmp_path / "a")
    assert not any(module.training for module in loaded.modules())
    assert isinstance(loaded[3], QuantConv2d)
    assert isinstance(loaded[1], ExactBatchNorm2d)
    assert not any(p.requires_grad for _, p in latent_parameters(loaded))
    assert torch.equal(loaded[3].weight, model[3].weight_quantizer(model[3].weight))  # type: ignore[index]
    with pytest.raises(ArtefactError, match=r"not the latent weights.*call model.eval\(\)"):
        loaded.train()
    with pytest.raises(ArtefactError, match="not the latent weights"):
        loaded(images())  # until it is told otherwise, it is half in training mode, and must not answer
    assert torch.equal(loaded.eval()(images()), model(images()))


def test_an_estimator_of_ones_own_stays(tmp_path: Path) -> None:
    save(trained(weights=1), tmp_path / "a")
    loaded = load(lowbit.convert(float_net(), estimator="ewgs(delta=0.1)"), tmp_path / "a")
    assert repr(loaded[3].weight_quantizer.rule) == "EWGS(delta=0.1)"  # type: ignore[index]


def test_saving_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = trained(weights=2, activations=2).train()
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    save(model, tmp_path / "a")
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Tied(nn.Module):
    """An embedding whose table is also the weight of a layer, a layer that stands at two places, tied layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 4)
        self.twice = nn.Linear(4, 4)
        self.again = self.twice
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.ones(4))
        self.same = self.scale
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.again(self.twice(self.table(x)))
        return self.head(self.second(self.first(y)) * self.scale * self.same)


def test_shared_tensors_are_stored_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Tied(), torch.arange(6)
    with torch.no_grad():
        net.scale.normal_()
    options: dict[str, Any] = {"activations": 3, "activation_quantizer": "lsq", "keep_float": ()}
    model = lowbit.convert(net, **options)
    model(x)
    loaded = loaded_and_saved(model.eval(), Tied(), tmp_path / "a", x)
    assert torch.equal(loaded.table.weight, net.table.weight)  # the embedding reads it in float
    assert loaded.head.weight is loaded.table.weight
    loaded_and_saved(model, lowbit.convert(Tied(), **options), tmp_path / "a", x)
    untied = Tied()
    untied.same = nn.Parameter(torch.zeros(4))
    assert torch.equal(load(untied, tmp_path / "a").same, net.scale)


def test_values_that_differ_cannot_be_loaded_into_one_tensor(tmp_path: Path) -> None:
    net = Tied()
    net.same = nn.Parameter(torch.zeros(4))
    save(lowbit.convert(net), tmp_path / "a")
    with pytest.raises(ArtefactError, match="'scale' and 'same' are one tensor in your model, but differ in the file"):
        load(Tied(), tmp_path / "a")


def test_wrapped_models_have_plain_names(tmp_path: Path) -> None:
    model = trained(weights=1, activations=2)
    save(model, tmp_path / "a")
    save(nn.DataParallel(model), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def other(place: str, module: nn.Module) -> nn.Module:
    net = float_net()
    net._modules[place] = module
    return net


class MyConv(nn.Conv2d):
    """A class that convert() would not touch."""


MISFITS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "shape": (
        lambda: other("3", nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=4)),
        r"'3.weight' has shape \(12, 2, 3, 3\) in the file, \(16, 2, 3, 3\) in your model",
    ),
    "float shape": (
        lambda: other("0", nn.Conv2d(3, 4, 3)),
        r"'0.weight' has shape \(8, 3, 3, 3\) in the file, \(4, 3, 3, 3\)",
    ),
    "stride": (
        lambda: other("3", nn.Conv2d(8, 12, 3, padding=1, groups=4)),
        "layer '3' has groups 4, padding 1, stride 2 in the file, groups 4, padding 1 in your model",
    ),
    "stride of a float layer": (
        lambda: other("0", nn.Conv2d(3, 8, 3, stride=2)),
        "layer '0' has the usual geometry in the file, stride 2 in your model",
    ),
    "eps": (lambda: other("1", nn.BatchNorm2d(8, eps=1e-3)), "layer '1' has the usual geometry in the file, eps 0.001"),
    "kind": (lambda: other("9", nn.Conv2d(3, 4, 3)), "layer '9' is a QuantLinear in the file, a Conv2d in your model"),
    "subclass": (
        lambda: other("3", MyConv(8, 12, 3, stride=2, padding=1, groups=4)),
        "layer '3' is a QuantConv2d in the file, a MyConv in your model",
    ),
    "no layer": (lambda: other("11", nn.Identity()), "layer '11' is a Linear in the file, a Identity in your model"),
    "fewer layers": (lambda: float_net()[:-1], "the file has a layer '11'"),
    "more layers": (
        lambda: nn.Sequential(*float_net(), nn.Linear(10, 2)),
        r"your model has a layer '12' \(Linear\), the file has none",
    ),
    "bias": (lambda: other("11", nn.Linear(20, 10, bias=False)), "it has a tensor '11.bias' that your model has not"),
    "more tensors": (lambda: other("2", nn.PReLU()), "it lacks the tensor '2.weight' of your model"),
    "dtype": (
        lambda: float_net().half(),
        r"is float32 in the file, float16 in your model: call model.to\(torch.float32\) first",
    ),
    "bits": (
        lambda: lowbit.convert(float_net(), weights=2, activations=2),
        r"layer '3' has the weight quantizer 'sign' in the file, 'lsq\(bits=2\)' in your model; convert it",
    ),
    "input bits": (
        lambda: lowbit.convert(float_net(), weights=1, activations=3),
        r"layer '3' has the input quantizer 'unsigned\(bits=2\)' in the file, 'unsigned\(bits=3\)' in your model",
    ),
    "no input": (
        lambda: lowbit.convert(float_net(), weights=1),
        "layer '3' has the input quantizer.*none in your model",
    ),
    "float there": (
        lambda: lowbit.convert(float_net(), weights=1, activations=2, keep_float=()),
        "layer '0' is a Conv2d in the file, a QuantConv2d in your model",
    ),
    "low-bit there": (
        lambda: lowbit.convert(float_net(), weights=1, activations=2, overrides={"9": "float"}),
        "",  # the layer that is still float is converted on the way
    ),
    "meta": (lambda: float_net().to("meta"), r"meta device.*to_empty\(device='cpu'\)"),
}


def state(model: nn.Module) -> tuple[list[type], list[Any], dict[str, Tensor]]:
    kinds = [type(m) for m in model.modules()]
    return kinds, [m.training for m in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("misfit", MISFITS)
def test_what_does_not_fit_is_refused_and_the_model_untouched(tmp_path: Path, misfit: str) -> None:
    save(trained(weights=1, activations=2), tmp_path / "a")
    build, message = MISFITS[misfit]
    target = build()
    if not message:
        load(target, tmp_path / "a")
        return
    before = state(target)
    with pytest.raises(ArtefactError, match=message):
        load(target, tmp_path / "a")
    after = state(target)
    assert before[:2] == after[:2]
    assert before[2].keys() == after[2].keys()
    assert misfit == "meta" or all(torch.equal(value, after[2][name]) for name, value in before[2].items())


@pytest.mark.parametrize(
    ("saved", "own", "message"),
    [
        ("staircase(resolution=0.3)", "staircase(resolution=0.4)", "resolution=0.3.*resolution=0.4"),
        ("staircase", "staircase(scale=learned)", "scale=learned"),
    ],
)
def test_a_resolution_of_the_users_must_agree(tmp_path: Path, saved: str, own: str, message: str) -> None:
    options: dict[str, Any] = {"weights": 1, "activations": 2}
    save(trained(**options, activation_quantizer=saved), tmp_path / "a")
    with pytest.raises(ArtefactError, match=f"layer '2' has the input quantizer.*{message}"):
        load(lowbit.convert(float_net(), **options, activation_quantizer=own), tmp_path / "a")


@pytest.mark.parametrize(("saved", "own"), [("uniform", "uniform(transform=tanh)"), ("lsq", "uniform")])
def test_a_weight_quantizer_must_agree(tmp_path: Path, saved: str, own: str) -> None:
    save(trained(weights=3, quantizer=saved), tmp_path / "a")
    with pytest.raises(ArtefactError, match="layer '3' has the weight quantizer"):
        load(lowbit.convert(float_net(), weights=3, quantizer=own), tmp_path / "a")


def test_what_changes_gradients_only_need_not_agree(tmp_path: Path) -> None:
    model = trained(weights=1, quantizer="sign(scale=mean-abs, detach=False)")
    target = lowbit.convert(float_net(), weights=1, quantizer="sign(scale=mean-abs)")
    loaded_and_saved(model, target, tmp_path / "a", images())


def test_a_scale_that_was_never_learned_is_refused(tmp_path: Path) -> None:
    model = lowbit.convert(float_net(), weights=1, activations=2)
    with pytest.raises(ArtefactError, match=r"layer '3': the scale of its input was never learned.*lowbit.calibrate"):
        save(model, tmp_path / "a")


def test_a_weights_scale_that_was_never_learned_is_stored_as_evaluation_takes_it(tmp_path: Path) -> None:
    model = lowbit.convert(float_net(), weights=3).eval()
    loaded_and_saved(model, float_net(), tmp_path / "a", images())


def test_other_models_that_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="has no low-bit layers"):
        save(float_net(), tmp_path / "a")
    with pytest.raises(ArtefactError, match=r"the shape of '9.weight' is not known yet"):
        save(lowbit.convert(other("9", nn.LazyLinear(20))), tmp_path / "a")
    model = trained(weights=1)
    model.register_buffer("sparse", torch.zeros(3, 3).to_sparse())
    with pytest.raises(ArtefactError, match="'sparse' is sparse"):
        save(model, tmp_path / "a")
    with pytest.raises(ArtefactError, match="cannot be written"):
        save(trained(weights=1), tmp_path / "no folder" / "a")
    with pytest.raises(ArtefactError, match=r"takes a torch.nn.Module and a file; str was given"):
        load("a", tmp_path)  # type: ignore[type-var]


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(trained(weights=1, activations=2), tmp_path / "a")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    load(float_net(), tmp_path / "a")


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (tmp_path / "sprung").write_text, ("x",)

    (tmp_path / "a").write_bytes(pickle.dumps(Trap()))
    torch.save(float_net().state_dict(), tmp_path / "b")
    for name in ("a", "b"):
        with pytest.raises(ArtefactError, match=r"no .lowbit file: it is not in the safetensors format"):
            load(float_net(), tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_from_the_top_of_the_package(tmp_path: Path) -> None:
    save(trained(weights=1), tmp_path / "a")
    assert isinstance(lowbit.load(float_net(), str(tmp_path / "a")), nn.Sequential)
    assert lowbit.ArtefactError is ArtefactError
