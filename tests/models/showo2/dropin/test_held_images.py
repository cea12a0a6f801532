"""The authors' mixed-modality script on a patched instance: a new image after earlier ones of the same row."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import GOLDEN
from tests.models.showo2.dropin.original import Original, dense
from torch import Tensor

import flashu
from flashu.inference.samplers.solvers import grid

Sampler = Callable[..., Tensor]
FORWARD, ODE = 5e-4, 2e-3


@pytest.fixture(scope="module")
def rows() -> dict[str, Tensor]:
    return load_file(str(GOLDEN / "showo2_tiny_rows.safetensors"))


@pytest.fixture
def script(rows: dict[str, Tensor]) -> Sampler:
    """The part of the script that meets the model, with its Euler sampler of 8 points."""

    def sample(model: Original, guidance: float = 5.0, stop: int | None = None, **more: object) -> Tensor:
        ids, where, z = rows["m.text_tokens"], rows["m.modality_positions"], rows["m.z"]
        x = torch.cat((rows["m.history"], z))
        if guidance > 0:
            x = torch.cat((x, z.repeat(3, 1, 1, 1)))
        else:
            ids, where = ids[:1], where[:1]
        given = {"text_tokens": ids, "attention_mask": dense(ids, where), "modality_positions": where} | more
        times = grid(7, 3.0)
        for t, dt in list(zip(times[:-1], times.diff(), strict=True))[:stop]:
            at = torch.ones(len(x)) * t
            v = model.t2i_generate(x, at, guidance_scale=guidance, only_denoise_last_image=True, **given)
            x = x + dt * v.float()
        return x

    return sample


@pytest.mark.parametrize(("group", "guidance"), [("m", 5.0), ("m_nocfg", 0.0)])
def test_exact_gives_the_golden_latents(
    group: str, guidance: float, rows: dict[str, Tensor], original: Original, script: Sampler
) -> None:
    handle = flashu.apply_flashu_patch(original, "exact")
    x = script(original, guidance)
    assert float((x[2:3] - rows[f"{group}.final"]).abs().max()) <= ODE
    assert torch.equal(x[:2], rows["m.history"])  # as they were
    if guidance:
        assert torch.equal(x[5], x[2])
        assert torch.equal(x[3:5], rows["m.z"].expand(2, -1, -1, -1))
    assert [record.tokens for record in handle.trace] == [17] * 7
    assert not x.is_inference()


def test_another_history_and_a_stop_begin_afresh(
    rows: dict[str, Tensor], original: Original, script: Sampler, caplog: pytest.LogCaptureFixture
) -> None:
    handle = flashu.apply_flashu_patch(original, "exact")
    whole = script(original)
    script(original, stop=3)
    assert torch.equal(script(original), whole)
    assert len(handle.trace) == 7
    rows["m.history"].neg_()
    try:
        other = script(original, stop=4)
    finally:
        rows["m.history"].neg_()
    assert len(handle.trace) == 4
    assert not torch.allclose(other[2], whole[2])
    assert not caplog.records


def test_flashu_saves_work_there_too(original: Original, script: Sampler) -> None:
    config = flashu.FlashUConfig(r_LS=0.34, T_LS=4, T_cache=3, understanding=flashu.UnderstandingConfig(r_LS=0.2))
    handle = flashu.apply_flashu_patch(original, config)
    assert script(original).isfinite().all()
    assert script(original).isfinite().all()
    assert any(record.rows == 0 for record in handle.trace)
    assert handle.calibration is not None
    assert "generation" in handle.calibration.scores


def test_other_rows_are_left_to_the_original(
    rows: dict[str, Tensor], original: Original, script: Sampler, caplog: pytest.LogCaptureFixture
) -> None:
    left: list[object] = []
    original.t2i_generate = lambda image_latents, **given: left.append(given) or torch.zeros_like(image_latents)  # type: ignore[method-assign]
    flashu.apply_flashu_patch(original, "exact")
    where = rows["m.modality_positions"].clone()
    where[1, 0, 0] = 1  # earlier images elsewhere in the unconditional row
    ids = rows["m.text_tokens"]
    script(original, stop=1, modality_positions=where, attention_mask=dense(ids, where))
    script(original, stop=1, attention_mask=torch.zeros(2, 1, 128, 128))
    assert len(left) == 2
    assert "one after another" in caplog.text
    assert "mask" in caplog.text
