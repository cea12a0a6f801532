"""Drawing and answering many items: each batch once, kept under everything that it depends on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import flashu
from flashu.errors import FlashUError
from flashu.evaluation.ledger import Ledger, read_ledger
from flashu.evaluation.scenes_items import SceneQuestion, answer, draw, fingerprint
from flashu.models.defaults import GenerationDefaults
from flashu.models.showo2.processor import Processor
from flashu.models.showo2.text import ChatTemplate, Text
from flashu.plan.presets import paper
from flashu.plan.recipe import exact
from flashu.scenes.world import Object, Scene
from tests.conftest import IDS, TINY, Pixels, words


@pytest.fixture(scope="module")
def engine() -> flashu.Engine:
    torch.manual_seed(0)
    model = flashu.ShowO2(replace(TINY, llm=replace(TINY.llm, num_hidden_layers=10))).eval()
    text = Text(words(), IDS, ChatTemplate("", "", "w235"), max_text=24)
    return flashu.Engine(model, Processor(text, Pixels(), GenerationDefaults(7, 2.0, 3.0, 64, 64, max_new_tokens=2)))


def test_drawings_are_made_once(engine: flashu.Engine, tmp_path: Path) -> None:
    texts, seeds = ["w1 w2", "w3", "w4"], [0, 1, 2]
    finished: list[int] = []
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        first = draw(engine, texts, seeds, batch=2, ledger=ledger, on_batch=finished.append)
    assert finished == [2, 1]
    assert len(read_ledger(path)) == 2
    with Ledger(path) as ledger:
        again = draw(engine, texts, seeds, batch=2, ledger=ledger)
        assert len(ledger.values) == 2
        other = flashu.Engine(engine.model, engine.processor, paper())
        draw(other, texts, seeds, batch=2, ledger=ledger)
        assert len(ledger.values) == 4
        draw(engine, texts, seeds, batch=2, steps=3, ledger=ledger)
        assert len(ledger.values) == 6
    assert [d.objects for d in again] == [d.objects for d in first]
    assert first[0].latent is not None
    assert torch.equal(again[0].latent, first[0].latent)


def test_answers_are_given_once(engine: flashu.Engine) -> None:
    scene = Scene((Object(0, 0, "circle", "red"),))
    questions: list[SceneQuestion] = [("w1", scene), ("w1", None), ("w2", scene)]
    ledger = Ledger()
    first = answer(engine, questions, batch=2, ledger=ledger)
    assert len(first) == 3
    assert answer(engine, questions, batch=2, ledger=ledger) == first
    assert len(ledger.values) == 2
    answer(engine, [("w1", None), questions[1]], batch=2, ledger=ledger)
    assert len(ledger.values) == 3


def test_a_name_changes_nothing_and_a_mask_does(engine: flashu.Engine) -> None:
    renamed = flashu.Engine(engine.model, engine.processor, replace(exact(), name="other"))
    assert fingerprint(renamed, "generation") == fingerprint(engine, "generation")
    for task in ("generation", "understanding"):
        known = engine.calibrate(task)
        pruned = flashu.Engine(engine.model, engine.processor, paper(), known)
        scores = known.with_scores(task, known.scores[task].flip(1), {})
        flipped = flashu.Engine(engine.model, engine.processor, paper(), scores)
        assert fingerprint(pruned, task) != fingerprint(flipped, task)


def test_images_of_another_size_cannot_be_scored(engine: flashu.Engine) -> None:
    wide = replace(engine.processor.defaults, width=128)
    processor = Processor(engine.processor.text, engine.processor.vae, wide)
    with pytest.raises(FlashUError, match="cannot be scored"):
        draw(flashu.Engine(engine.model, processor), ["w1"], [0])
