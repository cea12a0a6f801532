"""Groups c, c_nocfg and c_inpaint: drawing with the noise that the original drew, by the reference and the engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flashu import Engine
from flashu.inference.actions import Draw, DrawRequest, Known
from flashu.inference.run import Run
from flashu.inference.samplers.masked import MaskedSampler
from flashu.models.showo.public import ShowO
from flashu.models.showo.reference import Reference
from flashu.plan.recipe import exact
from flashu.runtime.executor import Executor
from flashu.runtime.runner import Runner
from tests.models.showo.golden.recorded import (
    ABOUT,
    IDS,
    SIZES,
    close,
    goldens,
    processor,
    recorded_noise,
    tiny_model,
    words,
)

SETTINGS = ABOUT["seeds_and_hparams"]
GROUPS = ("c", "c_nocfg", "c_inpaint")
OFFSET = SIZES["image_token_offset"]


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return goldens()


@pytest.fixture(scope="module")
def model() -> ShowO:
    return tiny_model()


def prompts() -> list[str]:
    """Cut as the original cuts them."""
    return [processor().cut(words(ids)) for ids in ABOUT["prompts_token_ids"]]


def request_of(golden: dict[str, Tensor], group: str, row: int) -> DrawRequest:
    steps = len(golden[f"{group}.masking"])
    guidance = 0.0 if group == "c_nocfg" else SETTINGS["guidance"]
    known = None
    if group == "c_inpaint":
        first = image_of(golden[f"{group}.input_ids_per_step"][0, row])
        hidden = first == SIZES["mask_token_id"]
        known = Known((first - OFFSET).clamp(max=SIZES["codebook_size"] - 1), hidden)
    return DrawRequest(prompts()[row], row, steps, guidance, known=known)


def image_of(ids: Tensor) -> Tensor:
    """The image tokens of rows [..., L]."""
    return ids[..., -SIZES["num_vq_tokens"] - 1 : -1]


@pytest.mark.parametrize("group", GROUPS)
def test_codes_of_the_reference_and_of_the_engine(
    group: str, golden: dict[str, Tensor], model: ShowO, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded_noise(monkeypatch, golden, group)
    expected = golden[f"{group}.tokens"]
    requests = [request_of(golden, group, row) for row in range(len(expected))]
    assert torch.equal(Reference(model, processor()).latents(requests), expected)
    settings: dict[str, Any] = {"steps": requests[0].steps, "guidance": requests[0].guidance, "seed": 0}
    if group == "c_inpaint":
        settings |= {"image": [r.known.image for r in requests], "mask": [r.known.mask for r in requests]}  # type: ignore[union-attr]
    drawn = Engine(model, processor()).generate(prompts(), **settings)
    assert torch.equal(drawn.latents, expected)
    assert [len(trace) for trace in drawn.traces] == [len(golden[f"{group}.masking"])] * len(expected)
    assert {trace.rows for trace in drawn.trace} == {1 if group == "c_nocfg" else 2}


@pytest.mark.parametrize("group", GROUPS)
def test_every_forward_of_the_exact_runtime(
    group: str, golden: dict[str, Tensor], model: ShowO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its logits, what it is given, and how many tokens go through: the prompt once, then soi, image and eoi."""
    recorded_noise(monkeypatch, golden, group)
    layout, count = model.layout(processor()), SIZES["num_vq_tokens"]
    for row in range(len(golden[f"{group}.tokens"])):
        (actions,) = layout.draw([request_of(golden, group, row)], exact())
        *before, draw = actions
        assert isinstance(draw, Draw)
        sampler = draw.sampler(draw.steps, "euler")
        assert isinstance(sampler, MaskedSampler)
        drawing = replace(draw, sampler=lambda forwards, solver, own=sampler: own)
        run, executor = Run([*before, drawing], exact(), model.spec), Executor(Runner(model))
        for index, fed in enumerate(golden[f"{group}.input_ids_per_step"][:, row]):
            request = run.prepare()
            assert request is not None
            assert request.codes == model.config.codes
            assert torch.equal(sampler.ids, image_of(fed))
            (output,) = executor.forward([request])
            assert output.tokens == count + 2
            assert output.values is not None
            names = ["cond_logits"] if group == "c_nocfg" else ["cond_logits", "uncond_logits"]
            for values, name in zip(output.values, names, strict=True):
                close(values, golden[f"{group}.{name}"][index, row])
            run.accept(output)
            masked = sampler.ids == SIZES["mask_token_id"]
            assert torch.equal(masked, golden[f"{group}.masking"][index, row].bool())
            assert int(masked.sum()) == int(golden[f"{group}.mask_len"][index, row])
        assert torch.equal(sampler.ids, image_of(golden[f"{group}.final_input_ids"][row]))


def test_rows_of_the_reference_are_those_of_the_original(golden: dict[str, Tensor], model: ShowO) -> None:
    text, mask = Reference(model, processor()).prompts(prompts(), guided=True)
    rows = torch.cat((golden["a.input_ids"], golden["a.uncond_input_ids"]))
    assert torch.equal(text, rows[:, : SIZES["text_block_length"]])
    assert torch.equal(mask == 0, golden["a.mask_allowed"].bool())
    assert rows[0, -1] == IDS["eoi"]
