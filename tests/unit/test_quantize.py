"""Eight-bit weights through torchao: applied where it is said, close to the full ones, refused where it cannot be."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.conftest import tiny_model
from tests.recipes import GENERATION, UNDERSTANDING
from torch import nn

import flashu
from flashu.evaluation.scenes_items import fingerprint
from flashu.inference.calibrate.bank import bank
from flashu.models.quantize import SCHEMES, plain, weight_bytes
from flashu.models.weights import checkpoint_hash
from flashu.runtime.rooms import Rooms

pytest.importorskip("torchao")
RECIPE = flashu.Recipe((*GENERATION.values(), *UNDERSTANDING.values()))
ON_CPU = [scheme for scheme in SCHEMES if scheme != "fp8"]
PROJECTIONS = 6 * 7 + 3 * 8 + 2
"""Of the tiny model: 7 in each decoder layer, 8 in each block of the head (one modulates), 2 in its last layer."""


def test_what_is_said_is_what_was_done(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model()
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    before = {name: m.weight.detach().clone() for name, m in linear.items()}
    size = sum(p.nbytes for p in model.parameters())
    with caplog.at_level(logging.INFO, "flashu"):
        done = model.quantize("int8-weight")
    assert f"int8-weight: {PROJECTIONS} projections" in caplog.text
    assert len(done.names) == len(set(done.names)) == PROJECTIONS
    for name, module in linear.items():
        if name in done.names:
            half_a_step = before[name].abs().amax(1, keepdim=True) / 255
            assert ((plain(module.weight) - before[name]).abs() <= 1.01 * half_a_step).all()
        else:
            assert type(module.weight) is nn.Parameter
            assert not name.startswith(("showo.model.layers", "diffusion_head"))
    saved = sum(before[name].numel() * 3 - 4 * len(before[name]) for name in done.names)
    assert done.before == size
    assert size - saved - done.after in range(-len(done.names) * 200, len(done.names) * 200)
    assert done.after == weight_bytes(model)


@pytest.mark.parametrize("scheme", ON_CPU)
def test_drawing_and_answering_stay_close(scheme: str) -> None:
    """The whole model, and pruned: a bank is that of the full weights, rounded."""
    vanilla, narrow = tiny_model(), tiny_model()
    narrow.quantize(scheme)
    drawn = []
    known = flashu.Engine(vanilla, vanilla.processor, RECIPE).calibrate("generation", prompts=["w1"])
    for recipe in ("exact", flashu.Recipe((GENERATION["ffn_prune"],))):
        drawn = [
            flashu.Engine(m, m.processor, recipe, known).generate("w1 w2", steps=6, guidance=0).latents
            for m in (vanilla, narrow)
        ]
        error = (drawn[1] - drawn[0]).norm() / drawn[0].norm()
        assert 0 < error < 0.2
    picture = vanilla.processor.to_pil(torch.zeros(1, 3, 64, 64))[0]
    assert flashu.Engine(narrow, narrow.processor).answer(picture, "w3", max_new_tokens=3)
    own = flashu.Engine(narrow, narrow.processor).calibrate("generation", prompts=["w1"])
    correlation = torch.corrcoef(
        torch.stack((own.scores["generation"].flatten(), known.scores["generation"].flatten()))
    )
    assert correlation[0, 1] > 0.95


@pytest.mark.parametrize("scheme", ON_CPU)
def test_banks_are_as_narrow_as_the_weights(scheme: str) -> None:
    model = tiny_model()
    index = torch.stack([torch.randperm(96)[:48].sort().values for _ in model.layers])
    full = bank(model, index)
    model.quantize(scheme)
    for own, theirs in zip(bank(model, index), full, strict=True):
        assert all(type(a) is type(model.layers[0].mlp.up_proj.weight) for a in own)
        x = torch.randn(4, 64)
        error = (F.linear(x, own[0]) - F.linear(x, theirs[0])).norm() / F.linear(x, theirs[0]).norm()
        assert error < 0.05
        assert all(
            torch.allclose(plain(a), b, atol=0.07 * float(b.abs().max())) for a, b in zip(own, theirs, strict=True)
        )


def test_compiled_rooms_compute_the_same() -> None:
    model = tiny_model()
    model.quantize("int8-weight")
    recipe = flashu.Recipe((GENERATION["ffn_prune"],))
    known = flashu.Calibration("", {"generation": torch.rand(6, 96)})
    eager, compiled = (flashu.Engine(model, model.processor, recipe, known) for _ in range(2))
    torch._dynamo.reset()
    compiled.fitted.rooms = Rooms(compiled=True, backend="eager")
    drawn = [engine.generate("w1 w2", steps=4).latents for engine in (eager, compiled)]
    torch.testing.assert_close(drawn[1], drawn[0], rtol=0, atol=1e-3)


def test_the_language_head_only_if_asked() -> None:
    model = tiny_model()
    assert "showo.lm_head" in model.quantize("int8", lm_head=True).names
    assert type(model.showo.model.embed_tokens.weight) is nn.Parameter


def test_a_quantized_model_is_another_one(tmp_path: Path) -> None:
    model = tiny_model()
    before = checkpoint_hash(model)
    model.quantize("int8-weight")
    assert checkpoint_hash(model) != before
    with pytest.raises(flashu.FlashUError, match="save it before"):
        model.save_pretrained(tmp_path)
    with pytest.raises(flashu.FlashUError, match="already"):
        model.quantize("int8")
    recipe = flashu.Recipe((GENERATION["ffn_prune"],))
    known = flashu.Calibration("", {"generation": torch.rand(6, 96)})
    with pytest.raises(flashu.FlashUError, match="leave in_place out"):
        flashu.Engine(model, model.processor, recipe, known, in_place=True).generate("w1", steps=1)


def test_what_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    with pytest.raises(flashu.FlashUError, match="give int8, int8-weight"):
        model.quantize("int7")
    with pytest.raises(flashu.FlashUError, match="not both"):
        flashu.load("scenes", quantize="int8", offload=True)
    if not torch.cuda.is_available():
        with pytest.raises(flashu.FlashUError, match="cpu cannot compute in fp8"):
            model.quantize("fp8")
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(flashu.FlashUError, match=r"flashu\[quant\]"):
        model.quantize("int8")
    assert all(type(p) is nn.Parameter for p in model.parameters())


def test_schemes_of_the_same_weights_are_told_apart() -> None:
    """int8 and int8-weight round weights alike; a ledger must not take the one's results for the other's."""
    models = [tiny_model() for _ in range(3)]
    for model, scheme in zip(models[1:], ("int8", "int8-weight"), strict=True):
        model.quantize(scheme)
    assert checkpoint_hash(models[1]) == checkpoint_hash(models[2])
    told = [json.dumps(fingerprint(flashu.Engine(m, m.processor), "generation")) for m in models]
    assert len(set(told)) == 3
