"""Eight-bit weights through torchao: applied where it is said, close to the full ones, refused where it cannot be."""

from __future__ import annotations

import gc
import json
import logging
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

import flashu
from flashu.evaluation.scenes_items import fingerprint
from flashu.inference.calibrate.bank import Mask, bank
from flashu.models.memory import held_bytes
from flashu.models.quantize import SCHEMES, plain
from flashu.models.weights import checkpoint_hash
from flashu.runtime.compile import LayerCalls
from tests.conftest import tiny_model
from tests.recipes import GENERATION, UNDERSTANDING

pytest.importorskip("torchao")
RECIPE = flashu.Recipe((*GENERATION.values(), *UNDERSTANDING.values()))
ON_CPU = [scheme for scheme in SCHEMES if scheme != "fp8"]
PROJECTIONS = 6 * 7 + 3 * 8 + 2
"""Of the tiny model: 7 in each decoder layer, 8 in each block of the head (one modulates), 2 in its last layer."""


def distinct_buffers(model: nn.Module) -> list[Tensor]:
    return list({id(buffer): buffer for buffer in model.buffers()}.values())


@pytest.mark.parametrize("scheme", ON_CPU)
def test_what_it_says_is_freed_is_freed(scheme: str, caplog: pytest.LogCaptureFixture) -> None:
    """Of a model as it is loaded: no storage of a projection lives on, in whatever tensor."""
    model = flashu.ShowO2.from_pretrained("scenes", dtype=torch.bfloat16)
    held = held_bytes(model)
    projections = [part for group in model.projections() for part in group.modules() if isinstance(part, nn.Linear)]
    full = [StorageWeakRef(layer.weight.untyped_storage()) for layer in projections]
    numbers = sum(layer.weight.numel() for layer in projections)
    rows = sum(layer.out_features for layer in projections)
    with caplog.at_level(logging.INFO, "flashu"):
        done = model.quantize(scheme)
    gc.collect()
    assert all(storage.expired() for storage in full)
    assert (done.before, done.after) == (held, held_bytes(model))
    # Two bytes of every number become one, and every row gets a scale and at most a zero point.
    assert numbers - 12 * rows <= done.before - done.after <= numbers - 2 * rows
    assert f"weights {done.before / 1e6:,.1f} MB -> {done.after / 1e6:,.1f} MB" in caplog.text


def test_what_is_said_is_what_was_done(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model()
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    before = {name: m.weight.detach().clone() for name, m in linear.items()}
    size = sum(p.nbytes for p in model.parameters()) + sum(b.nbytes for b in distinct_buffers(model))
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
    assert done.after == held_bytes(model)


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
    index: Mask = [torch.randperm(96)[:48].sort().values for _ in model.layers]
    full = bank(model, index)
    model.quantize(scheme)
    narrow = bank(model, index)
    assert narrow.keys() == full.keys()
    for key, (inputs, output) in narrow.items():
        x = torch.randn(4, 64)
        for own, theirs in zip((*inputs, output), (*full[key].inputs, full[key].output), strict=True):
            assert type(own.weight) is type(model.layers[0].mlp.up_proj.weight)
            assert torch.allclose(plain(own.weight), theirs.weight, atol=0.07 * float(theirs.weight.abs().max()))
        whole = F.linear(x, full[key].inputs[0].weight)
        assert (F.linear(x, inputs[0].weight) - whole).norm() / whole.norm() < 0.05


def test_compiled_layers_compute_the_same() -> None:
    model = tiny_model()
    model.quantize("int8-weight")
    recipe = flashu.Recipe((GENERATION["ffn_prune"],))
    known = flashu.Calibration("", {"generation": torch.rand(6, 96)})
    eager, compiled = (flashu.Engine(model, model.processor, recipe, known) for _ in range(2))
    torch._dynamo.reset()
    compiled.prepared.calls = LayerCalls(True, backend="eager")
    drawn = [engine.generate("w1 w2", steps=4).latents for engine in (eager, compiled)]
    torch.testing.assert_close(drawn[1], drawn[0], rtol=0, atol=1e-3)


def test_the_language_head_only_if_asked() -> None:
    model = tiny_model()
    assert "showo.lm_head" in model.quantize("int8", lm_head=True).names
    assert type(model.showo.model.embed_tokens.weight) is nn.Parameter


def test_a_quantized_model_stays_as_it_is(tmp_path: Path) -> None:
    model = tiny_model()
    model.quantize("int8-weight")
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
    with pytest.raises(flashu.FlashUError, match=r"\.\[quant\]"):
        model.quantize("int8")
    assert all(type(p) is nn.Parameter for p in model.parameters())


def test_schemes_of_the_same_weights_are_told_apart() -> None:
    """They are of one checkpoint, and round weights alike; a ledger must not take the one's results for the other's."""
    models = [tiny_model() for _ in range(3)]
    for model, scheme in zip(models[1:], ("int8", "int8-weight"), strict=True):
        model.quantize(scheme)
    assert len({checkpoint_hash(model) for model in models}) == 1
    told = [json.dumps(fingerprint(flashu.Engine(m, m.processor), "generation")) for m in models]
    assert len(set(told)) == 3
