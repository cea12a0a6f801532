"""The reference engine against the original's recorded results (groups c, d, e, f)."""

from __future__ import annotations

import pytest
import torch

from flashu.models.bagel.reference import Reference
from tests.models.bagel.golden.engines import processor, said, written
from tests.models.bagel.golden.recorded import about, close, model, tensors, tolerance
from tests.models.bagel.golden.test_sampling import CASES, HPARAMS

RUNS = about()["common"]["runs"]


@pytest.mark.parametrize("case", CASES)
def test_drawing(case):
    reference = Reference(model(), processor())
    done = reference.generate(said("prompt"), seed=HPARAMS["noise_seed"], decode=False, **CASES[case])
    close(done.latents, tensors()[f"{case}.final_latent"], tolerance("sampling_final_abs"))
    assert [step.rows for step in done.trace] == RUNS[case]["passes_per_step"]


def test_editing():
    reference = Reference(model(), processor())
    done = reference.edit(torch.zeros(3, 8, 8), said("edit_text"), seed=HPARAMS["edit_noise_seed"], decode=False)
    close(done.latents, tensors()["d.text_channel.final_latent"], tolerance("edit_final_abs"))


def test_understanding():
    reference = Reference(model(), processor(shown="a.vit.image"))
    length = HPARAMS["max_length_und"] - 1
    done = reference.answer(torch.zeros(3, 8, 8), said("question"), max_new_tokens=length)
    assert done.tokens == tensors()["e.tokens"][1:].tolist()


def test_thinking():
    reference = Reference(model(), processor())
    limit = HPARAMS["max_length_think"] - 1
    done = reference.generate(
        said("prompt"), seed=HPARAMS["think_noise_seed"], think=True, max_think_tokens=limit, decode=False
    )
    assert done.thoughts == [written(RUNS["f"]["think_ids"])]
    close(done.latents, tensors()["f.final_latent"], tolerance("sampling_final_abs"))
