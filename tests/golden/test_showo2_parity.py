"""Show-o2 against tensors of the original program: the naive padded path, the exact path, and each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import flashu
from flashu.inference.loops import canvas
from flashu.inference.loops.decode import decode
from flashu.inference.loops.denoise import denoise, look, velocity
from flashu.inference.requests import question_rows
from flashu.inference.run import Run
from flashu.inference.samplers import flow
from flashu.models.showo2 import naive
from flashu.models.showo2.head import sinusoid
from flashu.models.showo2.load import load_model, save_model
from flashu.plan import LayerPlan, Plan
from flashu.plan.recipe import Recipe, exact
from flashu.runtime.runner import Runner
from flashu.runtime.tokens import Tokens, visible

FORWARD, LOGITS, ODE = 1e-4, 1e-4, 2e-3
Goldens = dict[str, Tensor]
pytestmark = pytest.mark.usefixtures("_inference")


@pytest.fixture
def _inference():
    with torch.inference_mode():
        yield


def close(ours: Tensor, golden: Tensor, tolerance: float = FORWARD) -> None:
    assert ours.shape == golden.shape
    assert float((ours - golden).abs().max()) <= tolerance


@pytest.fixture(scope="module")
def prompts(golden_facts: dict[str, Any]) -> list[list[int]]:
    """Prompt rows [bos, words, boi], cut to the model's 19 words as the original cuts them."""
    return [[250, *ids[:19], 252] for ids in golden_facts["common"]["prompts_token_ids"]]


NULL = [250, 252]


def test_a_rows_offsets_and_mask(goldens: Goldens, prompts: list[list[int]], tiny: flashu.ShowO2) -> None:
    text = tiny.processor.text
    rows = [text.padded_row(p, 16, 40) for p in prompts]
    null = [text.padded_row(NULL, 16, 40)] * 3
    assert torch.equal(torch.tensor(rows), goldens["a.text_tokens"])
    assert torch.equal(torch.tensor(null), goldens["a.text_tokens_null"])
    assert [[len(p), 17] for p in prompts] == goldens["a.modality_positions"][:, 0].tolist()
    assert [[len(NULL), 17]] * 3 == goldens["a.modality_positions_null"][:, 0].tolist()
    both = canvas.padded(rows + null, [len(p) for p in [*prompts, NULL, NULL, NULL]], 16)
    mask = visible(both.tokens, both.tokens)
    assert mask is not None
    assert torch.equal(mask, goldens["a.mask_allowed"].bool())
    positions = torch.cat((goldens["a.modality_positions"], goldens["a.modality_positions_null"]))
    assert torch.equal(naive.omni_mask(40, positions), goldens["a.mask_allowed"].bool())


@pytest.mark.parametrize("group", ["b", "b_two_images"])
def test_b_every_inner_tensor_of_the_rooms_over_whole_rows(group: str, goldens: Goldens, tiny: flashu.ShowO2) -> None:
    g = {name.removeprefix(f"{group}."): t for name, t in goldens.items() if name.startswith(f"{group}.")}
    seen: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            seen[name] = output[0] if isinstance(output, tuple) else output

        return hook

    named = ("image_embedder_und", "image_embedder_gen", "und_trans", "time_embed", "time_embed_proj", "diff_proj")
    handles = [getattr(tiny, name).register_forward_hook(keep(name)) for name in named]
    handles.append(tiny.fusion_proj.register_forward_hook(keep("fused")))
    handles.append(tiny.diffusion_head_b.register_forward_hook(keep("head_final_all_positions")))
    handles += [b.register_forward_hook(keep(f"head_layer_{n}")) for n, b in enumerate(tiny.diffusion_head_a)]
    handles += [
        layer.register_forward_hook(lambda _m, args, out, n=n: seen.update({f"in{n}": args[0], f"out{n}": out[0]}))
        for n, layer in enumerate(tiny.layers)
    ]
    ids, positions = g["in.text_tokens"], g["in.modality_positions"]
    mask = naive.omni_mask(ids.shape[1], positions)
    pos = torch.arange(ids.shape[1]).expand(len(ids), -1)
    x, where, e_t = naive.splice(tiny, ids, g["in.latents"], g["in.t"], positions)
    for i in range(tiny.num_layers):
        x, _ = tiny.layer(i, x, tiny.rope(pos), mask)
    features, _ = tiny.head_body(tiny.norm(x), e_t, tiny.head_rope(pos), mask, image=where)
    tiny.head_out(features, e_t, where)
    for handle in handles:
        handle.remove()

    close(tiny.logits(tiny.norm(x)), g["logits"], LOGITS)
    states = [*(seen[f"in{n}"] for n in range(6)), tiny.norm(seen["out5"])]
    close(torch.stack(states), g["llm_hidden_states"])
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


def test_b_exact_path(goldens: Goldens, prompts: list[list[int]], tiny: flashu.ShowO2) -> None:
    """Prefix KV and image block alone, four rows at four times, give the padded forward's velocity."""
    rows = canvas.packed([*prompts, NULL], 16)
    run = Run(Runner(tiny), exact(), "generation", 1)
    e_t, time_token = tiny.embed_time(goldens["b.in.t"])
    z = goldens["b.in.latents"]
    look(run, rows, Plan(), z, e_t, time_token[:, None], None)
    close(velocity(run, Plan(), z, e_t), goldens["b.v_pred"])


def test_b_two_images_exact_path(goldens: Goldens, tiny: flashu.ShowO2) -> None:
    """The first image and its text as a cache, the second image's block alone; nothing after it is computed."""
    ids, positions = goldens["b_two_images.in.text_tokens"], goldens["b_two_images.in.modality_positions"]
    (first, size), (second, _) = positions[0].tolist()
    x, where, e_t = naive.splice(tiny, ids, goldens["b_two_images.in.latents"], goldens["b_two_images.in.t"], positions)
    tokens = Tokens.text([ids.shape[1]])
    block = tokens.block.clone()
    block[0, first : first + size], block[0, second : second + size] = 1, 2
    tokens = Tokens(tokens.pos, block, tokens.valid, tokens.visual)

    def part(start: int, stop: int) -> Tokens:
        return tokens.gather(torch.arange(start, stop)[None])

    runner = Runner(tiny)
    before, image = part(0, second), part(second, second + size)
    view = runner.view(before, head=True)
    past = runner.backbone(x[:, :second], before, LayerPlan(), view=view, keep=True)
    features, head_past = runner.head(past.hidden, e_t[:, :second], view, None, where[:, :second])
    v_first = tiny.head_out(features[:, first + 1 : first + size], e_t[:, first + 1 : first + size])
    assert past.kv is not None
    view = runner.view(image, before, head=True)
    at = slice(second, second + size)
    done = runner.backbone(x[:, at], image, LayerPlan(), past=past.kv, view=view)
    features, _ = runner.head(done.hidden, e_t[:, at], view, head_past, None)
    v_second = tiny.head_out(features[:, 1:], e_t[:, second + 1 : second + size])
    close(tiny.unpatchify(torch.cat((v_first, v_second)), 8, 8), goldens["b_two_images.v_pred"])


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


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_c_guided_sampling(layout: str, goldens: Goldens, prompts: list[list[int]], tiny: flashu.ShowO2) -> None:
    times = flow.grid(11, 3.0)
    assert torch.equal(times, goldens["c.time_grid"])
    assert torch.equal(times[:-1], goldens["c.eval_t"])
    every = [*prompts, NULL, NULL, NULL]
    text = tiny.processor.text
    if layout == "packed":
        rows = canvas.packed(every, 16)
    else:
        rows = canvas.padded([text.padded_row(p, 16, 40) for p in every], [len(p) for p in every], 16)
    steps: list[Tensor] = []
    run = Run(Runner(tiny), exact(), "generation", 11, guidance=5.0)
    final = denoise(run, rows, goldens["c.z"], times, lambda _step, _plan, z: steps.append(z))
    close(final, goldens["c.final"], ODE)
    close(torch.stack([goldens["c.z"], *steps]), goldens["c.x"], ODE)


def test_c_each_velocity_along_the_golden_trajectory(
    goldens: Goldens, prompts: list[list[int]], tiny: flashu.ShowO2
) -> None:
    """Single forwards, so no error accumulates: conditional, unconditional and guided velocities of every step."""
    rows = canvas.packed([*prompts, NULL, NULL, NULL], 16)
    run = Run(Runner(tiny), exact(), "generation", 11, guidance=5.0)
    for n in range(11):
        e_t, time_token = tiny.embed_time(goldens["c.eval_t"][n : n + 1])
        z = goldens["c.x"][n]
        look(run, rows, Plan(guidance=5.0), z, e_t, time_token[None], None)
        assert run.features is not None
        v = tiny.unpatchify(tiny.head_out(run.features, e_t), 8, 8)
        close(v[:3], goldens["c.v_cond"][n])
        close(v[3:], goldens["c.v_uncond"][n])
        close(velocity(run, Plan(guidance=5.0), z, e_t), goldens["c.v_guided"][n], 5e-4)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_c_without_guidance(layout: str, goldens: Goldens, prompts: list[list[int]], tiny: flashu.ShowO2) -> None:
    text = tiny.processor.text
    if layout == "packed":
        rows = canvas.packed(prompts, 16)
    else:
        rows = canvas.padded([text.padded_row(p, 16, 40) for p in prompts], [len(p) for p in prompts], 16)
    final = denoise(Run(Runner(tiny), exact(), "generation", 11), rows, goldens["c.z"], flow.grid(11, 3.0))
    close(final, goldens["c_nocfg.final"], ODE)


@pytest.mark.parametrize("group", ["d0", "d1"])
def test_d_questions(group: str, goldens: Goldens, golden_facts: dict[str, Any], tiny: flashu.ShowO2) -> None:
    """Layout, mask, greedy tokens and every step's logits, with a growing cache and by running the row anew."""
    facts = golden_facts["common"]["mmu"]
    which = int(group[1])
    before = [250, *facts["sys_prompt_ids"], *facts["role_a"], 252]
    after = [253, *facts["questions"][which], *facts["role_b"]]
    x, tokens = question_rows(tiny, goldens[f"{group}.latents"], [(before, after)], [0])
    close(x, goldens[f"{group}.input_embeds"])
    mask = visible(tokens, tokens)
    assert mask is not None
    assert torch.equal(mask, goldens[f"{group}.mask_allowed"].bool())

    logits: list[Tensor] = []

    def greedy(step: Tensor) -> Tensor:
        logits.append(step)
        return step.argmax(-1)

    run = Run(Runner(tiny), exact(), "understanding", 12)
    answered = [token for (token,) in decode(run, x, tokens, greedy, None)]
    assert answered == goldens[f"{group}.tokens"].tolist()
    close(torch.cat(logits), goldens[f"{group}.logits"], LOGITS)

    for n, token in enumerate(answered):  # the naive way: the whole row again for every token
        hidden = Runner(tiny).backbone(x, tokens, LayerPlan()).hidden
        close(tiny.logits(hidden[:, -1]), goldens[f"{group}.logits"][n : n + 1], LOGITS)
        x = torch.cat((x, tiny.embed_text(torch.tensor([[token]]))), dim=1)
        tokens = tokens.cat(tokens.following())


def test_engine_draws_the_golden_latents(goldens: Goldens, golden_facts: dict[str, Any], tiny: flashu.ShowO2) -> None:
    """The public way from words: the original's noise cannot be drawn anew, so only the rule of steps is checked."""
    engine = flashu.Engine(tiny, tiny.processor, Recipe(name="points", reference=True))
    words = " ".join(f"w{n}" for n in golden_facts["common"]["prompts_token_ids"][0])
    drawn = engine.generate(words, steps=12, seed=3)
    assert len(drawn.trace) == 11
    assert len(engine.with_recipe("exact").generate(words, steps=11, seed=3).trace) == 11
