"""Exact training and UniMoD under others' training loops: the calls, losses and gradients of their own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.emu3.golden import recorded as emu3
from tests.models.showo.golden import recorded as showo
from tests.training.standins import emu3_call, original_showo, showo_call, transformers_emu3
from tests.training.unimod import ABOUT, batch, config, goldens, parts, routers
from torch import nn

import flashu
import flashu.training
from flashu.training import patch
from flashu.training.exact import Savings
from flashu.training.mod import UniModConfig
from flashu.training.patch import apply_unimod, remove_unimod


def made(family: str) -> tuple[nn.Module, dict[str, Any]]:
    return (original_showo(), showo_call()) if family == "showo" else (transformers_emu3(), emu3_call())


def total(family: str, output: Any) -> torch.Tensor:
    if family == "emu3":
        return output.loss
    _, t2i, lm, mmu = output
    return t2i + 0.1 * lm + mmu


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


ALONE = [{name: value} for name, value in (("padding", True), ("last_layer", True), ("head", True), ("causal", True))]
ALONE += [{"head": True, "chunk": 7}, {"checkpoint": True}, Savings().__dict__, Savings(chunk=16, waste=0.9).__dict__]


@pytest.mark.parametrize("family", ["showo", "emu3"])
def test_exact_training_is_the_same_training(family: str) -> None:
    model, call = made(family)
    expected = total(family, model(**call))
    before = gradients(model, expected)
    for savings in ALONE:
        apply_unimod(model, **(Savings.none().__dict__ | savings))
        loss = total(family, model(**call))
        after = gradients(model, loss)
        assert abs(float(loss.detach() - expected.detach())) < 1e-5, savings
        assert before.keys() == after.keys()
        for name, golden in before.items():
            assert float((after[name] - golden).norm()) <= 1e-5 * float(golden.norm()) + 1e-7, (savings, name)
        remove_unimod(model)
    again = model(**call)
    assert torch.equal(total(family, again), expected)


@pytest.mark.parametrize("family", ["showo", "emu3"])
def test_unimod_of_the_original_class(family: str) -> None:
    model, call = made(family)
    spec = patch._tuning(model).model.spec
    behind = apply_unimod(model, config(family, "preset"), routers=routers(family, "preset", spec))
    output = model(**call)
    golden = goldens()[f"{family}.preset.losses"]
    if family == "showo":
        _, t2i, lm, mmu = output
        auxiliary = 0.01 * golden[4]
        ours = torch.stack([t2i - auxiliary, lm, mmu])
        torch.testing.assert_close(ours.detach(), golden[:3], atol=ABOUT["suggested_tolerances"]["losses_abs"], rtol=0)
    else:
        counts = [(call["labels"][part, 1:] >= 0).sum() for part in parts("emu3").values()]
        mean = (golden[0] * counts[0] + golden[1] * counts[1]) / sum(counts)
        torch.testing.assert_close(output.loss.detach(), mean + 0.01 * golden[3], atol=3e-5, rtol=0)
    total(family, output).backward()
    assert all(w.grad is not None and bool(w.grad.any()) for w in behind.routers.parameters())
    assert not [name for name in model.state_dict() if "router" in name]
    remove_unimod(model)
    assert "forward" not in model.__dict__


def test_calls_without_labels_give_logits() -> None:
    for family in ("showo", "emu3"):
        model, call = made(family)
        call = {k: v for k, v in call.items() if k in ("input_ids", "attention_mask")}
        with torch.no_grad():
            expected = model(**call)
            apply_unimod(model, "dense")
            ours = model(**call)
        if family == "emu3":
            expected, ours = expected.logits, ours.logits
            real = call["attention_mask"].bool()
        else:
            real = call["input_ids"] != showo.IDS["pad"]
        torch.testing.assert_close(ours[real], expected[real], atol=5e-5, rtol=0)


def test_pictures_are_encoded_as_in_evaluation() -> None:
    """Batch statistics of the image tokenizer neither change nor are used."""
    model = transformers_emu3()
    g = emu3.goldens()
    ids, mask = g["und.input_ids"], g["und.attention_mask"]
    call = {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": g["vq.pixel_values"],
        "image_sizes": g["vq.image_sizes"],
    }
    state = {name: value.clone() for name, value in model.model.vqmodel.state_dict().items()}
    apply_unimod(model, "dense", dropout="off")
    model.train()
    with torch.no_grad():
        logits = model(**call).logits
    torch.testing.assert_close(logits[:, -1], g["und.logits"], atol=3e-4, rtol=0)
    assert all(torch.equal(value, state[name]) for name, value in model.model.vqmodel.state_dict().items())
    assert model.model.vqmodel.training


def test_what_cannot_be_trained_says_so() -> None:
    model, call = made("emu3")
    with pytest.raises(flashu.FlashUError, match="not patched"):
        remove_unimod(model)
    apply_unimod(model, "emu3-paper")
    model.train()
    with pytest.raises(flashu.FlashUError, match="dropout"):
        model(**call)
    with pytest.raises(flashu.FlashUError, match="layers 0 to 7"):
        apply_unimod(model, UniModConfig({"t2i": {8: 0.5}}))
    with pytest.raises(flashu.FlashUError, match="known are"):
        apply_unimod(model, "no-such-preset")
    with pytest.raises(flashu.FlashUError, match="no class whose training"):
        apply_unimod(nn.Linear(2, 2))
    with pytest.raises(flashu.FlashUError, match="engine"):
        model.eval()(**(call | {"cache": object()}))


def test_frozen_parts_get_no_gradients() -> None:
    model, call = made("emu3")
    model.requires_grad_(False)
    behind = apply_unimod(model, "emu3-paper", chunk=16)
    model.model.text_model.layers[5].mlp.up_proj.requires_grad_()
    model(**call).loss.backward()
    learnt = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learnt == {"model.text_model.layers.5.mlp.up_proj.weight"}
    assert all(w.grad is not None for w in behind.routers.parameters())


def test_prepare_takes_ours_and_theirs() -> None:
    ours = flashu.training.prepare(emu3.model(), waste=0.5)
    theirs, call = made("emu3")
    expected = theirs(**call).loss
    losses = ours(batch("emu3"))
    sums = sum(losses.tasks[task] * count for task, count in losses.counts.items())
    torch.testing.assert_close(sums / sum(losses.counts.values()), expected, atol=1e-5, rtol=0)
    flashu.training.prepare(theirs, chunk=8)
    torch.testing.assert_close(theirs(**call).loss, expected, atol=1e-5, rtol=0)
    with pytest.raises(flashu.FlashUError, match="unknown savings paddings"):
        flashu.training.prepare(emu3.model(), paddings=False)


def test_inside_transformers_trainer(tmp_path: Path) -> None:
    """Its batches, its accumulation, its optimizer; losses are those of the plain loop."""
    transformers = pytest.importorskip("transformers")
    model, call = made("emu3")
    rows = [{name: value[n] for name, value in call.items()} for n in range(4)]
    behind = flashu.apply_unimod(model, "emu3-paper", dropout="off")
    parameters = [*model.parameters(), *behind.routers.parameters()]
    before = {name: w.clone() for name, w in behind.routers.weight.items()}
    settings = transformers.TrainingArguments(
        str(tmp_path), per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=2, logging_steps=1,
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    optimizers = torch.optim.AdamW(parameters, lr=1e-3), None
    trainer = transformers.Trainer(model, settings, train_dataset=rows, optimizers=optimizers)
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 2
    assert logged[1] < logged[0]
    assert all(not torch.equal(w, before[name]) for name, w in behind.routers.weight.items())
