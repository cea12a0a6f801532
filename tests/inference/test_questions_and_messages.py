"""Questions about several images, and messages about none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import flashu
from flashu.inference.actions import AnswerRequest, Append, Decode
from flashu.inference.run import Run, complete
from flashu.models.layers import AttentionContext
from flashu.models.showo2 import naive
from flashu.models.showo2.content import Shown
from flashu.models.showo2.layout import question
from flashu.models.showo2.text import Text
from flashu.plan import MAIN, LayerPlan
from flashu.plan.methods.token_prune import TokenPrune
from flashu.plan.recipe import exact
from flashu.runtime.executor import Executor
from flashu.runtime.layout import Segment, TokenLayout, visible
from flashu.runtime.runner import Runner
from tests.conftest import tiny_model


@pytest.fixture(scope="module")
def model() -> flashu.ShowO2:
    return tiny_model()


def text_of(model: flashu.ShowO2) -> Text:
    assert model.processor is not None
    return model.processor.text


def shown(model: flashu.ShowO2, latents: Tensor) -> list[Shown]:
    """Clean images of latents [N, c, h, w]."""
    e_t, token = model.embed_time(torch.ones(1))
    return [Shown(one, e_t, token, 16) for one in latents]


def whole(model: flashu.ShowO2, segments: Sequence[Segment]) -> tuple[Tensor, TokenLayout]:
    """A row in one piece: embedded [1, S, h], and its layout."""
    layout = segments[0].layout
    for segment in segments[1:]:
        layout = layout.cat(segment.layout.shifted(layout.shape[1], layout.shape[1]))
    return torch.cat(model.embed([segment.content for segment in segments]))[None], layout


def test_pictures_stand_where_the_text_says(model: flashu.ShowO2) -> None:
    """Each framed as a single one, the words before, between and after them."""
    text = text_of(model)
    before, after = text.question("w1 w2")
    w = {n: text.encode(f"w{n}") for n in (1, 2, 3)}
    assert text.question_parts("w3<image>w1 w2", 1) == [[*before[:-1], *w[3], 252], after]
    spread = text.question_parts("<image>w3<image>w1 w2", 2)
    assert spread == [before, [253, *w[3], 252], after]
    last = text.question_parts("w1 w2<image>", 1)
    assert last == [[*before[:-1], *text.encode("w1 w2"), 252], [253, *text.encode(text.chat.assistant)]]
    engine = flashu.Engine(model, model.processor)
    pictures = [torch.rand(3, 64, 64) * 2 - 1 for _ in range(2)]
    placed = engine.answer([pictures], ["w3<image>w1<image>w2"], max_new_tokens=4)[0]
    ids = engine.processor.row("w3<image>w1<image>w2", 2)
    assert ids.count(engine.processor.placeholder) == 2
    assert placed.tokens == engine.respond([AnswerRequest("", tuple(pictures), 4, ids)])[0].tokens
    plain = engine.answer([pictures], ["<image><image>w3 w1 w2"], max_new_tokens=4)[0]
    assert plain.tokens == engine.answer([pictures], ["w3 w1 w2"], max_new_tokens=4)[0].tokens
    for words, shown in (("w1<image>", pictures), ("<image><image>w1", pictures[:1])):
        with pytest.raises(flashu.PromptError, match="one place for each, or none"):
            engine.answer([shown], [words])
    with pytest.raises(flashu.PromptError, match="for 0 pictures"):
        engine.chat("what is <image>")


def test_parts_frame_every_image(model: flashu.ShowO2) -> None:
    text = text_of(model)
    before, after = text.question("w1 w2")
    assert text.question_parts("w1 w2", 1) == [before, after]
    assert text.question_parts("w1 w2", 3) == [before, [253, 252], [253, 252], after]
    assert text.message("w1 w2")[0] == 250
    with pytest.raises(flashu.PromptError, match="message"):
        text.message(" ")


@torch.inference_mode()
def test_two_images_are_laid_out_as_the_naive_row_has_them(goldens: dict[str, Tensor], model: flashu.ShowO2) -> None:
    """One row with two images, in the block that training uses, against splicing the same tokens by positions."""
    latents = goldens["b_two_images.in.latents"]
    parts = text_of(model).question_parts("w1 w2", 2)
    x, layout = whole(model, question(model, parts, shown(model, latents)))
    before, between, after = parts
    first = len(before)
    second = first + 17 + len(between)
    ids = torch.tensor([[*before, *[254] * 17, *between, *[254] * 17, *after]])
    where = torch.tensor([[[first, 17], [second, 17]]])
    spliced, _, _ = naive.splice(model, ids, latents, torch.ones(2), where)
    torch.testing.assert_close(x, spliced)
    mask = visible(layout, layout)
    assert mask is not None
    assert torch.equal(mask, naive.omni_mask(ids.shape[1], where + torch.tensor([1, 0])))  # one late, as the script
    assert layout.visual[0].nonzero().flatten().tolist() == [
        *range(first + 1, first + 17),
        *range(second + 1, second + 17),
    ]


@torch.inference_mode()
def test_the_cache_answers_as_whole_rows_do(goldens: dict[str, Tensor], model: flashu.ShowO2) -> None:
    """Rows of one and two images in one batch, each against running its own row anew for every token."""
    latents, text = goldens["b_two_images.in.latents"], text_of(model)
    first, second = shown(model, latents)
    rows = [
        question(model, text.question_parts("w1 w2 w3", 2), [second, first]),
        question(model, text.question_parts("w4", 1), [second]),
    ]
    runs = [Run([Append((MAIN,), segments), Decode(MAIN, frozenset(), 5)], exact(), model.spec) for segments in rows]
    complete(Executor(Runner(model)), runs)
    for run, segments in zip(runs, rows, strict=True):
        x, layout = whole(model, segments)
        for said in run.text:
            hidden = Runner(model).walk(x, layout, LayerPlan()).hidden
            token = model.logits(hidden[:, -1]).argmax(-1)
            assert said == int(token)
            x = torch.cat((x, model.embed_tokens(token[:, None])), dim=1)
            layout = layout.cat(TokenLayout.causal([1]).shifted(layout.shape[1], layout.shape[1]))


def test_the_engine_answers_about_several_images(tiny_engine: flashu.Engine) -> None:
    first, second = tiny_engine.generate(["w1", "w2"], steps=2).images
    one = tiny_engine.answer(first, "w3 w4")
    pair = tiny_engine.answer([[first, second], first], ["w3 w4", "w3 w4"])
    assert pair[1].tokens == one.tokens
    assert pair[0].trace[0].tokens == one.trace[0].tokens + 17 + 2
    with pytest.raises(flashu.ImageError, match="no image"):
        tiny_engine.answer([[]], ["w3"])


@pytest.mark.parametrize("score", [None, "value_norm", "attention"])
@pytest.mark.parametrize("block", ["training", "script"])
def test_questions_about_one_image_share_it(score: Any, block: str) -> None:
    """Five questions about two images: the images go through once, and the answers are those to each question alone."""
    model = tiny_model()
    model.config = replace(model.config, understanding_block=block)
    prunes = () if score is None else (TokenPrune(score=score),)
    engine = flashu.Engine(model, model.processor, flashu.Recipe(prunes))
    first, second = engine.generate(["w1", "w2"], steps=2).images
    asked = [(first, "w3 w4"), (second, "w3"), (first, "w5"), (first, "w6 w7 w8 w9"), (second, "w3 w4")]
    together = engine.answer([image for image, _ in asked], [words for _, words in asked], max_new_tokens=5)
    for given, (image, words) in zip(together, asked, strict=True):
        assert given.tokens == engine.answer(image, words, max_new_tokens=5).tokens
    firsts = [answer.trace[0] for answer in together]
    if score == "attention":  # the text after the image decides what stays of it
        assert [trace.shared for trace in firsts] == [0] * 5
    else:  # noted by the first that needs it
        begun = firsts[0].shared
        assert begun > 17
        assert [trace.shared for trace in firsts] == [begun, begun, 0, 0, 0]
        assert {trace.past for trace in firsts} == {begun}
        assert max(trace.tokens for trace in firsts) < 17


def test_some_of_a_batch_share_what_others_do_not_have(tiny_engine: flashu.Engine) -> None:
    first, second = tiny_engine.generate(["w1", "w2"], steps=2).images
    asked = [(first, "w3"), (second, "w4 w5"), (first, "w6")]
    together = tiny_engine.answer([image for image, _ in asked], [words for _, words in asked], max_new_tokens=4)
    begun = together[0].trace[0].past
    assert begun > 17
    assert [answer.trace[0].shared for answer in together] == [begun, 0, 0]
    assert [answer.trace[0].past for answer in together] == [begun, 0, begun]
    for given, (image, words) in zip(together, asked, strict=True):
        assert given.tokens == tiny_engine.answer(image, words, max_new_tokens=4).tokens
    same = tiny_engine.answer(first, ["w3", "w3"], max_new_tokens=4)  # equal rows are one row
    assert [answer.tokens for answer in same] == [together[0].tokens] * 2


def test_nothing_is_shared_where_images_differ(tiny_engine: flashu.Engine) -> None:
    first, second = tiny_engine.generate(["w1", "w2"], steps=2).images
    for images in ([first, second], [[first, second], first]):
        answers = tiny_engine.answer(images, ["w3", "w3"], max_new_tokens=2)
        assert [answer.trace[0].shared for answer in answers] == [0, 0]


@torch.inference_mode()
def test_messages_are_answered_as_causal_rows(tiny_engine: flashu.Engine) -> None:
    """Each against its own row, layer by layer and anew for every token."""
    model = tiny_engine.model
    said = ["w1 w2", "w5 w6 w7 w8"]
    for message, answer in zip(said, tiny_engine.chat(said, max_new_tokens=5), strict=True):
        ids = text_of(model).message(message)
        for token in answer.tokens:
            x = model.embed_tokens(torch.tensor([ids]))
            causal = torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool).tril()
            for layer in model.layers:
                x, _ = layer(x, AttentionContext(model.rope(torch.arange(len(ids))[None]), causal))
            assert token == int(model.logits(model.norm(x))[0, -1].argmax())
            ids.append(token)


def test_the_engine_answers_messages(tiny_engine: flashu.Engine) -> None:
    said = tiny_engine.chat(["w1 w2", "w5"], max_new_tokens=4)
    assert [len(answer.tokens) <= 4 for answer in said] == [True, True]
    assert tiny_engine.chat("w5", max_new_tokens=4).tokens == said[1].tokens
    assert (
        tiny_engine.chat("w5", temperature=1.0, seed=3).tokens == tiny_engine.chat("w5", temperature=1.0, seed=3).tokens
    )
    for wrong in ([], " "):
        with pytest.raises(flashu.PromptError):
            tiny_engine.chat(wrong)
