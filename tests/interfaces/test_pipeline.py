"""The diffusers-compatible pipeline against the engine behind it and against diffusers' own names."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import flashu
from flashu.inference.samplers.solvers import grid
from flashu.models.registry import ASSETS, open_model
from tests.conftest import tiny_model
from tests.fakes.masked import MaskedModel
from tests.fakes.masked import seeded as seeded_model
from tests.fakes.tokens import SIDE, TokenModel


@pytest.fixture
def pipe(tiny_engine: flashu.Engine) -> flashu.Pipeline:
    return flashu.Pipeline(tiny_engine)


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_it_draws_what_the_engine_draws(pipe: flashu.Pipeline) -> None:
    settings: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 4.0, "num_images_per_prompt": 2}
    drawn = pipe(["w1 w2", "w3"], generator=seeded(), output_type="latent", **settings)
    plain = pipe.engine.generate(["w1 w2", "w3"], seed=drawn.seeds, images_per_prompt=2, steps=3, guidance=4.0)
    assert torch.equal(drawn.images, plain.latents)
    pictures = pipe(["w1 w2", "w3"], generator=seeded(), **settings).images
    assert [p.tobytes() for p in pictures] == [p.tobytes() for p in plain.images]


def test_equal_generators_give_equal_images(pipe: flashu.Pipeline) -> None:
    one = pipe("w1", num_inference_steps=2, num_images_per_prompt=2, generator=seeded(), output_type="latent")
    again = pipe("w1", num_inference_steps=2, num_images_per_prompt=2, generator=seeded(), output_type="latent")
    listed = pipe(["w1", "w1"], num_inference_steps=2, generator=[seeded(), seeded(8)], output_type="latent")
    assert one.seeds == again.seeds
    assert torch.equal(one.images, again.images)
    assert listed.seeds[0] == one.seeds[0] != listed.seeds[1]
    assert not torch.equal(one.images[0], one.images[1])
    torch.manual_seed(3)
    free = pipe("w1", num_inference_steps=1).seeds
    assert pipe("w1", num_inference_steps=1).seeds != free
    torch.manual_seed(3)
    assert pipe("w1", num_inference_steps=1).seeds == free
    with pytest.raises(flashu.FlashUError, match="3 generators for 2 images"):
        pipe(["w1", "w2"], generator=[seeded()] * 3)


def test_output_types_show_the_same_pixels(pipe: flashu.Pipeline) -> None:
    kinds = {
        kind: pipe("w5", num_inference_steps=2, generator=seeded(), output_type=kind, height=64, width=32).images
        for kind in ("pil", "np", "pt")
    }
    assert kinds["pil"][0].size == (32, 64)
    assert kinds["np"].shape == (1, 64, 32, 3)
    levels = (kinds["np"][0] * np.float32(255)).astype(np.uint8)
    assert np.array_equal(levels, np.asarray(kinds["pil"][0]))
    assert np.array_equal(kinds["pt"].permute(0, 2, 3, 1).numpy(), kinds["np"])
    with pytest.raises(flashu.FlashUError, match="output_type"):
        pipe("w5", output_type="jpeg")
    (images,) = pipe("w5", num_inference_steps=1, return_dict=False)
    assert images[0].size == (64, 64)


def test_a_callback_sees_every_forward(pipe: flashu.Pipeline) -> None:
    seen: list[tuple[int, float, Tensor]] = []

    def look(one: flashu.Pipeline, index: int, timestep: Tensor, given: dict[str, Tensor]) -> dict[str, Tensor]:
        assert one is pipe
        seen.append((index, float(timestep), given["latents"]))
        return given

    last = pipe("w1", num_inference_steps=4, generator=seeded(), output_type="latent", callback_on_step_end=look)
    assert [index for index, _, _ in seen] == [0, 1, 2, 3]
    assert [t for _, t, _ in seen] == grid(4, 3.0)[:-1].tolist()
    other: list[float] = []  # Heun evaluates inner times twice
    note = lambda one, index, timestep, given: other.append(float(timestep))  # noqa: E731
    heun = flashu.Pipeline(pipe.engine.with_recipe(flashu.Recipe(solver="heun")))
    heun("w1", num_inference_steps=5, callback_on_step_end=note)
    assert other[1] == other[2]
    assert torch.equal(seen[-1][2], last.images)
    with pytest.raises(flashu.FlashUError, match="prompt_embeds"):
        pipe("w1", callback_on_step_end=look, callback_on_step_end_tensor_inputs=["prompt_embeds"])


def test_a_callback_may_change_the_latents(pipe: flashu.Pipeline) -> None:
    def blank(one: Any, index: int, timestep: Tensor, given: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": torch.full_like(given["latents"], 0.5)} if index == 1 else {}

    drawn = pipe("w1", num_inference_steps=2, generator=seeded(), output_type="latent", callback_on_step_end=blank)
    assert torch.equal(drawn.images, torch.full_like(drawn.images, 0.5))


def test_a_callback_may_stop_the_call(pipe: flashu.Pipeline) -> None:
    kept: list[Tensor] = []

    def stop(one: Any, index: int, timestep: Tensor, given: dict[str, Tensor]) -> None:
        kept.append(given["latents"])
        one._interrupt = index == 1

    drawn = pipe("w1", num_inference_steps=4, generator=seeded(), output_type="latent", callback_on_step_end=stop)
    assert pipe.interrupt
    assert len(kept) == 2
    assert torch.equal(drawn.images, kept[-1])
    whole = pipe("w1", num_inference_steps=4, generator=seeded(), output_type="latent")
    assert not pipe.interrupt
    assert not torch.equal(whole.images, drawn.images)

    def fail(*_: Any) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        pipe("w1", num_inference_steps=4, callback_on_step_end=fail)
    again = pipe("w1", num_inference_steps=4, generator=seeded(), output_type="latent")
    assert torch.equal(again.images, whole.images)


def theirs(file: str, function: str) -> dict[str, object]:
    """Names and plain defaults of a function of diffusers, read and not imported (which takes seconds)."""
    package = importlib.util.find_spec("diffusers")
    if package is None or package.origin is None:
        pytest.skip("needs diffusers")
    tree = ast.parse((Path(package.origin).parent / file).read_text())
    [found] = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == function]
    arguments = [*found.args.args, *found.args.kwonlyargs]
    defaults = [*found.args.defaults, *found.args.kw_defaults]
    plain = [d.value if isinstance(d, ast.Constant) else ... for d in defaults]
    return dict(zip([a.arg for a in arguments], [...] * (len(arguments) - len(plain)) + plain, strict=True))


def test_its_arguments_are_those_of_diffusers() -> None:
    ours = inspect.signature(flashu.Pipeline.__call__).parameters
    call = theirs("pipelines/flux/pipeline_flux.py", "__call__")
    assert not ours.keys() - call.keys()
    for name in ("output_type", "num_images_per_prompt", "generator", "return_dict", "callback_on_step_end"):
        assert ours[name].default == call[name]
    push = inspect.signature(flashu.Pipeline.push_to_hub).parameters
    assert list(push)[:6] == list(theirs("utils/hub_utils.py", "push_to_hub"))[:6]


def test_saved_and_loaded_with_its_recipe(tmp_path: Path) -> None:
    pipe = flashu.Pipeline.from_pretrained("scenes", recipe="quality")
    settings: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}
    drawn = pipe("a red circle", generator=seeded(), **settings)
    pipe.save_pretrained(tmp_path)
    twin = flashu.Pipeline.from_pretrained(tmp_path)
    assert twin.engine.recipe == pipe.engine.recipe
    assert twin.engine.calibration is not None
    assert torch.equal(twin("a red circle", generator=seeded(), **settings).images, drawn.images)
    assert flashu.Pipeline.from_pretrained(tmp_path, recipe="exact").engine.recipe.name == "exact"
    with pytest.raises(flashu.FlashUError, match="private"):
        pipe.save_pretrained(tmp_path, private=True)


def test_a_cast_is_loading_with_that_dtype(tmp_path: Path) -> None:
    pipe = flashu.Pipeline.from_pretrained("scenes", recipe="quality")
    pipe("a red circle", num_inference_steps=2)
    assert pipe.to("cpu", torch.bfloat16) is pipe
    assert (pipe.dtype, pipe.device) == (torch.bfloat16, torch.device("cpu"))
    loaded = open_model("scenes", dtype=torch.bfloat16)
    cast = dict(pipe.engine.model.named_buffers())
    assert all(torch.equal(cast[name], buffer) for name, buffer in loaded.named_buffers())
    assert pipe("a red circle", num_inference_steps=2, output_type="pt").images.isfinite().all()
    with pytest.raises(flashu.FlashUError, match="planet"):
        pipe.to(planet="mars")


def test_a_cast_leaves_nothing_in_another_order() -> None:
    """What pruning in place had moved is put back first, and can be put back afterwards."""
    pipe = flashu.Pipeline(flashu.load("scenes", "quality", in_place=True))
    settings: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}
    pipe("a red circle", generator=seeded(), **settings)
    ffns = list(pipe.engine.model.ffns().values())
    assert all(ffn.order is not None for ffn in ffns)
    pipe.to(torch.bfloat16)
    copied = flashu.Pipeline(flashu.load("scenes", "quality", dtype=torch.bfloat16))
    drawn = pipe("a red circle", generator=seeded(), **settings).images
    torch.testing.assert_close(drawn, copied("a red circle", generator=seeded(), **settings).images, rtol=0, atol=0.1)
    pipe.engine.release()
    assert all(ffn.order is None for ffn in ffns)
    for mine, theirs in zip(ffns, copied.engine.model.ffns().values(), strict=True):
        assert torch.equal(mine.down_proj.weight, theirs.down_proj.weight)


@pytest.mark.parametrize("cls", [TokenModel, MaskedModel])
def test_models_that_draw_codes(cls: type[TokenModel]) -> None:
    model = seeded_model(cls)
    pipe = flashu.Pipeline(flashu.Engine(model, model.processor))  # type: ignore[arg-type]
    times: list[Tensor | None] = []

    def look(one: Any, index: int, timestep: Tensor | None, given: dict[str, Tensor]) -> dict[str, Tensor]:
        times.append(timestep)
        return given

    codes = pipe("w1 w2", generator=seeded(), output_type="latent", callback_on_step_end=look).images
    assert torch.equal(codes, pipe.engine.generate("w1 w2", seed=pipe("w1 w2", generator=seeded()).seeds).latents)
    assert times
    assert set(times) == {None}
    pixels = pipe("w1 w2", generator=seeded(), output_type="pt").images
    assert pixels.shape == (1, 3, SIDE, SIDE)
    assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1


def test_without_an_autoencoder_there_are_latents() -> None:
    model = tiny_model()
    assert model.processor is not None
    model.processor.vae = None
    pipe = flashu.Pipeline(flashu.Engine(model, model.processor))
    with pytest.raises(flashu.FlashUError, match="latent"):
        pipe("w1")
    assert pipe("w1", num_inference_steps=1, output_type="latent").images.shape == (1, 4, 8, 8)


def test_outputs_are_indexed_as_diffusers_are(pipe: flashu.Pipeline) -> None:
    out = pipe("w1", num_inference_steps=1, generator=seeded())
    assert out[0] is out["images"] is out.images
    assert out[:2] == out.to_tuple() == (out.images, out.seeds)
    with pytest.raises(KeyError):
        out["latents"]


def test_a_progress_bar(pipe: flashu.Pipeline) -> None:
    file = io.StringIO()
    quiet = pipe("w1", num_inference_steps=3, generator=seeded())
    pipe.set_progress_bar_config(file=file, disable=False, mininterval=0)
    shown = pipe("w1", num_inference_steps=3, generator=seeded())
    assert "3/3" in file.getvalue()
    assert shown.images[0].tobytes() == quiet.images[0].tobytes()


def test_offloading_needs_a_device(pipe: flashu.Pipeline) -> None:
    with pytest.raises(flashu.FlashUError, match="GPU"):
        pipe.enable_model_cpu_offload("cpu")


def test_a_revision_is_fetched_with_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def fetched(name: str, **settings: Any) -> str:
        asked.update(settings, name=name)
        return str(ASSETS / "scenes")

    monkeypatch.setattr("flashu.models.hub.snapshot_download", fetched)
    pipe = flashu.Pipeline.from_pretrained("some/model", revision="v2", token="hf_x", device="cpu")
    assert pipe.engine.model.spec.family == "showo2"
    assert asked == {"name": "some/model", "revision": "v2", "token": "hf_x", "allow_patterns": None}
    with pytest.raises(flashu.FlashUError, match="revision"):
        flashu.Pipeline.from_pretrained("scenes", revision="v2")
