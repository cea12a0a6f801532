"""Questions about several images, and messages about none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.conftest import tiny_model
from torch import Tensor

import flashu
from flashu.inference import requests
from flashu.inference.loops.decode import decode
from flashu.inference.requests import question_rows
from flashu.inference.run import Run
from flashu.models.showo2 import naive
from flashu.models.showo2.text import Text
from flashu.plan import LayerPlan
from flashu.plan.methods.token_prune import TokenPrune
from flashu.plan.recipe import exact
from flashu.runtime.runner import Runner
from flashu.runtime.tokens import visible


def greedy(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


@pytest.fixture(scope="module")
def model() -> flashu.ShowO2:
    return tiny_model()


def text_of(model: flashu.ShowO2) -> Text:
    assert model.processor is not None
    return model.processor.text


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
    x, tokens = question_rows(model, latents, [parts], [[0, 1]])
    before, between, after = parts
    first = len(before)
    second = first + 17 + len(between)
    ids = torch.tensor([[*before, *[254] * 17, *between, *[254] * 17, *after]])
    where = torch.tensor([[[first, 17], [second, 17]]])
    spliced, _, _ = naive.splice(model, ids, latents, torch.ones(2), where)
    torch.testing.assert_close(x, spliced)
    mask = visible(tokens, tokens)
    assert mask is not None
    assert torch.equal(mask, naive.omni_mask(ids.shape[1], where + torch.tensor([1, 0])))  # one late, as the script
    assert tokens.visual[0].nonzero().flatten().tolist() == [
        *range(first + 1, first + 17),
        *range(second + 1, second + 17),
    ]


@torch.inference_mode()
def test_the_cache_answers_as_whole_rows_do(goldens: dict[str, Tensor], model: flashu.ShowO2) -> None:
    """Rows of one and two images in one batch, each against running its own row anew for every token."""
    latents, text = goldens["b_two_images.in.latents"], text_of(model)
    rows = [(text.question_parts("w1 w2 w3", 2), [1, 0]), (text.question_parts("w4", 1), [1])]
    x, tokens = question_rows(model, latents, [parts for parts, _ in rows], [seen for _, seen in rows])
    both = list(decode(Run(Runner(model), exact(), "understanding", 5), x, tokens, greedy, None))
    for n, (parts, seen) in enumerate(rows):
        x, tokens = question_rows(model, latents, [parts], [seen])
        for column in both:
            hidden = Runner(model).backbone(x, tokens, LayerPlan()).hidden
            token = model.logits(hidden[:, -1]).argmax(-1)
            assert column[n] == int(token)
            x = torch.cat((x, model.embed_text(token[:, None])), dim=1)
            tokens = tokens.cat(tokens.following())


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
    record = together[0].trace[0]
    if score == "attention":  # the text after the image decides what stays of it
        assert record.begun == 0
    else:
        assert record.begun == 2 * record.past
        assert record.tokens < 17


def test_nothing_is_shared_where_images_differ(tiny_engine: flashu.Engine) -> None:
    first, second = tiny_engine.generate(["w1", "w2"], steps=2).images
    assert tiny_engine.answer([first, second], ["w3", "w3"], max_new_tokens=2)[0].trace[0].begun == 0
    assert tiny_engine.answer([[first, second], first], ["w3", "w3"], max_new_tokens=2)[0].trace[0].begun == 0


@torch.inference_mode()
def test_messages_are_answered_as_causal_rows(model: flashu.ShowO2) -> None:
    said = ["w1 w2", "w5 w6 w7 w8"]
    assert model.processor is not None
    _, stream = requests.talking(Runner(model), model.processor, exact(), said, 5, greedy)
    columns = list(stream)
    for n, message in enumerate(said):
        ids = text_of(model).message(message)
        for column in columns:
            if column[n] is None:
                break
            x = model.embed_text(torch.tensor([ids]))
            causal = torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool).tril()
            for i in range(model.num_layers):
                x, _ = model.layer(i, x, model.rope(torch.arange(len(ids))[None]), causal)
            assert column[n] == int(model.logits(model.norm(x))[0, -1].argmax())
            ids.append(int(column[n]))


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
