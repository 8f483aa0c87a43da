"""Every recipe is a configuration that loads, and says what it reached."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowbit.training.config import load_config, resolve

RECIPES = sorted((Path(__file__).parents[1] / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_states_what_it_reached(path: Path) -> None:
    resolve(load_config(path))
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("Reached", "seed", "torch", "commit"):
        assert any(word in line for line in header), f"the header does not state: {word}"
