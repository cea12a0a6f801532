"""Every method alone and every pair, both tasks: they run, do what they say, and leave nothing behind."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import flashu
from flashu.plan import FULL, TASKS, Observations, Plan, Step
from flashu.plan.methods import METHODS, AdaptiveGuidance, FewerSteps, FFNPrune, HeadCache, LayerSkip, TokenPrune
from flashu.plan.methods.layer_skip import most_similar
from flashu.plan.recipe import Recipe
from flashu.runtime.layout import TokenLayout
from flashu.runtime.runner import Runner
from tests.recipes import BASELINES, GENERATION, TRAINED, UNDERSTANDING, subsets


@pytest.fixture(scope="module")
def calibrated(tiny_engine: flashu.Engine) -> flashu.Engine:
    engine = flashu.Engine(tiny_engine.model, tiny_engine.processor)
    engine.calibrate("generation", prompts=["w1 w2 w3"])
    image = engine.generate("w9", steps=2).images[0]
    engine.calibrate("understanding", pairs=[(image, "w3 w4"), (image, "w5")])
    return engine


@pytest.mark.parametrize("name", subsets(GENERATION))
def test_generation(name: str, calibrated: flashu.Engine) -> None:
    vanilla = calibrated.generate("w1 w2", seed=3)
    fast = calibrated.with_recipe(subsets(GENERATION)[name]).generate("w1 w2", seed=3)
    assert fast.latents.isfinite().all()
    assert not torch.equal(fast.latents, vanilla.latents)
    assert len(fast.trace) == (8 if "adaptive_guidance" in name else 12)
    plans = [record.plan for record in fast.trace]
    late = len(plans) - round(0.3 * len(plans))
    assert any(p.layers.ffn == "generation" for p in plans) == ("ffn_prune" in name)
    assert any(p.layers.skip for p in plans) == ("layer_skip" in name)
    assert any(p.features == "reuse" for p in plans) == ("head_cache" in name)
    assert all(p.layers.ffn == FULL and not p.layers.skip and p.features == "run" for p in plans[late:])
    again = calibrated.generate("w1 w2", seed=3)
    assert torch.equal(again.latents, vanilla.latents)


@pytest.mark.parametrize("name", subsets(UNDERSTANDING))
def test_understanding(name: str, calibrated: flashu.Engine) -> None:
    image = calibrated.generate("w9", steps=2).images[0]
    vanilla = calibrated.answer(image, "w3 w4")
    fast = calibrated.with_recipe(subsets(UNDERSTANDING)[name]).answer(image, "w3 w4")
    assert len(fast.tokens) == 8
    first, *rest = fast.trace
    assert bool(first.plan.layers.routes) == ("token_prune" in name)
    assert not any(r.plan.layers.routes for r in rest)
    assert any(r.plan.layers.skip for r in rest) == ("layer_skip" in name)
    assert (first.plan.layers.ffn == "understanding") == ("ffn_prune" in name)
    assert rest[0].past == first.tokens - (8 if "token_prune" in name else 0)
    assert calibrated.answer(image, "w3 w4").tokens == vanilla.tokens


def test_pruning_tokens_shrinks_later_caches_and_keeps_positions(calibrated: flashu.Engine) -> None:
    """Against the definition: value norms of layer 2 taken by a hook, the 8 largest of 16 leave, order kept."""
    model = calibrated.model
    layout = TokenLayout.causal([22]).block(3, 19)
    x = torch.randn(1, 22, model.spec.hidden, generator=torch.Generator().manual_seed(4))
    values: list[torch.Tensor] = []
    handle = model.layers[1].self_attn.v_proj.register_forward_hook(lambda _m, _i, out: values.append(out))
    plan = UNDERSTANDING["token_prune"].edit(Plan(), Step("understanding", "prefill", 0, 4), Observations())
    with torch.inference_mode():
        done = Runner(model).walk(x, layout, plan.layers, keep=True)
    handle.remove()
    order = sorted(range(3, 19), key=lambda n: -float(values[0][0, n].norm()))
    kept = [n for n in range(22) if n not in order[:8]]
    assert done.kv is not None
    assert done.kv.layouts[1].position[0].tolist() == list(range(22))
    assert done.kv.layouts[2].position[0].tolist() == kept
    assert [k.shape[2] for k, _ in done.kv.layers] == [22, 22, 14, 14, 14, 14]


@given(
    index=st.integers(0, 49),
    total=st.integers(50, 60),
    similarity=st.lists(st.floats(-1, 1), min_size=12, max_size=12),
    task=st.sampled_from(TASKS),
)
def test_methods_commute(index: int, total: int, similarity: list[float], task: str) -> None:
    """Any order of the methods gives the same plan, since each writes its own fields."""
    kind = "block" if task == "generation" else ("token" if index else "prefill")
    step, observed = Step(task, kind, index, total), Observations(tuple(similarity))  # type: ignore[arg-type]
    methods = list((GENERATION if task == "generation" else UNDERSTANDING).values())
    first, *others = (Recipe(tuple(order)).plan(step, observed, {"uncond": 5.0}) for order in permutations(methods))
    assert all(plan == first for plan in others)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=40), st.floats(0, 0.99))
def test_the_most_similar_layers_are_skipped(similarity: list[float], ratio: float) -> None:
    chosen = most_similar(tuple(similarity), ratio)
    assert len(chosen) == int(len(similarity) * ratio)
    rest = set(range(len(similarity))) - chosen
    assert all(similarity[i] >= similarity[j] for i in chosen for j in rest)


@given(interval=st.integers(1, 12), first=st.sampled_from([0, 1]), total=st.integers(1, 60), tau=st.floats(0, 0.99))
def test_the_head_runs_before_it_is_reused(interval: int, first: int, total: int, tau: float) -> None:
    method = HeadCache("generation", interval, tau, first)
    heads = [method.edit(Plan(), Step("generation", "block", i, total), Observations()).features for i in range(total)]
    assert heads[0] == "run"
    full = int(tau * total + 0.5)
    assert all(h == "run" for h in heads[total - full :])
    window = heads[: total - full]
    runs = [i for i, h in enumerate(window) if h == "run"]
    expected = [i for i in range(len(window)) if (i + first) % interval == 0 or i + first < interval * first]
    assert runs == expected


@given(
    phases=st.lists(st.tuples(st.integers(1, 9), st.floats(0, 12)), min_size=1, max_size=5), total=st.integers(1, 60)
)
def test_a_guidance_schedule_is_piecewise(phases: list[tuple[int, float]], total: int) -> None:
    method = AdaptiveGuidance(schedule=tuple(phases), steps=0)
    scales = [
        method.edit(Plan(scales={"uncond": 5.0}), Step("generation", "block", i, total), Observations()).guidance
        for i in range(total)
    ]
    spelled = [scale for count, scale in phases for _ in range(count)]
    assert scales == (spelled + [phases[-1][1]] * total)[:total]


def test_guidance_of_the_paper() -> None:
    """Eq. 8 at Table 7's settings: 35 of 50 forwards, 0.75 s0 for the first 24, s0 for the last 11."""
    method = AdaptiveGuidance()
    assert method.forwards(50) == 35
    scales = [
        method.edit(Plan(scales={"uncond": 10.0}), Step("generation", "block", i, 35), Observations()).guidance
        for i in range(35)
    ]
    assert scales == [7.5] * 24 + [10.0] * 11
    assert method.edit(Plan(), Step("generation", "block", 0, 35), Observations()).guidance is None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FFNPrune("generation", 1.0), "r_p"),
        (lambda: FFNPrune("generation", -0.1), "r_p"),
        (lambda: LayerSkip("generation", 0.2, 0), "T_LS"),
        (lambda: HeadCache("understanding"), "does not exist for understanding"),
        (lambda: HeadCache("generation", 0), "T_cache"),
        (lambda: HeadCache("generation", 5, -1), "tau"),
        (lambda: AdaptiveGuidance(schedule=((0, 1.0),)), "at least one forward"),
        (lambda: AdaptiveGuidance(schedule=((4, -1.0),)), "negative"),
        (lambda: TokenPrune(side="middle"), "side"),  # type: ignore[arg-type]
        (lambda: TokenPrune(layer=0), "layer 1"),
        (lambda: TokenPrune(score="colour"), "scored by"),  # type: ignore[arg-type]
        (lambda: TokenPrune(score="attention", side="calibrated"), "only value norms"),
        (lambda: TokenPrune("generation"), "does not exist for generation"),
    ],
)
def test_settings_out_of_range_are_refused(make, words: str) -> None:
    with pytest.raises(flashu.RecipeError, match=words):
        make()


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (LayerSkip("generation", 0.1), "skips none of the 6 layers"),
        (TokenPrune(layer=6), "has 6 layers"),
    ],
)
def test_a_missing_layer_is_an_error_at_construction(method, words: str, tiny: flashu.ShowO2) -> None:
    with pytest.raises(flashu.RecipeError, match=words):
        flashu.Engine(tiny, tiny.processor, Recipe((method,)))


@pytest.mark.parametrize("order", [1, -1])
def test_two_methods_that_set_the_number_of_forwards_are_refused(order: int) -> None:
    """Either would win by its place in the list: 7 forwards in one order, 10 in the other."""
    with pytest.raises(flashu.RecipeError, match="several methods write forwards"):
        Recipe([FewerSteps(steps=10), AdaptiveGuidance()][::order])  # type: ignore[arg-type]
    both = Recipe([FewerSteps(steps=10), AdaptiveGuidance(steps=0)][::order])  # type: ignore[arg-type]
    assert both.forwards(50) == 10
    step = Step("generation", "block", 0, 10)
    assert both.plan(step, Observations(), {"uncond": 4.0}).guidance == 3.0


def test_clashing_writes_are_refused() -> None:
    with pytest.raises(flashu.RecipeError, match=r"layers\.ffn"):
        Recipe((FFNPrune("generation", 0.1), FFNPrune("generation", 0.2)))
    Recipe((FFNPrune("generation", 0.1), FFNPrune("understanding", 0.2)))


def test_every_method_is_in_the_list_and_documented() -> None:
    assert {m.name for m in (*GENERATION.values(), *UNDERSTANDING.values(), *BASELINES, *TRAINED)} == set(METHODS)
    for method in METHODS.values():
        assert method.__doc__
        assert method.writes
