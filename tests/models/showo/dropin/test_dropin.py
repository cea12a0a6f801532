"""Scripts of the original authors, unchanged, on an instance of their class: the same codes and tokens, or FlashU's."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor

import flashu
from flashu import FlashUConfig, FlashUError, Recipe, RecipeError
from flashu.bench.dropin import time_drop_in
from flashu.models.showo import naive
from flashu.plan.presets import fitting
from tests.models.showo.dropin.authors import CONFIG, Showo, tiny
from tests.models.showo.golden.recorded import ABOUT, IDS, SIZES, close, goldens
from tests.recipes import GENERATION, UNDERSTANDING, subsets

SETTINGS = ABOUT["seeds_and_hparams"]


@pytest.fixture
def model() -> Showo:
    return tiny()


def additive(allowed: Tensor) -> Tensor:
    """As the authors' mask functions give it."""
    return naive.additive(allowed.bool(), torch.float32)


def draw(model: Any, group: str = "c", **changes: Any) -> tuple[Tensor, Tensor]:
    """Their text-to-image call: (codes, the rows it was given, as they are after it)."""
    golden = goldens()
    rows = golden[f"{group}.input_ids_per_step"][0].clone()
    guided, seed = group != "c_nocfg", {"c": "sample_seed", "c_nocfg": "nocfg_seed", "c_inpaint": "inpaint_seed"}[group]
    given = {
        "input_ids": rows,
        "uncond_input_ids": golden["a.uncond_input_ids"].clone() if guided else None,
        "attention_mask": additive(golden["a.mask_allowed"][: len(rows) * (1 + guided)]),
        "guidance_scale": SETTINGS["guidance"] if guided else 0,
        "timesteps": len(golden[f"{group}.masking"]),
        "generator": torch.Generator().manual_seed(SETTINGS[seed]),
        "config": CONFIG,
        "uni_prompting": None,
        "noise_type": "mask",
    }
    return model.t2i_generate(**(given | changes)), rows


def ask(model: Any, name: str = "d0", **changes: Any) -> list[int]:
    golden = goldens()
    given: dict[str, Any] = {"max_new_tokens": len(golden[f"{name}.tokens"]), "top_k": 1, "temperature": 0.8}
    given["attention_mask"] = additive(golden[f"{name}.mask_allowed"])
    return [int(token) for token in model.mmu_generate(golden[f"{name}.input_ids"], **given | changes)]


# -- the stand-in, then the drop-in -------------------------------------------------------------------------------
@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize("group", ["c", "c_nocfg", "c_inpaint"])
def test_codes_are_those_of_the_original(model: Showo, group: str, patched: bool) -> None:
    """From the caller's own generator; the rows are written over as the original does."""
    if patched:
        flashu.apply_flashu_patch(model, "exact")
    codes, rows = draw(model, group)
    assert torch.equal(codes, goldens()[f"{group}.tokens"])
    assert torch.equal(rows, goldens()[f"{group}.final_input_ids"])
    assert (model.calls == 0) == patched


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize("name", ["d0", "d1"])
def test_tokens_are_those_of_the_original(model: Showo, name: str, patched: bool) -> None:
    if patched:
        flashu.apply_flashu_patch(model, "exact")
    assert ask(model, name) == goldens()[f"{name}.tokens"].tolist()
    assert ask(model, name, max_new_tokens=0) == []
    stop = int(goldens()[f"{name}.tokens"][3])
    assert ask(model, name, eot_token=stop)[-1] == stop
    assert (model.calls == 0) == patched


def test_transformers_phi_is_the_decoder(model: Showo) -> None:
    golden = goldens()
    mask = additive(naive.drawing_mask(golden["b.input_ids"], IDS["pad"], IDS["soi"], IDS["eoi"]))
    close(model(golden["b.input_ids"], attention_mask=mask), golden["b.logits"])


@pytest.mark.parametrize("patched", [False, True])
def test_features_as_input(patched: bool) -> None:
    model, about = tiny(w_clip_vit=True), ABOUT["vit_variant"]
    generator = torch.Generator().manual_seed(SETTINGS["vit"]["feature_seed"])
    start, stop = about["all_rows_may_attend_columns"]
    features = torch.randn(1, stop - start, SIZES["phi_config"]["hidden_size"], generator=generator)
    before = torch.tensor([[IDS["mmu"], *about["system_ids"], IDS["soi"]]])
    after = torch.tensor([[IDS["eoi"], *about["question_ids"]]])
    embed = model.showo.model.embed_tokens
    x = torch.cat((embed(before), features, embed(after)), dim=1)
    mask = additive(naive.features_mask(x.shape[1], start, stop - start))
    if patched:
        flashu.apply_flashu_patch(model, "exact")
    tokens = model.mmu_generate(input_embeddings=x, attention_mask=mask, max_new_tokens=6, top_k=1)
    assert [int(token) for token in tokens] == goldens()["f.tokens"].tolist()


def test_sampled_answers_come_from_the_same_generator(model: Showo) -> None:
    given = {"top_k": 20, "temperature": 1.5}
    torch.manual_seed(3)
    plain = ask(model, **given)
    flashu.apply_flashu_patch(model, "exact")
    torch.manual_seed(3)
    assert ask(model, **given) == plain


def test_the_global_generator_goes_on_as_with_the_original(model: Showo) -> None:
    after = []
    for _ in range(2):
        torch.manual_seed(5)
        codes, _ = draw(model, generator=None)
        after.append((codes, torch.rand(1)))
        if not after[1:]:
            flashu.apply_flashu_patch(model, "exact")
    assert torch.equal(after[0][0], after[1][0])
    assert after[0][1] == after[1][1]


def test_another_schedule_is_the_callers(model: Showo) -> None:
    given = {"noise_schedule": lambda t: 1 - t, "temperature": 2.0}
    plain, _ = draw(model, **given)
    flashu.apply_flashu_patch(model, "exact")
    assert torch.equal(draw(model, **given)[0], plain)
    assert not torch.equal(draw(model)[0], plain)


# -- what is left to the original -------------------------------------------------------------------------------
def test_other_calls_go_to_the_original_and_say_so(model: Showo, caplog: pytest.LogCaptureFixture) -> None:
    flashu.apply_flashu_patch(model, "exact")
    causal = torch.ones(6, 1, SIZES["row_length"], SIZES["row_length"]).tril()
    with caplog.at_level(logging.WARNING, "flashu"):
        draw(model, attention_mask=additive(causal))
    assert model.calls == 8
    assert "the mask is not that of prompts and images" in caplog.text
    rows = goldens()["c.input_ids_per_step"][0].clone()
    rows[:, -1] = 3
    with caplog.at_level(logging.WARNING, "flashu"):
        draw(model, input_ids=rows)
        ask(model, attention_mask=additive(torch.eye(26)))
    assert model.calls == 16 + 12
    assert "soi, codes or masks, and eoi" in caplog.text
    assert "not causal with one part that all see" in caplog.text


def test_text_alone_is_answered(model: Showo) -> None:
    ids = torch.tensor([[IDS["sot"], 5, 6, 7]])
    mask = additive(torch.ones(4, 4).tril())[None, None]
    given: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 5, "top_k": 1}
    plain = [int(token) for token in model.mmu_generate(ids, **given)]
    flashu.apply_flashu_patch(model, "paper")
    assert [int(token) for token in model.mmu_generate(ids, **given)] == plain


def test_another_kind_of_module_is_refused() -> None:
    with pytest.raises(FlashUError, match="no model of ours"):
        flashu.apply_flashu_patch(torch.nn.Linear(2, 2), "exact")
    broken = tiny()
    del broken.showo.model.layers[0].mlp.fc1
    with pytest.raises(FlashUError, match="not a Show-o of the original class"):
        flashu.apply_flashu_patch(broken, "exact")
    with pytest.raises(RecipeError, match="another family"):
        flashu.apply_flashu_patch(tiny(), Recipe(reference=True))


# -- methods and life of a patch ------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", subsets(GENERATION))
def test_every_recipe_draws(model: Showo, name: str) -> None:
    recipe = fitting(subsets(GENERATION)[name], tiny_spec(model))
    if not recipe.methods:
        return
    behind = flashu.apply_flashu_patch(model, recipe)
    codes, _ = draw(model)
    assert codes.shape == (3, SIZES["num_vq_tokens"])
    assert int(codes.max()) < SIZES["codebook_size"]
    assert len(behind.trace) == recipe.forwards(8)
    assert model.calls == 0


@pytest.mark.parametrize("name", subsets(UNDERSTANDING))
def test_every_recipe_answers(model: Showo, name: str) -> None:
    behind = flashu.apply_flashu_patch(model, subsets(UNDERSTANDING)[name])
    assert len(ask(model)) == 12
    assert behind.calibration is not None or name == "layer_skip"
    assert model.calls == 0


def tiny_spec(model: Showo) -> Any:
    from flashu.models.showo.dropin.adopt import adopted

    return adopted(model).spec


def test_the_paper_patch_and_its_removal(model: Showo) -> None:
    before = copy.deepcopy(model.state_dict())
    flashu.apply_flashu_patch(model, FlashUConfig())
    draw(model)
    ask(model)
    assert "t2i_generate" not in vars(copy.deepcopy(model))
    flashu.remove_flashu_patch(model)
    assert "t2i_generate" not in vars(model)
    assert torch.equal(draw(model)[0], goldens()["c.tokens"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("assign", [False, True])  # into its parameters, or others instead of them
def test_the_instance_may_change_in_between(model: Showo, assign: bool) -> None:
    flashu.apply_flashu_patch(model, "exact")
    draw(model)
    other = {name: value * 1.1 for name, value in model.state_dict().items()}
    model.load_state_dict(other, assign=assign)
    changed, _ = draw(model)
    plain = tiny()
    plain.load_state_dict(other)
    assert torch.equal(changed, draw(plain)[0])


@pytest.mark.parametrize(("task", "settings"), [("t2i", {"steps": 3}), ("mmu", {"new_tokens": 4})])
def test_their_loops_are_timed(model: Showo, task: str, settings: dict[str, int]) -> None:
    _, exact = time_drop_in(model, task, {"exact": Recipe(name="exact")}, repeats=1, **settings)
    assert exact.difference == 0
