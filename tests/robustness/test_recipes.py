"""Recipe files that are none, and settings of the wrong kind: one `RecipeError`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashu.errors import RecipeError
from flashu.plan.methods import METHODS
from flashu.plan.presets import load_recipe
from flashu.plan.recipe import Recipe


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"5",
        bytes(range(256)),
        '{"name": "x"}'.encode("utf-16"),
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"methods": 5}',
        b'{"methods": null}',
        b'{"methods": [5]}',
        b'{"methods": {"method": "head_cache"}}',
        b'{"methods": [{"method": ["head_cache"]}]}',
        b'{"methods": [{"method": "ffn_prune", "ratio": NaN, "task": "generation"}]}',
        b'{"methods": [{"method": "ffn_prune"}]}',
        b'{"methods": [{"method": "head_cache", "interval": Infinity}]}',
        b'{"methods": [{"method": "head_cache", "intervall": 3}]}',
        b'{"name": 5}',
        b'{"solver": 7}',
        b'{"recipe": []}',
        b'{"colour": "red"}',
    ],
)
def test_files_that_are_no_recipe(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "recipe.json"
    file.write_bytes(data)
    with pytest.raises(RecipeError):
        load_recipe(str(file))


def test_what_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for source in (tmp_path, tmp_path / "pipe", Path("/dev/zero"), tmp_path / "none", 5, None):
        with pytest.raises(RecipeError):
            load_recipe(source)  # type: ignore[arg-type]


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # other work may hold the cores
@given(st.data())
def test_any_setting_is_taken_or_refused(data: st.DataObject) -> None:
    """Whatever stands in a method's settings: a recipe that can be written and read again, or a `RecipeError`."""
    name = data.draw(st.sampled_from(sorted(METHODS)))
    entry: dict[str, Any] = {"method": name, "task": sorted(METHODS[name].tasks)[0]}
    fields = sorted(METHODS[name].__dataclass_fields__)
    for field in data.draw(st.lists(st.sampled_from(fields), max_size=3, unique=True)):
        entry[field] = data.draw(VALUES)
    try:
        recipe = Recipe.from_dict({"methods": [entry]})
    except RecipeError:
        return
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
