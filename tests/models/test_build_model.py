from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from lowbit._errors import ConfigError, LowbitError
from lowbit.models import build_model

NETS = """
import torch
from torch import nn

CONSTANT = 3

def small(num_classes, image_size, width=4):
    net = nn.Sequential(nn.Flatten(), nn.Linear(image_size[0] * image_size[1], width), nn.Linear(width, num_classes))
    net.width = width
    return net

def anything(**options):
    net = nn.Identity()
    net.options = options
    return net

def needs_depth(depth):
    return nn.Identity()

def not_a_model():
    return 5

def broken():
    raise RuntimeError("a fault of the user's own")

def own_classes(num_classes=2):
    return nn.Linear(1, num_classes)
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory, under a name of its own, and off the import path."""
    name = "user_nets_of_" + tmp_path.name.replace("-", "_")
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(NETS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    return name


def build(spec: str, seed: int = 0) -> nn.Module:
    return build_model(spec, num_classes=5, in_channels=1, image_size=(3, 4), seed=seed)


def test_a_function_in_the_working_directory_is_found_and_the_path_put_back(user_module: str) -> None:
    path = list(sys.path)
    model = build(f"{user_module}:small")
    assert model(torch.zeros(2, 1, 3, 4)).shape == (2, 5)
    assert sys.path == path


def test_options_reach_the_function(user_module: str) -> None:
    assert build(f"{user_module}:small(width=9)").width == 9


def test_a_function_gets_what_it_accepts(user_module: str) -> None:
    assert build(f"{user_module}:own_classes").out_features == 5
    options = build(f"{user_module}:anything(depth=2)").options
    assert options == {"num_classes": 5, "in_channels": 1, "image_size": (3, 4), "depth": 2}


def test_a_seed_fixes_the_parameters_of_a_users_model(user_module: str) -> None:
    first, again, other = (build(f"{user_module}:small", seed)[1].weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_users_own_fault_is_shown_with_the_models_name(user_module: str) -> None:
    path = list(sys.path)
    with pytest.raises(
        ConfigError, match=r":broken' cannot be built: RuntimeError: a fault of the user's own"
    ) as caught:
        build(f"{user_module}:broken")
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert sys.path == path


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("smal", "has no 'smal': did you mean 'small'?"),
        ("CONSTANT", "is of type int; name a function or a class"),
        ("not_a_model", "returned a value of type int; it must return a torch.nn.Module"),
        ("needs_depth", "needs the option 'depth'"),
        ("small(widht=3)", "has no option 'widht': did you mean 'width'?"),
        ("", "is not of the form package.module:function"),
    ],
)
def test_what_is_wrong_with_a_users_model_is_said(user_module: str, function: str, message: str) -> None:
    with pytest.raises(LowbitError) as caught:
        build(f"{user_module}:{function}")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_package_anywhere", "needs 'no_such_package_anywhere', which is not installed"),
        ("def f(:", "does not import: SyntaxError"),
        ("1 / 0", "does not import: ZeroDivisionError: division by zero"),
    ],
)
def test_a_module_that_does_not_import_is_said(tmp_path: Path, user_module: str, text: str, message: str) -> None:
    (tmp_path / f"{user_module}_faulty.py").write_text(text)
    with pytest.raises(LowbitError) as caught:
        build(f"{user_module}_faulty:f")
    assert message in str(caught.value)


@pytest.mark.parametrize("module", ["no_such_module_anywhere", "no_such_package_anywhere.nets", "json.nets"])
def test_a_module_that_does_not_exist_is_said(module: str) -> None:
    with pytest.raises(LowbitError, match=f"no module '{module}'"):
        build(f"{module}:f")


def test_a_function_without_a_signature_is_said() -> None:
    with pytest.raises(LowbitError, match="has no signature to read"):
        build("torch:tensor")


def test_a_console_script_finds_the_working_directory(user_module: str, tmp_path: Path) -> None:
    """A console script has its own folder, not the working directory, first on the path; `-P` leaves both out."""
    code = f"from lowbit.models import build_model; build_model('{user_module}:small', 5, 1, (3, 4), 0)"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(LowbitError, match=r"unknown model 'lenet': did you mean 'lenet5'\?"):
        build("lenet")


@pytest.mark.parametrize(("size", "message"), [((0, 4), "height is 0"), ((4, -1), "width is -1")])
def test_an_image_size_that_is_not_a_count_is_refused(size: tuple[int, int], message: str) -> None:
    with pytest.raises(LowbitError, match=message):
        build_model("resnet20", 10, 3, size, seed=0)
