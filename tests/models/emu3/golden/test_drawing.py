"""Drawing: the exact path against what transformers' class drew, code by code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flashu.inference.actions import Append, Draw
from flashu.inference.engine import Engine
from flashu.inference.run import Run, complete
from flashu.inference.samplers.autoregressive import AutoregressiveSampler
from flashu.models.emu3.layout import UNCOND, tokens, words
from flashu.models.emu3.model import Emu3
from flashu.plan import MAIN, Guidance
from flashu.plan.recipe import exact
from flashu.runtime.executor import Executor
from flashu.runtime.runner import Runner
from tests.models.emu3.golden.recorded import PIXELS, about, close, config, goldens, model, unpadded, vq

G, GEN = goldens(), about()["common"]["gen"]
HEIGHT, WIDTH, GUIDANCE, TOP_K = GEN["height"], GEN["width"], GEN["guidance"], GEN["top_k"]
COUNT = HEIGHT * WIDTH
IDS = config().ids


def codes_of(recorded: Tensor) -> Tensor:
    """Codes [B, h, w] of recorded tokens [B, h(w+1)+3]."""
    return recorded[:, :-3].view(-1, HEIGHT, WIDTH + 1)[..., :-1] - IDS.first


class Recorded:
    """Noise that was drawn before: of the steps that were free, in order."""

    def __init__(self, noise: Tensor) -> None:
        free = [n for n in range(HEIGHT * (WIDTH + 1)) if n % (WIDTH + 1) != WIDTH]
        self._rows = iter(noise[free])

    def exponential(self, *shape: int) -> Tensor:
        return next(self._rows)


def runs(
    negative: str, top_k: int = 1, noise: Callable[[int], Any] = lambda row: None, rows: tuple[int, ...] = (0, 1)
) -> list[Run]:
    codes = IDS.first, IDS.first + config().codes

    def ends(index: int) -> tuple[int, ...]:
        return (IDS.eol,) if index % WIDTH == WIDTH - 1 else ()

    made = []
    for n in rows:
        drawn = noise(n)
        sampler = lambda forwards, solver, drawn=drawn: AutoregressiveSampler(  # noqa: E731
            (HEIGHT, WIDTH), codes, tokens, drawn, top_k, ends
        )
        prompt = unpadded(G["gen.input_ids"][n], G["gen.attention_mask"][n]).tolist()
        script = [
            Append((MAIN,), (words(prompt),)),
            Append((UNCOND,), (words(G[negative].tolist()),)),
            Draw(Guidance({UNCOND: GUIDANCE}), COUNT, sampler),
        ]
        made.append(Run(script, exact(), model().spec))
    return made


@pytest.fixture(scope="module")
def made() -> Emu3:
    return model()


def drawn(made: Emu3, batch: list[Run], executor: Executor | None = None) -> Tensor:
    with torch.inference_mode():
        complete(executor or Executor(Runner(made)), batch)
    return torch.stack([run.drawn[0] for run in batch])


def test_greedy(made: Emu3) -> None:
    batch = runs("gen.negative_ids")
    assert torch.equal(drawn(made, batch), codes_of(G["gen.tokens"]))
    # One forward per code, where the original takes two per token: ends of line go with the code before them, and what
    # follows the last code needs none.
    trace = batch[0].trace
    assert len(trace) == COUNT
    assert [t.rows for t in trace] == [2] * COUNT
    assert [t.tokens for t in trace[1:]] == [1 + (n % WIDTH == 0) for n in range(1, COUNT)]
    assert sum(t.tokens for t in trace[1:]) == HEIGHT * (WIDTH + 1) - 2


def test_rows_alone_draw_the_same(made: Emu3) -> None:
    for n in (0, 1):
        assert torch.equal(drawn(made, runs("gen.negative_ids", rows=(n,))), codes_of(G["gen.tokens"])[n : n + 1])


def test_the_other_negative_prompt_draws_something_else(made: Emu3) -> None:
    """Without the mark and size of an image, as an example of transformers' documentation has it."""
    assert torch.equal(drawn(made, runs("gen.negative_ids_doc")), codes_of(G["gen.tokens_doc_negative"]))
    assert int((G["gen.tokens_doc_negative"] != G["gen.tokens"]).sum()) > COUNT


def test_sampled_with_recorded_noise(made: Emu3) -> None:
    batch = runs("gen.negative_ids", TOP_K, lambda n: Recorded(G["gen_s.exp_noise"][:, n]))
    assert torch.equal(drawn(made, batch), codes_of(G["gen_s.tokens"]))


class Watched(Executor):
    """Keeps the logits of every forward [rows, codes], conditional rows first."""

    def __init__(self, runner: Runner) -> None:
        super().__init__(runner)
        self.logits: list[Tensor] = []
        self.computed: list[tuple[int, ...]] = []

    def forward(self, requests: Any) -> Any:
        outputs = super().forward(requests)
        self.logits.append(torch.stack([output.values for output in outputs], dim=1))
        return outputs


def test_logits_of_every_forward(made: Emu3) -> None:
    executor = Watched(Runner(made))
    drawn(made, runs("gen.negative_ids"), executor)
    free = [n for n in range(HEIGHT * (WIDTH + 1)) if n % (WIDTH + 1) != WIDTH]
    for logits, step in zip(executor.logits, free, strict=True):
        # Only codes have logits, and of the last token alone.
        close(logits, torch.stack([G["gen.cond_logits"][step], G["gen.uncond_logits"][step]]))


def test_pixels_of_what_was_drawn() -> None:
    close(vq().decode(codes_of(G["gen.tokens"])), G["gen.image"], PIXELS)


def test_the_negative_prompt_is_prefilled_once_for_all_images(made: Emu3) -> None:
    seen: list[tuple[int, int]] = []

    class Counting(Runner):
        def walk(self, x: Tensor, layout: Any, plan: Any, **settings: Any) -> Any:
            seen.append((x.shape[0], int(layout.valid.sum())))
            return super().walk(x, layout, plan, **settings)

    drawn(made, runs("gen.negative_ids"), Executor(Counting(made)))
    prompts = int(G["gen.attention_mask"].sum())
    assert sum(valid for _, valid in seen) == prompts + len(G["gen.negative_ids"])
    assert sum(rows for rows, _ in seen) == 3


def test_the_engine_draws_the_same(made: Emu3, monkeypatch: pytest.MonkeyPatch) -> None:
    """From words to a picture, by the layout."""
    from tests.models.emu3.emu3_tiny import processor, text_of

    surround = replace(processor(vq()), top_k=1)
    prompts = [text_of(unpadded(G["gen.input_ids"][n], G["gen.attention_mask"][n]).tolist()) for n in (0, 1)]
    surround = replace(surround, text=replace(surround.text, template=template_with(G["gen.negative_ids"].tolist())))
    made.processor = surround  # type: ignore[assignment]
    factor = surround.factor
    done = Engine(made, surround).generate(prompts, guidance=GUIDANCE, height=HEIGHT * factor, width=WIDTH * factor)
    assert torch.equal(done.latents, codes_of(G["gen.tokens"]))
    levels = ((G["gen.image"].clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8)
    for picture, golden in zip(done.images, levels, strict=True):
        ours = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(*golden.shape[1:], 3)
        assert int((ours.int() - golden.permute(1, 2, 0).int()).abs().max()) <= 1


def template_with(negative: list[int]) -> Any:
    from tests.models.emu3.emu3_tiny import TEMPLATE, text_of

    return replace(TEMPLATE, negative=text_of(negative))
