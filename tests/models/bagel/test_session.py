"""A conversation computes what is new alone, and gives what one row of all of it gives."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from flashu.errors import FlashUError, PromptError
from flashu.inference.actions import Append, Decode, DrawRequest
from flashu.inference.samplers.noise import Noise
from flashu.models.bagel.rows import words
from flashu.plan import MAIN
from tests.models.bagel.golden.engines import engine, said
from tests.models.bagel.golden.recorded import close

PICTURE = torch.zeros(3, 8, 8)


@pytest.fixture
def made(monkeypatch):
    made = engine()
    # Results of the tiny autoencoder are noise: a picture that is known stands for them.
    monkeypatch.setattr(type(made), "decode", lambda self, latents, size=8: [PICTURE])
    return made


def answer_text(made, ids):
    """An answer as a text of the row: the ids say more than their text, which need not encode to them again."""
    eos, bos = made.processor.text.ids.eos, made.processor.text.ids.bos
    return words((bos, *ids, eos))


def fresh(made, prompt, seed, before):
    """The latents of one request with all of a conversation in its row: texts, answers, and a picture for each seed."""
    noise = Noise(seed)
    actions = []
    for one in before:
        if isinstance(one, int):
            # The noise of an edit goes on where its picture's ends.
            picture = made.layout.viewed(PICTURE, noise if one == seed else Noise(one))
            actions.append(Append((MAIN,), made.layout.both(picture)))
        else:
            segment = words(made.processor.text.block("prompt", one)) if isinstance(one, str) else one
            actions.append(Append((MAIN, "image"), (segment,)))
    request = DrawRequest(prompt, seed, steps=2, stands=True)
    (run,) = made._runs([[*actions, *made.layout.drawing([prompt], request, noise, (8, 6))]])
    made.complete([run])
    return run.drawn[0]


def test_questions_and_edits_in_turn(made):
    session = made.session(PICTURE)
    first = session.ask(said("edit_text"), max_new_tokens=4)
    edited = session.edit(said("prompt"), seed=1, steps=2)
    again = session.edit(said("edit_text"), seed=2, steps=2)
    answer = answer_text(made, first.tokens)
    close(edited.latents[0], fresh(made, said("prompt"), 1, [0, said("edit_text"), answer]), 1e-5)
    row = [0, said("edit_text"), answer, said("prompt"), 2]
    close(again.latents[0], fresh(made, said("edit_text"), 2, row), 1e-5)


def test_an_answer_is_that_of_the_whole_row(made):
    session = made.session(PICTURE)
    session.edit(said("prompt"), seed=1, steps=2)
    got = session.ask(said("edit_text"), max_new_tokens=4).tokens
    layout, text = made.layout, made.processor.text
    shown = [layout.both(layout.viewed(PICTURE, Noise(seed))) for seed in (1, 0)]
    asked = words(text.block("prompt", said("prompt"))), words(text.block("question", said("edit_text")))
    row = (*shown[0], asked[0], *shown[1], asked[1], words((text.ids.bos,)))
    (run,) = made._runs([[Append((MAIN,), row), Decode(MAIN, frozenset((text.ids.eos,)), 4)]])
    made.complete([run])
    assert got == run.text


def test_a_turn_taken_back_leaves_no_trace(made):
    session = made.session(PICTURE)
    session.edit(said("prompt"), seed=1, steps=2)
    tokens = session.tokens
    want = session.edit(said("edit_text"), seed=2, steps=2).latents
    session.undo()
    session.ask(said("prompt"), max_new_tokens=3)
    session.undo()
    assert session.tokens == tokens
    got = session.edit(said("edit_text"), seed=2, steps=2).latents
    assert torch.equal(got, want)
    session.undo()
    session.undo()
    with pytest.raises(FlashUError, match="no turn to take back"):
        session.undo()


def test_a_turn_computes_what_is_new_only(made):
    """Tokens behind a turn's context are those that the turns before have computed."""
    session = made.session(PICTURE)
    session.edit(said("prompt"), seed=1, steps=2)
    session.ask(said("edit_text"), max_new_tokens=3)
    before = session.tokens
    prefill = session.ask(said("prompt"), max_new_tokens=3).trace[0]
    question = len(made.processor.text.block("question", said("prompt"))) + 1
    # The last words of an answer go with what comes next.
    assert before - 2 <= prefill.past < before
    assert prefill.past + prefill.tokens == before + question


def test_the_system_prompt_of_thinking_stands_once(made):
    session = made.session(PICTURE)
    lengths = [0]
    for seed in (1, 2, 3):
        thought = session.edit(said("prompt"), seed=seed, steps=1, think=True, max_think_tokens=2)
        lengths.append(session.tokens)
    system = len(made.processor.text.block("system prompt", made.layout._thinking.draw))
    first, second, third = (b - a for a, b in pairwise(lengths))
    assert first - system == second == third
    assert len(thought.thoughts) == 1


def test_drawing_begins_a_conversation(made):
    session = made.session()
    with pytest.raises(FlashUError, match="no picture to edit"):
        session.edit(said("prompt"))
    drawn = session.draw(said("prompt"), seed=4, steps=2).latents
    assert torch.equal(drawn, made.generate(said("prompt"), seed=4, steps=2).latents)
    pieces = []
    answer = session.ask(said("edit_text"), max_new_tokens=4, on_text=lambda _, piece: pieces.append(piece))
    assert "".join(pieces) == answer.text


def test_what_is_refused_changes_nothing(made):
    session = made.session(PICTURE, limit=5)
    with pytest.raises(PromptError):
        session.edit("")
    with pytest.raises(PromptError, match="leave <image> out"):
        session.ask("what is <image>?")
    assert session.tokens == 0
    session.ask(said("prompt"), max_new_tokens=2)
    with pytest.raises(FlashUError, match="of at most 5: undo"):
        session.ask(said("prompt"))
    session.close()
    with pytest.raises(FlashUError, match="closed"):
        session.ask(said("prompt"))
