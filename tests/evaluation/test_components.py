"""Work divided by component: all of it found, nothing changed by looking."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import flashu
from flashu.evaluation.components import AUTOENCODER, COMPONENTS, DECODER, HEAD, LOGITS, Stopwatch, TracedEngine
from flashu.evaluation.flops import FlopClock, counting
from flashu.inference.calibrate import samples
from flashu.models.registry import open_model


@pytest.fixture(scope="module")
def engine() -> flashu.Engine:
    model = open_model("scenes")
    return flashu.Engine(model, model.processor, calibration=model.calibration)


def test_every_operation_of_a_drawing_is_in_a_component(engine: flashu.Engine) -> None:
    clock = FlopClock()
    watch = Stopwatch(clock)
    with counting(clock):
        drawn = TracedEngine(engine, watch.part).generate("a red circle", steps=2)
    spent = watch.take()
    assert {name for name in COMPONENTS if not spent[name]} == {LOGITS}
    assert 0.99 * clock.now() < sum(spent.values()) <= clock.now()  # the rest embeds times
    assert torch.equal(drawn.latents, engine.generate("a red circle", steps=2).latents)
    assert not any(watch.take().values())


def test_an_answer_is_computed_in_its_components(engine: flashu.Engine) -> None:
    names: list[str] = []

    @contextmanager
    def part(name: str) -> Iterator[None]:
        names.append(name)
        yield

    asked = samples.questions(1)[0]
    given = TracedEngine(engine, part).answer(*asked)
    assert given.tokens == engine.answer(*asked).tokens
    forwards = len(given.trace)
    assert (names.count(DECODER), names.count(LOGITS)) == (forwards, forwards)
    assert not {HEAD, AUTOENCODER} & set(names)
