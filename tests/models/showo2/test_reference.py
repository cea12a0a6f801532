"""The original program as `flashu bench` times it: what it computes, what that costs, and parts of it."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import flashu
from flashu.bench.reads import Reads
from flashu.bench.steps import ORIGINAL, StepKind
from flashu.inference.actions import AnswerRequest, DrawRequest
from flashu.models.family import TimedReference
from flashu.models.memory import parameter_bytes
from flashu.models.showo2 import naive
from flashu.models.showo2.random import named_config, random_model
from flashu.models.showo2.reference import Reference, additive, with_one_more
from tests.conftest import TINY


@pytest.fixture
def reference(tiny: flashu.ShowO2) -> Reference:
    made = Reference(tiny, tiny.processor)
    assert isinstance(made, TimedReference)
    return made


def questions(*words: str, new_tokens: int = 5) -> list[AnswerRequest]:
    return [AnswerRequest(text, (Image.new("RGB", (64, 64), "red"),), new_tokens) for text in words]


def test_a_batch_draws_what_the_exact_recipe_does(reference: Reference) -> None:
    texts, begun = ["w1 w2", "w3 w4"], []
    drawn = reference.latents([DrawRequest(text, n, 5) for n, text in enumerate(texts)], before=begun.append)
    exact = flashu.Engine(reference.model, reference.processor).generate(texts, seed=0, steps=5, decode=False)
    torch.testing.assert_close(drawn, exact.latents, rtol=0, atol=1e-3)
    assert begun == [0, 1, 2, 3, 4]


def test_a_batch_answers_what_the_exact_recipe_does(reference: Reference) -> None:
    asked, begun = questions("w1 w2", "w3 w4"), []
    said = reference.tokens(asked, before=begun.append)
    exact = flashu.Engine(reference.model, reference.processor).respond(asked)
    assert begun == [0, 1, 2, 3, 4]
    for row, answer in zip(said.tolist(), exact, strict=True):
        assert row[: len(answer.tokens)] == answer.tokens


def test_some_forwards_are_those_of_a_whole_request(reference: Reference) -> None:
    parts: list[str] = []
    lengths: list[int] = []
    handle = reference.model.showo.lm_head.register_forward_hook(lambda _m, args, _o: lengths.append(args[0].shape[1]))

    def part(name: str) -> object:
        parts.append(name)
        return naive.unnamed(name)

    reference.tokens(questions("w1"), part=part)  # type: ignore[arg-type]
    whole = lengths.copy()
    lengths.clear()
    reference.tokens(questions("w1"), only=[0, 4])
    assert lengths == [whole[0], whole[4]]
    assert parts == ["VAE", "features", *["LLM", "logits"] * 5]
    handle.remove()
    begun, parts = [], []
    reference.latents([DrawRequest("w1", 0, 5)], [0], begun.append, part)  # type: ignore[arg-type]
    assert (begun, parts) == ([0], ["features", "LLM", "logits", "head"])


def test_the_mask_grows_by_one_that_nobody_sees() -> None:
    seen = torch.tensor([[1, 0, 0], [1, 1, 1], [1, 1, 1]], dtype=torch.bool)[None, None]
    grown = with_one_more(additive(seen, torch.float32)) == 0
    assert grown[0, 0].long().tolist() == [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_flops_by_hand(reference: Reference) -> None:
    """One drawing forward of two rows on the tiny model, and one of an answer, every product written out."""
    s, n, h, d = 19 + 16 + 5, 16, 64, 48

    def decoder(s: int) -> int:
        return 6 * (s * h * (2 * h + 2 * 2 * 16) + 2 * s * s * h + 3 * s * h * 96) + s * h * 256

    vision = n * 3 * (4 * 32 * 32 + 2 * n * 32 + 2 * 32 * 48) + n * 16 * (32 + h) + n * ((32 + h) * h + h * h)
    head = 3 * (s * d * (2 * d + 2 * 2 * 8) + 2 * s * s * d + 3 * s * d * 56 + 6 * d * d) + s * (h * d + d * d)
    out = s * d * 16 + 2 * d * d
    (drawn,) = reference.explain("generation", steps=1).forwards
    assert (drawn.rows, drawn.tokens) == (2, s)
    assert drawn.flops == 2 * 2 * (decoder(s) + vision + head + out)
    first, second = reference.explain("understanding", question_tokens=8, max_new_tokens=2).forwards
    assert first.flops == 2 * (decoder(8 + n + 1) + vision)
    assert second.flops == 2 * decoder(8 + n + 1 + 1)


def test_bytes_are_each_weight_once(tiny: flashu.ShowO2) -> None:
    reads = Reads(tiny.spec, "generation", 4, 4, cached=10)
    whole = reads.of(StepKind(ORIGINAL))
    tables = tiny.position_embedding, tiny.time_embed, tiny.time_embed_proj
    small = sum(p.nbytes for name, p in tiny.named_parameters() if p.ndim == 1 and not name.startswith("time_"))
    assert whole == parameter_bytes(tiny) - parameter_bytes(*tables) - small
    logits = 4 * 64 * 256
    assert reads.of(StepKind("block", pruned=0.5)) == whole - logits - 6 * 48 * 3 * 64 * 4
    assert reads.of(StepKind("setup")) == 0
    answers = Reads(tiny.spec, "understanding", 4, 4, cached=10)
    image = 4 * tiny.spec.image.per_token
    assert answers.of(StepKind("token")) - answers.of(StepKind("prefill")) == 10 * 6 * 2 * 2 * 16 * 4 - image


def test_a_released_sizes_model_is_built_once_in_its_dtype() -> None:
    config = named_config("showo2-1.5b")
    assert (config.llm.hidden_size, config.image_latent_height) == (1536, 27)
    made = random_model(TINY, torch.bfloat16, torch.device("cpu"))
    assert made.dtype == torch.bfloat16
    assert made.showo.lm_head.weight is made.showo.model.embed_tokens.weight
    assert not any(value.is_meta for value in (*made.parameters(), *made.buffers()))
    ids = torch.arange(40)[None]
    where = torch.tensor([[[2, 17]]])
    with torch.inference_mode():
        made_of = (made, ids, torch.randn(1, 4, 8, 8), torch.rand(1), naive.omni_mask(40, where), where)
        assert all(part.isfinite().all() for part in naive.forward(*made_of))


def test_settings_are_honoured_or_refused(reference: Reference) -> None:
    exact = flashu.Engine(reference.model, reference.processor)
    settings = {"guidance": 2.0, "shift": 1.5, "height": 32, "width": 64, "steps": 4}
    want = exact.generate("w1 w2", seed=3, **settings)  # type: ignore[arg-type]
    got = reference.generate("w1 w2", seed=3, **settings)  # type: ignore[arg-type]
    torch.testing.assert_close(got.latents, want.latents, atol=1e-4, rtol=1e-4)
    for call in (
        lambda: reference.generate("w1", images_per_prompt=2),  # type: ignore[call-arg]
        lambda: reference.answer(want.images[0], "w1", temperature=0.5),  # type: ignore[call-arg]
    ):
        with pytest.raises(TypeError, match="unexpected keyword"):
            call()
    with pytest.raises(flashu.FlashUError):
        reference.generate(["w1", "w2"])  # type: ignore[arg-type]
