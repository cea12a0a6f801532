"""Adapters: they change what is drawn, and nothing else."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from flashu.errors import CheckpointError, FlashUError, RecipeError
from flashu.models.adapter import Adapter
from flashu.models.lora import ScaleRange
from flashu.plan.recipe import Recipe
from flashu.runtime.executor import Executor
from flashu.runtime.runner import Runner
from tests.models.bagel.golden.engines import engine, said
from tests.models.bagel.golden.recorded import model

PICTURE = torch.zeros(3, 8, 8)
RANGES = {"text": ScaleRange(1.0, 5.0, 4.0), "image": ScaleRange(1.0, 2.5)}


def untrained(**more):
    return Adapter.new(model(), steps=6, shift=3.0, guidance=RANGES, **{"rank": 4, "alpha": 8.0} | more)


def trained(**more):
    """One whose every weight differs from the start."""
    adapter, g = untrained(**more), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in adapter.named_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=g) * 0.05)
    return adapter


def draw(one, **settings):
    return one.generate(said("prompt"), decode=False, **settings)


def edit(one, **settings):
    return one.edit(PICTURE, said("edit_text"), decode=False, **settings)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_an_untrained_one_draws_as_the_model_without_guidance(kind):
    base = engine()
    own = base.with_recipe(adapter=untrained(kind=kind))
    assert torch.equal(draw(own).latents, draw(base, steps=6, shift=3.0, guidance=1.0).latents)
    assert torch.equal(edit(own).latents, edit(base, steps=6, shift=3.0, text_guidance=1.0).latents)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_it_changes_drawings_alone(kind):
    base, before = engine(), {name: p.clone() for name, p in model().named_parameters()}
    own = base.with_recipe(adapter=trained(kind=kind))
    assert not torch.allclose(draw(own).latents, draw(base, steps=6, shift=3.0, guidance=1.0).latents)
    assert own.answer(PICTURE, said("question")).tokens == base.answer(PICTURE, said("question")).tokens
    assert all(torch.equal(p, before[name]) for name, p in model().named_parameters())


def test_what_stands_before_a_drawing_is_the_models():
    base = engine()
    own = base.with_recipe(adapter=trained())

    def context(one):
        from flashu.inference.actions import DrawRequest

        (run,) = one.runs_to_draw([DrawRequest(said("edit_text"), 0, 6, 1.0, images=(PICTURE,))])
        run.step(one.executor())
        return run.contexts["main"].kv(None)

    with torch.inference_mode():
        for a, b in zip(context(own).layers, context(base).layers, strict=True):
            assert torch.equal(a[0], b[0])
            assert torch.equal(a[1], b[1])


def test_one_row_per_step_and_its_scales_count():
    own = engine().with_recipe(adapter=trained())
    done = edit(own)
    assert [step.rows for step in done.traces[0]] == [1] * 6
    assert torch.equal(draw(own).latents, draw(own, guidance=4.0).latents)
    assert not torch.equal(draw(own).latents, draw(own, guidance=2.0).latents)
    assert not torch.equal(draw(own).latents, draw(own, image_guidance=2.0).latents)


def test_merged_draws_alike():
    base, adapter = engine(), trained()
    own = base.with_recipe(adapter=adapter)
    (run,) = own.runs_to_draw([request()])
    merged = Executor(Runner(model()), drawing=Runner(adapter.merged(model())))
    with torch.inference_mode():
        while not run.done:
            run.step(merged)
    torch.testing.assert_close(run.drawn[-1], draw(own).latents[0], atol=1e-5, rtol=1e-5)


def request():
    from flashu.inference.actions import DrawRequest

    return DrawRequest(said("prompt"), 0)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_saved_and_loaded(kind, tmp_path):
    adapter = trained(kind=kind)
    adapter.save(tmp_path)
    loaded = Adapter.load(tmp_path, model())
    assert loaded.facts == adapter.facts
    own = engine().with_recipe(adapter=tmp_path)
    assert torch.equal(draw(own).latents, draw(engine().with_recipe(adapter=adapter)).latents)


def test_refused(tmp_path, caplog):
    adapter, base = trained(), engine()
    adapter.save(tmp_path)
    own = base.with_recipe(adapter=tmp_path)
    with pytest.raises(FlashUError, match="from 1 to 5, not 7"):
        draw(own, guidance=7.0)
    with pytest.raises(FlashUError, match="folded"):
        draw(own, renorm="channel")
    with pytest.raises(RecipeError, match="Euler"):
        base.with_recipe(Recipe(solver="heun"), adapter=tmp_path)
    draw(own, steps=3)
    assert "6 steps, not in 3" in caplog.text
    with pytest.raises(CheckpointError, match="holds no adapter"):
        base.with_recipe(adapter=tmp_path / "missing")
    tensors = load_file(tmp_path / "adapter.safetensors")
    first = next(iter(tensors))
    save_file({name: t for name, t in tensors.items() if name != first}, tmp_path / "adapter.safetensors")
    with pytest.raises(CheckpointError, match="missing or unknown"):
        base.with_recipe(adapter=tmp_path)
    facts = json.loads((tmp_path / "adapter.json").read_text())
    (tmp_path / "adapter.json").write_text(json.dumps(facts | {"base": "0" * 16}))
    with pytest.raises(CheckpointError, match="other weights"):
        base.with_recipe(adapter=tmp_path)
