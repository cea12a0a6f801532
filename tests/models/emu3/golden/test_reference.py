"""The original program's computation against what transformers' class recorded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flashu.inference.engine import Engine
from flashu.models.emu3 import naive
from flashu.models.emu3.model import Emu3
from flashu.models.emu3.reference import MARKS, Reference, Rows, answer, draw
from flashu.models.family import TimedReference
from tests.models.emu3.emu3_tiny import processor
from tests.models.emu3.golden.recorded import about, close, config, goldens, model, unpadded, vq

G, GEN, IDS = goldens(), about()["common"]["gen"], config().ids
HEIGHT, WIDTH = GEN["height"], GEN["width"]


@pytest.fixture(scope="module")
def made() -> Emu3:
    return model()


def real(ids: str, mask: str) -> list[list[int]]:
    return [unpadded(row, kept).tolist() for row, kept in zip(G[ids], G[mask], strict=True)]


class Noise:
    """What was recorded for one row, at every step; the original draws at those that are known, too."""

    def __init__(self, noise: Tensor) -> None:
        free = [n for n in range(HEIGHT * (WIDTH + 1)) if n % (WIDTH + 1) != WIDTH]
        self._rows = iter(noise[free])

    def exponential(self, *shape: int) -> Tensor:
        return next(self._rows)


def drawn(made: Emu3, negative: str, top_k: int = 1, noises: Any = (None, None)) -> Tensor:
    prompts = real("gen.input_ids", "gen.attention_mask")
    allowed = [naive.Allowed(IDS, config().codes, HEIGHT, WIDTH)] * len(prompts)
    main = Rows(made, prompts, naive.unnamed)
    uncond = Rows(made, [G[negative].tolist()] * len(prompts), naive.unnamed)
    return draw(main, uncond, GEN["guidance"], allowed, top_k, noises)


def test_drawing(made: Emu3) -> None:
    assert torch.equal(drawn(made, "gen.negative_ids"), G["gen.tokens"])
    assert torch.equal(drawn(made, "gen.negative_ids_doc"), G["gen.tokens_doc_negative"])


def test_drawing_with_recorded_noise(made: Emu3) -> None:
    noises = [Noise(G["gen_s.exp_noise"][:, row]) for row in (0, 1)]
    assert torch.equal(drawn(made, "gen.negative_ids", GEN["top_k"], noises), G["gen_s.tokens"])


def test_answers(made: Emu3) -> None:
    rows = real("und.full_ids", "und.attention_mask")
    tokens = torch.stack(list(answer(Rows(made, rows, naive.unnamed), len(G["und.step_logits"]))), dim=1)
    assert torch.equal(tokens, G["und.tokens"])
    with torch.inference_mode():
        close(Rows(made, rows, naive.unnamed).logits(), G["und.logits"])


def test_what_may_come_next() -> None:
    allowed = naive.Allowed(IDS, config().codes, 2, 4)
    row = [IDS.bos, IDS.boi, IDS.img]
    came = []
    for _ in range(2 * 5 + MARKS + 1):
        following = allowed.after(row)
        came.append(following[0] if len(following) == 1 else None)
        row.append(following[0])
    line = [None] * 4 + [IDS.eol]
    assert came == [*line, *line, IDS.eof, IDS.eoi, IDS.eos, IDS.pad]
    # The end of a line is looked for first: of an image two codes wide it comes where the row would end.
    assert naive.Allowed(IDS, config().codes, 2, 2).at(2 * 3 + 3) == [IDS.eol]


def test_as_an_engine(made: Emu3) -> None:
    surround = processor(vq())
    reference, exact = Reference(made, surround), Engine(made, surround)
    assert isinstance(reference, TimedReference)
    size = {"height": 2 * surround.factor, "width": 3 * surround.factor}
    slow, quick = reference.generate("w5 w6", seed=3, **size), exact.generate("w5 w6", seed=3, **size)
    assert torch.equal(slow.latents, quick.latents)
    assert slow.images[0].tobytes() == quick.images[0].tobytes()
    # Two passes for each token, the known ones included, where one forward for each code will do.
    assert len(slow.trace) == 2 * (2 * (3 + 1) + MARKS)
    assert len(quick.trace) == 2 * 3
    unguided = {name: engine.generate("w5", guidance=1, **size) for name, engine in (("s", reference), ("q", exact))}
    assert torch.equal(unguided["s"].latents, unguided["q"].latents)
    picture = slow.images[0].resize((32, 24))
    asked = {"max_new_tokens": 6}
    assert reference.answer(picture, "w3 w4", **asked).tokens == exact.answer(picture, "w3 w4", **asked).tokens


def test_single_passes_for_timing(made: Emu3) -> None:
    surround = replace(processor(vq()))
    reference = Reference(made, surround)
    from flashu.inference.actions import AnswerRequest, DrawRequest

    begun: list[int] = []
    requests = [DrawRequest("w5 w6"), DrawRequest("w7")]
    planned = reference.explain("generation").forwards
    assert reference.latents(requests, [0, 3, len(planned) - 1], begun.append).shape == (2, 4, 6)
    assert begun == [0, 3, len(planned) - 1]
    picture = surround.to_pil(torch.zeros(1, 3, 32, 32))[0]
    given = reference.tokens([AnswerRequest("w1", (picture,), 5)], [0, 4], begun.append)
    assert given.shape == (1, 2)
    assert begun[3:] == [0, 4]
