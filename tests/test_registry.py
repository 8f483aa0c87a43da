"""The registry: one name, one member; near misses are met; a new file is found by itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lowbit._errors import LowbitError, UnknownNameError
from lowbit._registry import Registry, discover


def colours() -> Registry[object]:
    registry: Registry[object] = Registry("colour")
    for name in ("red", "green", "blue"):
        registry.register(name)(object())
    return registry


def test_register_hands_the_member_back() -> None:
    registry: Registry[type] = Registry("thing")

    @registry.register("own")
    class Own:
        pass

    assert registry.get("own") is Own
    assert registry.name_of(Own, default="?") == "own"


def test_names_and_items_are_sorted() -> None:
    registry = colours()
    assert registry.names() == ("blue", "green", "red")
    assert [name for name, _ in registry.items()] == ["blue", "green", "red"]
    assert all(registry.get(name) is member for name, member in registry.items())


def test_a_name_is_given_once() -> None:
    registry = colours()
    first = registry.get("red")
    with pytest.raises(LowbitError, match="colour 'red' is registered twice; choose another name"):
        registry.register("red")(object())
    assert registry.get("red") is first


def test_an_unknown_name_is_met_with_the_nearest_and_with_all() -> None:
    with pytest.raises(
        UnknownNameError, match=r"^unknown colour 'gren': did you mean 'green'\? known: blue, green, red$"
    ):
        colours().get("gren")
    with pytest.raises(UnknownNameError, match=r"^unknown colour 'xyz': known: blue, green, red$"):
        colours().get("xyz")


def test_an_object_that_was_never_registered_has_the_default_name() -> None:
    assert colours().name_of(object(), default="mine") == "mine"


def test_discover_imports_public_modules_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "lowbit_probe"
    package.mkdir()
    (package / "__init__.py").write_text("found = []\n")
    (package / "first.py").write_text("from lowbit_probe import found\nfound.append('first')\n")
    (package / "second.py").write_text("from lowbit_probe import found\nfound.append('second')\n")
    (package / "_private.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        discover("lowbit_probe", [str(package)])
        assert sorted(sys.modules["lowbit_probe"].found) == ["first", "second"]
    finally:
        for name in [name for name in sys.modules if name.startswith("lowbit_probe")]:
            del sys.modules[name]


@pytest.mark.parametrize("family", ["quantizers", "estimators"])
def test_every_file_of_a_family_is_discovered(family: str) -> None:
    module = sys.modules.get(f"lowbit.{family}") or __import__(f"lowbit.{family}", fromlist=["x"])
    registry = module.QUANTIZERS if family == "quantizers" else module.ESTIMATORS
    helpers = {"granularity", "grid", "resolution", "scale"}
    files = {path.stem for path in Path(module.__path__[0]).glob("[!_]*.py")} - helpers
    assert files == {cls.__module__.rpartition(".")[2] for _, cls in registry.items()}
    assert files == {name.replace("-", "_") for name in registry.names()}  # one file, one name
