"""The authors' text-to-image script on a patched instance: the same latents, and FlashU's with FlashU."""

from __future__ import annotations

import copy
import inspect
import io
import logging
import pickle
import threading
from collections.abc import Callable

import pytest
import torch
from tests.models.showo2.dropin.original import Original, dense
from tests.models.showo2.golden.test_flashu_reference import CONFIGS
from torch import Tensor

import flashu
from flashu.inference.samplers.solvers import grid
from flashu.models.showo2.dropin.grid import evaluations
from flashu.plan.methods import ChangeCache, FFNPrune

Goldens = dict[str, Tensor]
Script = Callable[..., Tensor]
FORWARD, ODE = 1e-4, 2e-3
SEEING = flashu.UnderstandingConfig(r_LS=0.2)  # a tenth of six layers would be none


def apart(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


def known(goldens: Goldens, original: Original) -> flashu.Calibration:
    return flashu.Calibration("tiny", {"generation": goldens["e.wanda_down_proj"]})


@pytest.mark.parametrize(("points", "shift"), [(12, 3.0), (50, 3.0), (100, 3.0), (50, 1.0), (18, 1.0), (20, 6.0)])
def test_the_number_of_evaluations_is_inferred(points: int, shift: float) -> None:
    times = grid(points - 1, shift).tolist()[:-1]
    for seen in range(3, points):
        assert evaluations(times[:seen]) == points - 1
    if shift == 3:
        assert evaluations(times[:2]) == points - 1
    assert evaluations([0.0], 7) == 7
    assert evaluations([0.25, 0.5, 0.75], 7) == 7


def test_the_stand_in_is_the_original(goldens: Goldens, original: Original, script: Script) -> None:
    assert apart(script(original, goldens["c.z"]), goldens["c.final"]) <= ODE


@pytest.mark.parametrize("padded", [False, True])
def test_exact_gives_the_same_latents(padded: bool, goldens: Goldens, original: Original, script: Script) -> None:
    handle = flashu.apply_flashu_patch(original, flashu.Recipe(padded=padded, name="exact"))
    seen: list[Tensor] = []
    assert apart(script(original, goldens["c.z"], seen=seen), goldens["c.final"]) <= ODE
    assert [v.shape for v in seen] == [(6, 4, 8, 8)] * 11
    assert all(torch.equal(*v.chunk(2)) for v in seen)
    assert not any(v.is_inference() or v.requires_grad for v in seen)
    assert handle.trace[0].tokens == (40 if padded else 17)
    assert handle.trace[-1].step.total == 11


def test_exact_gives_the_same_velocities(goldens: Goldens, original: Original, script: Script) -> None:
    theirs: list[Tensor] = []
    script(original, goldens["c.z"], seen=theirs)
    original.t2i = original.t2i_generate
    flashu.apply_flashu_patch(original, "exact")
    both: list[float] = []

    class Both:
        parameters = original.parameters

        def t2i_generate(self, *args: object, **given: object) -> Tensor:
            v = original.t2i(*args, **given)
            both.append(apart(original.t2i_generate(*args, **given), v))
            return v

    script(Both(), goldens["c.z"])
    assert len(both) == 11
    assert max(both) <= FORWARD * 5  # guidance of 5 magnifies the difference of the two branches


def test_exact_without_guidance_and_in_bf16(goldens: Goldens, original: Original, script: Script) -> None:
    plain = script(original, goldens["c.z"], guidance=0.0)
    flashu.apply_flashu_patch(original, "exact")
    assert apart(script(original, goldens["c.z"], guidance=0.0), goldens["c_nocfg.final"]) <= ODE
    assert apart(script(original, goldens["c.z"], guidance=0.0), plain) <= ODE
    original.to(torch.bfloat16)  # the patch follows the cast
    ours: list[Tensor] = []
    script(original, goldens["c.z"], seen=ours, stop=1)
    flashu.remove_flashu_patch(original)
    theirs: list[Tensor] = []
    script(original, goldens["c.z"], seen=theirs, stop=1)
    assert ours[0].dtype == theirs[0].dtype == torch.bfloat16
    assert apart(ours[0].float(), theirs[0].float()) < 0.5  # bf16 forwards differ by 0.1 from fp32 ones, times 5


def test_a_block_mask_is_taken(goldens: Goldens, original: Original, script: Script) -> None:
    flashu.apply_flashu_patch(original, "exact")
    mask = object()  # their predicate mask has no values to read; only the positions count
    assert apart(script(original, goldens["c.z"], attention_mask=mask), goldens["c.final"]) <= ODE


def test_reference_flashu_gives_the_released_program(goldens: Goldens, original: Original, script: Script) -> None:
    for name, config in CONFIGS.items():
        calibration = known(goldens, original)
        handle = flashu.apply_flashu_patch(original, flashu.FlashUConfig(**config), calibration=calibration)
        final = script(original, goldens["e.z"])
        golden = goldens["e.final"] if name == "e" else goldens[f"e_ablation.{name}"]
        assert apart(final, golden) <= ODE, name
        assert len(handle.trace) == 11


def test_flashu_calibrates_on_the_first_image_and_saves_work(
    goldens: Goldens, original: Original, script: Script
) -> None:
    handle = flashu.apply_flashu_patch(original, flashu.FlashUConfig(understanding=SEEING))
    first = script(original, goldens["c.z"])
    assert handle.calibration is not None
    scores = handle.calibration.scores["generation"]
    assert script(original, goldens["c.z"]).equal(first)
    assert handle.calibration.scores["generation"] is scores
    assert sum(record.rows == 0 for record in handle.trace) >= 4
    assert {record.plan.layers.ffn for record in handle.trace} == {"generation", "full"}


def test_a_new_image_and_an_interrupted_one_start_afresh(goldens: Goldens, original: Original, script: Script) -> None:
    handle = flashu.apply_flashu_patch(original, "fast", calibration=known(goldens, original))
    script(original, goldens["c.z"])  # the first image teaches the number of evaluations
    whole = script(original, goldens["c.z"])
    for stop in (1, 2, 5):
        script(original, goldens["c.z"], stop=stop)
        assert script(original, goldens["c.z"]).equal(whole)
    other = goldens["a.text_tokens"].flip(0)
    ids = torch.cat((other, goldens["a.text_tokens_null"]))
    where = torch.cat((goldens["a.modality_positions"].flip(0), goldens["a.modality_positions_null"]))
    more = {"text_tokens": ids, "modality_positions": where, "attention_mask": object()}
    script(original, goldens["c.z"], stop=3)
    flipped = script(original, goldens["c.z"].flip(0), **more)
    assert len(handle.trace) == 11
    assert apart(flipped.flip(0), whole) <= ODE
    assert script(original, goldens["c.z"][:1].expand(3, -1, -1, -1)).isfinite().all()


def test_a_count_of_steps_is_a_hint_and_a_wrong_guess_is_logged(
    goldens: Goldens, original: Original, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    calibration = known(goldens, original)
    config = flashu.FlashUConfig(r_p=0, tau=12, steps=11, understanding=SEEING)
    handle = flashu.apply_flashu_patch(original, config, calibration=calibration)
    script(original, goldens["c.z"])
    assert {record.step.total for record in handle.trace} == {11}
    assert not any(record.plan.probe != "off" for record in handle.trace)  # the last 12 of 11 run the full network
    with caplog.at_level(logging.WARNING, "flashu"):
        config = flashu.FlashUConfig(r_p=0, tau=12, understanding=SEEING)
        flashu.apply_flashu_patch(original, config, calibration=calibration)
        script(original, goldens["c.z"])
    assert "steps=11" in caplog.text


def test_more_evaluations_than_the_hint_says(goldens: Goldens, original: Original, script: Script) -> None:
    config = flashu.FlashUConfig(steps=5, understanding=SEEING)
    handle = flashu.apply_flashu_patch(original, config, calibration=known(goldens, original))
    assert script(original, goldens["c.z"]).isfinite().all()
    assert [record.step.total for record in handle.trace] == [5] * 5 + list(range(6, 12))


def test_latents_may_be_moved_in_place(goldens: Goldens, original: Original) -> None:
    """A method that compares the latents with earlier ones sees them as they were."""
    recipe = flashu.Recipe((ChangeCache("generation", 0.2, 0.2),), name="change")
    ids, where = goldens["a.text_tokens"], goldens["a.modality_positions"]
    given = {"text_tokens": ids, "attention_mask": dense(ids, where), "modality_positions": where}
    times = grid(11, 3.0)
    drawn, reused = [], []
    for in_place in (False, True):
        handle = flashu.apply_flashu_patch(original, recipe)
        x = goldens["c.z"].clone()
        for t, dt in zip(times[:-1], times.diff(), strict=True):
            v = original.t2i_generate(x, torch.ones(len(x)) * t, **given)
            x = x.add_(dt * v) if in_place else x + dt * v
        drawn.append(x)
        reused.append([record.plan.features for record in handle.trace])
    assert torch.equal(*drawn)
    assert "reuse" in reused[0]
    assert reused[0] == reused[1]


def test_statistics_that_no_script_brings_are_asked_for(goldens: Goldens, original: Original, script: Script) -> None:
    recipe = flashu.Recipe((FFNPrune("generation", bank="mine"),), name="own bank")
    flashu.apply_flashu_patch(original, recipe)
    with pytest.raises(flashu.CalibrationError, match="mine"):
        script(original, goldens["c.z"])


def test_what_only_the_original_computes_is_left_to_it(
    goldens: Goldens, original: Original, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    ids, where = goldens["b_two_images.in.text_tokens"], goldens["b_two_images.in.modality_positions"]
    given = {
        "image_latents": goldens["b_two_images.in.latents"],
        "t": goldens["b_two_images.in.t"],
        "text_tokens": ids,
        "attention_mask": torch.zeros(1, 1, 48, 48),
        "modality_positions": where,
    }
    before = original.t2i_generate(**given)
    flashu.apply_flashu_patch(original, "exact")
    with caplog.at_level(logging.WARNING, "flashu"):
        assert original.t2i_generate(**given).equal(before)
        assert original.t2i_generate(**given).equal(before)
    assert caplog.text.count("left to the original") == 1


def test_threads_do_not_mix(goldens: Goldens, original: Original, script: Script) -> None:
    flashu.apply_flashu_patch(original, "fast", calibration=known(goldens, original))
    script(original, goldens["c.z"])
    alone = script(original, goldens["c.z"])
    results: list[Tensor] = []
    threads = [threading.Thread(target=lambda: results.append(script(original, goldens["c.z"]))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert all(result.equal(alone) for result in results)


def test_remove_leaves_nothing(goldens: Goldens, original: Original, script: Script) -> None:
    before, attributes = script(original, goldens["c.z"]), dict(vars(original))
    weights = {k: v.clone() for k, v in original.state_dict().items()}
    flashu.apply_flashu_patch(original, "fast", calibration=known(goldens, original))
    flashu.apply_flashu_patch(original, "exact")  # applying again replaces
    assert inspect.signature(original.t2i_generate) == inspect.signature(Original.t2i_generate).replace(
        parameters=list(inspect.signature(original.t2i_generate).parameters.values()),
        return_annotation=inspect.signature(original.t2i_generate).return_annotation,
    )
    assert list(inspect.signature(original.mmu_generate).parameters) == [
        "input_embeds",
        "attention_mask",
        "max_new_tokens",
        "temperature",
        "top_k",
        "eos_token",
    ]
    script(original, goldens["c.z"])
    flashu.remove_flashu_patch(original)
    assert vars(original) == attributes
    assert script(original, goldens["c.z"]).equal(before)
    assert all(torch.equal(v, weights[k]) for k, v in original.state_dict().items())
    with pytest.raises(flashu.FlashUError, match="not patched"):
        flashu.remove_flashu_patch(original)


def test_copies_and_pickles_are_unpatched(goldens: Goldens, original: Original, script: Script) -> None:
    before = script(original, goldens["c.z"])
    names = set(vars(original))
    flashu.apply_flashu_patch(original, "fast", calibration=known(goldens, original))
    stream = io.BytesIO()
    torch.save(original, stream)
    stream.seek(0)
    copies = (
        copy.deepcopy(original),
        pickle.loads(pickle.dumps(original)),
        torch.load(stream, weights_only=False),
    )
    for twin in copies:
        assert set(vars(twin)) == names
        assert script(twin, goldens["c.z"]).equal(before)
    assert not script(original, goldens["c.z"]).equal(before)


def test_the_patch_follows_the_weights(goldens: Goldens, original: Original, script: Script) -> None:
    """A cast, an in-place load, a load by assignment and weights swapped through ``.data`` (for their average, say) all
    reach the patched methods, pruned FFNs included."""
    flashu.apply_flashu_patch(original, "fast", calibration=known(goldens, original))
    script(original, goldens["c.z"])
    first = script(original, goldens["c.z"])
    weights = {k: v.clone() for k, v in original.state_dict().items()}
    other = {k: v * 1.5 if "mlp.gate" in k else v for k, v in weights.items()}
    original.load_state_dict(other)
    changed = script(original, goldens["c.z"])
    assert not changed.equal(first)
    original.load_state_dict({k: v.clone() for k, v in weights.items()}, assign=True)
    original.showo.lm_head.weight = original.showo.model.embed_tokens.weight
    assert script(original, goldens["c.z"]).equal(first)
    for name, parameter in original.named_parameters():
        if "mlp.gate" in name:
            parameter.data = parameter.data * 1.5
    assert script(original, goldens["c.z"]).equal(changed)
    assert script(original.to(torch.float64), goldens["c.z"]).isfinite().all()


def test_a_forgotten_instance_takes_its_patch_along(original: Original) -> None:
    import gc
    import weakref

    twin = copy.deepcopy(original)
    flashu.apply_flashu_patch(twin, "exact")
    gone = weakref.ref(twin)
    del twin
    gc.collect()
    assert gone() is None


def test_the_callers_sampler_is_the_solver(original: Original) -> None:
    with pytest.raises(flashu.RecipeError, match="sampler"):
        flashu.apply_flashu_patch(original, flashu.Recipe(solver="heun"))
    assert "t2i_generate" not in vars(original)
