"""The high-resolution models at their real sizes, on the meta device: keys, grids, rows and whole runs as shapes."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from flashu.inference.actions import Action, AnswerRequest, Draw, DrawRequest
from flashu.inference.run import Run
from flashu.models.defaults import GenerationDefaults
from flashu.models.showo2.layout import ShowO2Layout
from flashu.models.showo2.model import ShowO2
from flashu.models.showo2.official import VOCABULARY, max_text, official_config, official_defaults
from flashu.models.showo2.random import named_model
from flashu.plan.recipe import Recipe, exact
from flashu.runtime.blocks import TOGETHER
from flashu.runtime.executor import Executor
from flashu.runtime.request import Output
from flashu.runtime.runner import Runner
from tests.conftest import GOLDEN

META = torch.device("meta")
SIZES = {"showo2-1.5b-hq-512": (512, 1024, 1280), "showo2-1.5b-hq": (1024, 4096, 4352)}


@pytest.mark.parametrize(("side", "pixels", "row"), [(32, 512, 1280), (64, 1024, 4352)])
def test_the_official_settings(side: int, pixels: int, row: int) -> None:
    """Those of the original's configs for 512 and 1024 px, and the length of its rows."""
    llm = "Qwen/Qwen2.5-1.5B-Instruct"
    config = official_config({"llm_model_path": llm, "image_latent_height": side, "image_latent_width": side})
    assert official_defaults(config) == GenerationDefaults(20, 5.0, 3.0, pixels, pixels)
    assert max_text(config) + side * side + 5 == row
    with META:
        model = ShowO2(config)
    manifest = json.loads((GOLDEN / "showo2_1.5b_manifest.json").read_text())
    folded = manifest["state_dict"]
    expected = {name.replace("*", str(i)): shape for name, (n, shape, _) in folded.items() for i in range(n)}
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == expected


@pytest.mark.parametrize("name", SIZES)
@torch.inference_mode()
def test_a_drawing_and_an_answer(name: str) -> None:
    """The first forward of each, through the executor."""
    pytest.importorskip("diffusers")  # the autoencoder
    pixels, count, row = SIZES[name]
    model, processor = named_model(name, torch.bfloat16, META)
    assert (processor.defaults.height, processor.defaults.width, processor.defaults.steps) == (pixels, pixels, 20)
    layout, seen = ShowO2Layout(model, processor), list[tuple[int, ...]]()
    model.und_trans.register_forward_hook(lambda _m, args, _o: seen.append(tuple(args[0].shape)))
    model.layers[0].register_forward_hook(lambda _m, args, _o: seen.append(tuple(args[0].shape)))

    def first_forward(actions: Sequence[Action]) -> Output:
        request = Run(actions, exact(), model.spec).prepare()
        assert request is not None
        return Executor(Runner(model)).forward([request])[0]

    (actions,) = layout.draw([DrawRequest("circle")], exact())
    drawn = first_forward(actions)
    assert drawn.values is not None
    assert drawn.values.shape == (2, 16, pixels // 8, pixels // 8)
    # Large blocks behind contexts of unlike lengths go one by one, so that none of them needs a mask.
    blocks = [(1, count + 1, 1536)] * 2 if 2 * (count + 1) > TOGETHER else [(2, count + 1, 1536)]
    assert sorted(seen) == sorted([(2, 3, 1536), (1, count, 1152), *blocks])
    ((action,),) = layout.draw([DrawRequest("circle")], Recipe(padded=True))
    assert isinstance(action, Draw)
    assert {segment.length for segment in action.sampler(1, "euler").segments(0).values()} == {row}

    (actions,) = layout.answer([AnswerRequest("circle", (np.zeros((8, 8, 3), np.uint8),))])
    words = sum(map(len, processor.text.question("circle")))
    answered = first_forward(actions)
    assert (answered.tokens, answered.past) == (words + 1 + count, 0)
    assert answered.values is not None
    assert answered.values.shape == (1, VOCABULARY)


@pytest.mark.parametrize("side", [32, 64])
def test_the_position_table_is_resized_bicubically(side: int) -> None:
    """27 x 27 positions at another grid, by the cubic convolution kernel (a = -0.75) written out, edges repeated."""
    config = official_config(
        {"llm_model_path": "Qwen2.5-1.5B-Instruct", "image_latent_height": side, "image_latent_width": side}
    )
    with META:
        model = ShowO2(config)
    table = torch.randn(729, 3, generator=torch.Generator().manual_seed(side))
    model.position_embedding.weight = torch.nn.Parameter(table, requires_grad=False)
    ours = model._position_table(torch.empty(1, 16, 2 * side, 2 * side)).reshape(side, side, 3)

    def kernel(x: np.ndarray) -> np.ndarray:
        x, a = np.abs(x), -0.75
        near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
        return np.where(x <= 1, near, np.where(x < 2, far, 0))

    weights = np.zeros((side, 27))
    for to in range(side):
        at = (to + 0.5) * 27 / side - 0.5
        for source in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            weights[to, min(max(source, 0), 26)] += kernel(np.array(at - source))
    expected = np.einsum("ri,cj,ijk->rck", weights, weights, table.reshape(27, 27, 3).double().numpy())
    assert float(np.abs(ours.numpy() - expected).max()) < 1e-5
