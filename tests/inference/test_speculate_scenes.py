"""The embedded models answer the same with drafts, and quicker with the shipped one."""

from __future__ import annotations

from functools import cache

import pytest

import flashu
from flashu import FlashUError
from flashu.inference.speculate import SHIPPED, LookupDrafter, SelfDrafter, Speculation, ngrams
from flashu.models.registry import ASSETS, CHECKPOINTS
from flashu.scenes.world import SCENES, world_of
from flashu.training.draft.answers import Asked, about_scenes
from flashu.training.draft.measure import acceptance

EMBEDDED = [c.name for c in CHECKPOINTS if str(c.source).startswith(str(ASSETS)) and "scenes" in c.name]


@cache
def opened(name: str) -> flashu.Engine:
    return flashu.load(name)


def asked(engine: flashu.Engine, questions: int, descriptions: int) -> list[Asked]:
    """About scenes that no model was trained on."""
    defaults = engine.layout.defaults
    world = world_of(defaults.height, defaults.width) or SCENES
    items = about_scenes(world, 4 * (questions + descriptions), 5, held_out=True)
    describing = [one for one in items if one.text.startswith("describe")]
    rest = [one for one in items if not one.text.startswith("describe")]
    assert len(rest) >= questions
    assert len(describing) >= descriptions
    return rest[:questions] + describing[:descriptions]


def same(name: str, questions: int, descriptions: int) -> None:
    engine = opened(name)
    requests = [one.request(None) for one in asked(engine, questions, descriptions)]

    def answers(own: flashu.Engine) -> list[flashu.Answer]:
        return [a for at in range(0, len(requests), 64) for a in own.respond(requests[at : at + 64])]

    want = answers(engine)
    count = engine.model.spec.layers
    drafts = {
        "self": Speculation(SelfDrafter.skipping(engine.model, range(count // 4, count // 2)), 4, adapt=False),
        "ngrams": Speculation(LookupDrafter(4, ngrams([a.tokens for a in want])), 6),
    }
    if (SHIPPED / name).is_dir():
        drafts["shipped"] = flashu.Engine(engine.model, engine.processor, draft="shipped").speculation  # type: ignore[assignment]
    for kind, draft in drafts.items():
        got = answers(engine.with_recipe("exact", draft=draft))
        assert [a.tokens for a in got] == [a.tokens for a in want], kind
        if kind == "shipped":
            assert acceptance(got).tokens > 2


@pytest.mark.parametrize("name", EMBEDDED)
def test_some_answers(name: str) -> None:
    same(name, 6, 2)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", EMBEDDED)
def test_500_questions_and_100_descriptions(name: str) -> None:
    same(name, 500, 100)


def test_a_model_without_a_shipped_draft() -> None:
    engine = opened("scenes")
    named, engine.model.name = engine.model.name, "another"
    try:
        with pytest.raises(FlashUError, match="no draft is in the package for another, only for scenes"):
            engine.with_recipe("exact", draft="shipped")
    finally:
        engine.model.name = named
