"""What the exact runtime leaves out on BAGEL without any effect on the result, counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import flashu
from flashu.inference.actions import DrawRequest
from flashu.inference.calibrate.schedule import best_runs, searched
from flashu.models.bagel.rows import words
from flashu.models.registry import family_of, resolve
from flashu.plan import MAIN
from flashu.plan.explain import tabulate
from flashu.plan.methods import HeadCache, SkipSchedule, TokenPrune
from flashu.plan.recipe import Recipe, exact
from flashu.runtime import context as contexts
from tests.models.bagel.golden.engines import engine, said
from tests.models.bagel.golden.recorded import close, model

PICTURE = torch.zeros(3, 8, 8)


@pytest.fixture
def tokens(monkeypatch):
    """Rows x tokens of every walk through the decoder."""
    net, seen = model(), []
    layer = type(net.layers[0])
    forward = layer.forward

    def counted(self, x, *more, **named):
        if self is net.layers[0]:
            seen.append(tuple(x.shape[:2]))
        return forward(self, x, *more, **named)

    monkeypatch.setattr(layer, "forward", counted)
    return seen


def test_ninety_passes_instead_of_131():
    checkpoint = resolve("ByteDance-Seed/BAGEL-7B-MoT")
    sizes = family_of(checkpoint).sizes(checkpoint)
    drawn = tabulate(sizes, exact(), "generation")
    assert sum(forward.rows for forward in drawn.forwards) == 90
    assert sum(len(forward.plan.branches) for forward in drawn.forwards) == 131
    edited = tabulate(sizes, exact(), "generation", edit=True)
    assert sum(forward.rows for forward in edited.forwards) == 147
    # With its text, the picture is in once: 4098 latents, 4902 ViT tokens, the instruction; and that alone.
    (prompt,) = edited.prompts
    assert prompt.tokens == 4098 + 4902 + 16


def test_an_edits_branches_share_their_beginning(tokens):
    engine().edit(PICTURE, said("edit_text"), steps=2, decode=False)
    text, picture = 8, 14 + 14
    # The picture goes through once, then the instruction behind it and alone.
    assert tokens[:3] == [(1, picture), (1, text), (1, text)]
    assert all(shape == (3, 14) for shape in tokens[3:])


def test_a_thought_is_computed_once(tokens):
    made = engine()
    done = made.generate(said("prompt"), think=True, max_think_tokens=5, steps=2, decode=False)
    prompt, think = 11, 7
    alone = [shape for shape in tokens if shape[1] == 1]
    assert len(alone) == 4  # of five tokens the last goes through with what closes the thought
    assert (1, think + prompt + 1) in tokens
    # That last token and the end go with the prompt of the branch without pictures; nothing is as long as a thought.
    assert tokens[5:8] == [(1, think), (2, prompt), (3, 17)]
    assert len(done.thoughts[0].split(",")) == 5


def test_no_step_copies_the_context(monkeypatch):
    """The keys and values of a context lie where they lay, behind the block's own."""
    made, moved = engine(), []
    original = contexts.behind_space
    monkeypatch.setattr(
        "flashu.runtime.blocks.behind_space", lambda kv, count: moved.append(count) or original(kv, count)
    )
    cats = []
    cat = torch.cat

    def counted(parts, dim=0, **more):
        out = cat(parts, dim=dim, **more)
        if out.ndim == 4 and dim == 2:
            cats.append(tuple(out.shape))
        return out

    (run,) = made.runs_to_draw([DrawRequest(said("edit_text"), steps=5, images=(PICTURE,))])
    executor = made.executor()
    with torch.inference_mode():
        run.accept(executor.forward([run.prepare()])[0])
        monkeypatch.setattr(torch, "cat", counted)
        while (request := run.prepare()) is not None:
            run.accept(executor.forward([request])[0])
    assert moved == [14]
    assert not cats


def test_rows_one_by_one_give_the_same(monkeypatch):
    want = engine().edit(PICTURE, said("edit_text"), steps=3, decode=False).latents
    monkeypatch.setattr("flashu.runtime.blocks.TOGETHER", 10)
    close(engine().edit(PICTURE, said("edit_text"), steps=3, decode=False).latents, want, 1e-5)


@pytest.mark.parametrize("renorm", ["global", "channel", "text_channel"])
def test_samples_of_a_batch_are_independent(renorm):
    made = engine()
    both = made.generate([said("prompt"), said("prompt2")], seed=3, steps=4, decode=False, renorm=renorm)
    for n, name in enumerate(("prompt", "prompt2")):
        alone = made.generate(said(name), seed=3 + n, steps=4, decode=False, renorm=renorm)
        close(both.latents[n], alone.latents[0], 1e-5)


def test_edits_in_turn_compute_what_is_new_only(tokens, monkeypatch):
    made = engine()
    monkeypatch.setattr(type(made), "decode", lambda self, latents, size=8: [PICTURE])
    session = made.editing(PICTURE)
    session.edit(said("edit_text"), seed=1, steps=2)
    before = len(tokens)
    second = session.edit(said("prompt"), seed=2, steps=2)
    new = tokens[before:]
    assert sum(rows * count for rows, count in new if count != 14) == 28 + 11 + 11
    # The same as all of it in one row.
    noise_of_both = [made.layout.viewed(PICTURE, made_noise(seed)) for seed in (1, 2)]
    first, again = noise_of_both
    request = DrawRequest(said("prompt"), 2, steps=2)
    script = made.layout.drawing([first, said("edit_text"), again, said("prompt")], request, made_noise(2), (8, 6))
    (run,) = made._runs([script])
    made.complete([run])
    close(second.latents[0], run.drawn[0], 1e-5)


def made_noise(seed):
    from flashu.inference.samplers.noise import Noise

    return Noise(seed)


def test_text_before_a_picture_voids_its_guidance_and_says_so(caplog):
    made = engine()
    layout, inputs = made.layout, [said("prompt"), made.layout.viewed(PICTURE, made_noise(0))]
    results = []
    for guidance in (None, 1.0):
        own = {"image_guidance": 1.0, "interval": (0.0, 1.0)}
        request = DrawRequest(said("prompt"), 1, 3, guidance, own=own)
        (run,) = made._runs([layout.drawing(inputs, request, made_noise(1), (8, 6))])
        made.complete([run])
        results.append(run.drawn[0])
    assert "put the picture first" in caplog.text
    close(*results, 1e-5)


def test_the_prompts_position_follows_the_pictures():
    made = engine()
    script = made.layout.draw([DrawRequest(said("edit_text"), images=(PICTURE,))], exact())[0]
    (run,) = made._runs([script])
    with torch.inference_mode():
        run.prepare()
    assert run.contexts[MAIN].position == 2 + len(words(range(8)).layout.position[0])


def test_features_taken_over():
    made = engine()
    whole = made.generate(said("prompt"), seed=1, decode=False)
    reused = made.with_recipe(Recipe((HeadCache(interval=2, tau=0),))).generate(said("prompt"), seed=1, decode=False)
    assert [step.rows > 0 for step in reused.trace] == [n % 2 == 0 for n in range(9)]
    assert not torch.equal(reused.latents, whole.latents)
    schedule = searched(made, [said("prompt")], 4)
    assert isinstance(schedule, SkipSchedule)
    assert len(schedule.runs) == 4
    some = made.with_recipe(Recipe((schedule,))).generate(said("prompt"), seed=1, decode=False)
    assert [n for n, step in enumerate(some.trace) if step.rows] == list(schedule.runs)


def test_the_best_schedule_is_found():
    at = torch.tensor([0.0, 0.1, 0.2, 5.0, 5.1, 9.0])
    assert best_runs((at[:, None] - at).square(), 3) == [0, 3, 5]


def test_vit_tokens_are_pruned():
    made = engine(shown="a.vit.image").with_recipe(
        Recipe((TokenPrune(task="understanding", layer=1, ratio=0.5, score="random"),))
    )
    answer = made.answer(PICTURE, said("question"), max_new_tokens=3)
    assert len(answer.tokens) <= 3


def test_the_understanding_expert_alone_answers():
    with pytest.raises(flashu.FlashUError, match="understanding alone"):
        alone().generate(said("prompt"))
    want = engine(shown="a.vit.image").answer(PICTURE, said("question"), max_new_tokens=6).tokens
    assert alone().answer(PICTURE, said("question"), max_new_tokens=6).tokens == want


def alone():
    from flashu.models.bagel.model import Bagel
    from tests.models.bagel.golden.engines import processor

    net = Bagel(replace(model().config, visual_gen=False))
    net.load_state_dict({k: v for k, v in model().state_dict().items() if k in net.state_dict()})
    return flashu.Engine(net.eval().requires_grad_(False), processor(shown="a.vit.image"))
