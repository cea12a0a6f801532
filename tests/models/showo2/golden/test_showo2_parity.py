"""Show-o2 against tensors of the original program: the naive padded path, the exact engine, and each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import flashu
from flashu.inference.actions import Append, Decode, Draw, DrawRequest
from flashu.inference.run import Run, complete
from flashu.inference.samplers.solvers import grid
from flashu.models.showo2 import naive
from flashu.models.showo2.layout import UNCOND, ShowO2Layout, question
from flashu.models.showo2.layout import words as text_of
from flashu.models.showo2.load import load_model, save_model
from flashu.models.showo2.reference import Reference, additive, with_one_more
from flashu.models.showo2.text import ChatTemplate
from flashu.models.timestep import sinusoid
from flashu.plan import MAIN, LayerPlan
from flashu.plan.guidance import classifier_free
from flashu.plan.recipe import Recipe, exact
from flashu.runtime.executor import Executor
from flashu.runtime.layout import stack, visible
from flashu.runtime.request import Row
from flashu.runtime.runner import Runner
from tests.models.showo2.golden.recorded import (
    LOGITS,
    ODE,
    Goldens,
    Trajectory,
    block_forward,
    close,
    context,
    image_block,
    recorded_noise,
    shown,
    whole_row,
    words,
)

NULL = [250, 252]
pytestmark = pytest.mark.usefixtures("_inference")


@pytest.fixture
def _inference():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def prompts(golden_facts: dict[str, Any]) -> list[str]:
    """Cut to the model's 19 words, as the original cuts them."""
    return [words(ids[:19]) for ids in golden_facts["common"]["prompts_token_ids"]]


def test_a_rows_offsets_and_mask(goldens: Goldens, prompts: list[str], tiny: flashu.ShowO2) -> None:
    text = tiny.processor.text
    rows = [text.prompt(p) for p in prompts]
    assert torch.equal(torch.tensor([text.padded_row(row, 16, 40) for row in rows]), goldens["a.text_tokens"])
    assert torch.equal(torch.tensor([text.padded_row(NULL, 16, 40)] * 3), goldens["a.text_tokens_null"])
    assert text.null_prompt() == NULL
    assert [[len(row), 17] for row in rows] == goldens["a.modality_positions"][:, 0].tolist()
    assert [[len(NULL), 17]] * 3 == goldens["a.modality_positions_null"][:, 0].tolist()

    layouts: dict[str, list[Any]] = {MAIN: [], UNCOND: []}
    requests = [DrawRequest(p) for p in prompts]
    for (action,) in ShowO2Layout(tiny, tiny.processor).draw(requests, Recipe(padded=True)):
        assert isinstance(action, Draw)
        for name, segment in action.sampler(1, "euler").segments(0).items():
            layouts[name].append(segment.layout)
    both = stack([*layouts[MAIN], *layouts[UNCOND]])
    mask = visible(both, both)
    assert mask is not None
    assert torch.equal(mask, goldens["a.mask_allowed"].bool())
    positions = torch.cat((goldens["a.modality_positions"], goldens["a.modality_positions_null"]))
    assert torch.equal(naive.omni_mask(40, positions), goldens["a.mask_allowed"].bool())


@pytest.mark.parametrize("group", ["b", "b_two_images"])
def test_b_every_inner_tensor_of_the_layers_over_whole_rows(group: str, goldens: Goldens, tiny: flashu.ShowO2) -> None:
    g = {name.removeprefix(f"{group}."): t for name, t in goldens.items() if name.startswith(f"{group}.")}
    seen: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            seen[name] = output[0] if isinstance(output, tuple) else output

        return hook

    named = ("image_embedder_und", "image_embedder_gen", "und_trans", "time_embed", "time_embed_proj", "diff_proj")
    handles = [getattr(tiny, name).register_forward_hook(keep(name)) for name in named]
    handles.append(tiny.fusion_proj.register_forward_hook(keep("fused")))
    handles += [b.register_forward_hook(keep(f"head_layer_{n}")) for n, b in enumerate(tiny.diffusion_head_a)]
    handles += [
        layer.register_forward_hook(lambda _m, args, out, n=n: seen.update({f"in{n}": args[0], f"out{n}": out[0]}))
        for n, layer in enumerate(tiny.layers)
    ]
    images = shown(tiny, g["in.latents"], g["in.t"])
    ids, positions = g["in.text_tokens"].tolist(), g["in.modality_positions"].tolist()
    each = len(positions[0])
    rows = [whole_row(row, images[n * each : (n + 1) * each], positions[n]) for n, row in enumerate(ids)]
    contents, runner = [[row.content] for row in rows], Runner(tiny)
    layout = stack([row.layout for row in rows])
    view = runner.view(layout)
    x = torch.stack(tiny.embed([row.content for row in rows]))
    hidden = runner.walk(x, layout, LayerPlan(), view=view).hidden
    e_t, image = tiny.head.condition(contents, len(ids[0]))
    assert e_t is not None
    features, _ = runner.head(hidden, (e_t, image), view, None)
    seen["head_final_all_positions"] = tiny.diffusion_head_b(features, e_t, image)
    for handle in handles:
        handle.remove()

    close(tiny.logits(hidden), g["logits"], LOGITS)
    close(torch.stack([*(seen[f"in{n}"] for n in range(6)), hidden]), g["llm_hidden_states"])
    for name in (*named, "fused", "head_layer_0", "head_layer_1", "head_layer_2", "head_final_all_positions"):
        close(seen[name], g[name])
    if group == "b":
        close(sinusoid(g["in.t"]), g["sinusoid_of_t"], 1e-6)
        assert torch.equal(tiny.showo.model.rotary_emb.inv_freq, g["llm_inv_freq"])
        assert torch.equal(tiny.diffusion_head_a[0].self_attn.rotary_emb.inv_freq, g["head_inv_freq"])


@pytest.mark.parametrize("group", ["b", "b_two_images"])
def test_b_naive_forward(group: str, goldens: Goldens, tiny: flashu.ShowO2) -> None:
    ids, positions = goldens[f"{group}.in.text_tokens"], goldens[f"{group}.in.modality_positions"]
    mask = naive.omni_mask(ids.shape[1], positions)
    latents, t = goldens[f"{group}.in.latents"], goldens[f"{group}.in.t"]
    logits, v = naive.forward(tiny, ids, latents, t, mask, positions)
    close(logits, goldens[f"{group}.logits"], LOGITS)
    close(v, goldens[f"{group}.v_pred"])


@pytest.mark.parametrize("rows", ["padded", "cached"])
def test_b_exact_path(rows: str, goldens: Goldens, tiny: flashu.ShowO2) -> None:
    """Four rows at four times: whole, or the prompt as a cache and the image block alone."""
    images = shown(tiny, goldens["b.in.latents"], goldens["b.in.t"])
    given = zip(goldens["b.in.text_tokens"].tolist(), images, goldens["b.in.modality_positions"].tolist(), strict=True)
    if rows == "padded":
        asked = [Row(context(), whole_row(ids, [image], at)) for ids, image, at in given]
    else:
        asked = [Row(context(text_of(ids[: at[0][0]])), image_block(image)) for ids, image, at in given]
    outputs = block_forward(tiny, asked)
    close(torch.cat([output.values for output in outputs]), goldens["b.v_pred"])


def test_b_two_images_exact_path(goldens: Goldens, tiny: flashu.ShowO2) -> None:
    """The first image's block behind its text, and the second's behind both; nothing after them is computed."""
    (ids,) = goldens["b_two_images.in.text_tokens"].tolist()
    (((first, size), (second, _)),) = goldens["b_two_images.in.modality_positions"].tolist()
    images = shown(tiny, goldens["b_two_images.in.latents"], goldens["b_two_images.in.t"])
    start, between = text_of(ids[:first]), text_of(ids[first + size : second])
    rows = [
        Row(context(start), image_block(images[0])),
        Row(context(start, image_block(images[0]), between), image_block(images[1])),
    ]
    close(torch.cat([output.values for output in block_forward(tiny, rows)]), goldens["b_two_images.v_pred"])


def test_b_rotary_frequencies_rounded_to_bf16(goldens: Goldens, tiny: flashu.ShowO2) -> None:
    """Casting a model rounds its frequencies, and that alone moves the velocity as it does in the original."""
    for module in tiny.modules():
        if hasattr(module, "inv_freq"):
            module.inv_freq = module.inv_freq.bfloat16().float()
    positions = goldens["b.in.modality_positions"]
    logits, v = naive.forward(
        tiny,
        goldens["b.in.text_tokens"],
        goldens["b.in.latents"],
        goldens["b.in.t"],
        naive.omni_mask(40, positions),
        positions,
    )
    close(v, goldens["b_invfreq_bf16.v_pred"])
    close(logits, goldens["b_invfreq_bf16.logits"], LOGITS)
    assert float((v - goldens["b.v_pred"]).abs().max()) > 1e-3


@pytest.mark.parametrize(("exact", "wanted"), [(False, "b_invfreq_bf16"), (True, "b")])
def test_b_in_a_model_loaded_in_bf16(
    exact: bool, wanted: str, goldens: Goldens, tiny: flashu.ShowO2, tmp_path: Path
) -> None:
    """By default a loaded model has the original's rounded frequencies; its weights are then put back to fp32."""
    save_model(tiny, tmp_path)
    loaded = load_model(tmp_path, torch.bfloat16, exact_rope=exact).float()
    loaded.load_state_dict(tiny.state_dict())
    positions = goldens["b.in.modality_positions"]
    mask = naive.omni_mask(40, positions)
    given = (goldens["b.in.text_tokens"], goldens["b.in.latents"], goldens["b.in.t"], mask, positions)
    logits, v = naive.forward(loaded, *given)
    close(v, goldens[f"{wanted}.v_pred"])
    close(logits, goldens[f"{wanted}.logits"], LOGITS)


def test_b_in_bf16(goldens: Goldens, tiny: flashu.ShowO2) -> None:
    tiny.to(torch.bfloat16)
    positions = goldens["b.in.modality_positions"]
    mask = naive.omni_mask(40, positions)
    _, v = naive.forward(tiny, goldens["b.in.text_tokens"], goldens["b.in.latents"], goldens["b.in.t"], mask, positions)
    close(v.float(), goldens["b_bf16.v_pred"], 0.1)


@pytest.mark.parametrize("padded", [True, False])
def test_c_guided_sampling(
    padded: bool, goldens: Goldens, prompts: list[str], tiny: flashu.ShowO2, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine, from the words on: a batch of three, the latents after every step."""
    recorded_noise(monkeypatch, goldens["c.z"])
    times = grid(11, 3.0)
    assert torch.equal(times, goldens["c.time_grid"])
    assert torch.equal(times[:-1], goldens["c.eval_t"])
    steps: list[Tensor] = []
    engine = flashu.Engine(tiny, tiny.processor, Recipe(padded=padded))
    settings = {"seed": [0, 1, 2], "steps": 11, "guidance": 5.0, "decode": False}
    drawn = engine.generate(prompts, **settings, on_step=lambda _step, _plan, z: steps.append(z))
    close(drawn.latents, goldens["c.final"], ODE)
    close(torch.stack([goldens["c.z"], *steps]), goldens["c.x"], ODE)


@pytest.mark.parametrize("guidance", [5.0, 0.0])
def test_c_the_reference_engine(
    guidance: float, goldens: Goldens, prompts: list[str], tiny: flashu.ShowO2, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded_noise(monkeypatch, goldens["c.z"])
    original = Reference(tiny, tiny.processor)
    golden = goldens["c.final" if guidance else "c_nocfg.final"]
    for n, prompt in enumerate(prompts):
        drawn = original.generate(prompt, seed=n, steps=11, guidance=guidance, decode=False)
        close(drawn.latents, golden[n : n + 1], ODE)


def test_c_each_velocity_along_the_golden_trajectory(goldens: Goldens, prompts: list[str], tiny: flashu.ShowO2) -> None:
    """Single forwards, so no error accumulates: conditional, unconditional and guided velocities of every step."""
    along = Trajectory(tiny, [DrawRequest(p, guidance=5.0) for p in prompts], 11)
    for n in range(11):
        conditional, unconditional = along.velocities(goldens["c.x"][n], n)
        close(conditional, goldens["c.v_cond"][n])
        close(unconditional, goldens["c.v_uncond"][n])
        guided = classifier_free({MAIN: conditional, UNCOND: unconditional}, along.scales)
        close(guided, goldens["c.v_guided"][n], 5e-4)


@pytest.mark.parametrize("padded", [True, False])
def test_c_without_guidance(
    padded: bool, goldens: Goldens, prompts: list[str], tiny: flashu.ShowO2, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded_noise(monkeypatch, goldens["c.z"])
    engine = flashu.Engine(tiny, tiny.processor, Recipe(padded=padded))
    drawn = engine.generate(prompts, seed=[0, 1, 2], steps=11, guidance=0, decode=False)
    assert {record.rows for trace in drawn.traces for record in trace} == {1}
    close(drawn.latents, goldens["c_nocfg.final"], ODE)


class Encoded:
    """An autoencoder that sees recorded latents, whatever it is shown."""

    latent_channels, factor = 4, 8

    def __init__(self, latents: Tensor) -> None:
        self.latents = latents

    def encode(self, pixels: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        return self.latents[: len(pixels)]


@pytest.mark.parametrize("group", ["d0", "d1"])
def test_d_questions(group: str, goldens: Goldens, golden_facts: dict[str, Any], tiny: flashu.ShowO2) -> None:
    """Layout, mask, greedy tokens and every step's logits, with a growing cache and by running the row anew."""
    facts = golden_facts["common"]["mmu"]
    before = [250, *facts["sys_prompt_ids"], *facts["role_a"], 252]
    after = [253, *facts["questions"][int(group[1])], *facts["role_b"]]
    segments = question(tiny, [before, after], shown(tiny, goldens[f"{group}.latents"], torch.ones(1)))
    x = torch.cat(tiny.embed([segment.content for segment in segments]))[None]
    close(x, goldens[f"{group}.input_embeds"])
    whole = context(*segments).segments
    layout = whole[0].layout.cat(whole[1].layout)
    mask = visible(layout, layout)
    assert mask is not None
    assert torch.equal(mask, goldens[f"{group}.mask_allowed"].bool())

    logits: list[Tensor] = []

    def greedy(step: Tensor) -> Tensor:
        logits.append(step)
        return step.argmax(-1)

    run = Run([Append((MAIN,), segments), Decode(MAIN, frozenset(), 12)], exact(), tiny.spec, choose=greedy)
    complete(Executor(Runner(tiny)), [run])
    assert run.text == goldens[f"{group}.tokens"].tolist()
    close(torch.cat(logits), goldens[f"{group}.logits"], LOGITS)

    grown = additive(mask, tiny.dtype)
    for n, token in enumerate(run.text):  # the naive way: the whole row again for every token
        _, anew = naive.decode(tiny, x, grown)
        close(anew[:, -1], goldens[f"{group}.logits"][n : n + 1], LOGITS)
        x = torch.cat((x, tiny.embed_tokens(torch.tensor([[token]]))), dim=1)
        grown = with_one_more(grown)


@pytest.mark.parametrize("group", ["d0", "d1"])
def test_d_both_engines(group: str, goldens: Goldens, golden_facts: dict[str, Any], tiny: flashu.ShowO2) -> None:
    """From the words of the question on; no golden answer holds the token that ends one."""
    facts = golden_facts["common"]["mmu"]
    chat = ChatTemplate(words(facts["sys_prompt_ids"]), words(facts["role_a"]), words(facts["role_b"]))
    processor = replace(
        tiny.processor, text=replace(tiny.processor.text, chat=chat), vae=Encoded(goldens[f"{group}.latents"])
    )
    asked, picture = words(facts["questions"][int(group[1])]), torch.zeros(3, 64, 64)
    for engine in (flashu.Engine(tiny, processor), Reference(tiny, processor)):
        answer = engine.answer(picture, asked, max_new_tokens=12)
        assert answer.tokens == goldens[f"{group}.tokens"].tolist()


def test_the_reference_recipe_takes_as_many_points_as_steps(
    golden_facts: dict[str, Any], prompts: list[str], tiny: flashu.ShowO2
) -> None:
    engine = flashu.Engine(tiny, tiny.processor, Recipe(name="points", reference=True))
    drawn = engine.generate(prompts[0], steps=12, seed=3, decode=False)
    assert len(drawn.trace) == golden_facts["common"]["n_function_evals"] == 11
    assert len(engine.with_recipe("exact").generate(prompts[0], steps=11, seed=3, decode=False).trace) == 11
