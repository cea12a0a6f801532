"""The baselines FlashU is compared with: solvers and caches against what they must reduce to, and against calculus."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch

import flashu
from flashu import Recipe
from flashu.inference.history import FeatureHistory
from flashu.inference.samplers import solvers
from flashu.plan import SOLVERS, Plan
from flashu.plan.methods import (
    AdaptiveGuidance,
    ChangeCache,
    FewerSteps,
    GuidanceInterval,
    HeadCache,
    Method,
    TaylorCache,
    UnconditionalReuse,
)
from tests.recipes import BASELINES, GENERATION

PROMPTS, STEPS = ["w1 w2 w3", "w9"], 12


def drawn(
    engine: flashu.Engine, *methods: Method, solver: str = "euler", steps: int = STEPS, **settings
) -> flashu.Generation:
    other = engine.with_recipe(Recipe(methods, "test", solver=solver))
    return other.generate(PROMPTS, steps=steps, **settings)


NOTHING: tuple[Method, ...] = (
    FewerSteps(steps=STEPS),
    GuidanceInterval(stop=1.0),
    UnconditionalReuse(interval=1),
    UnconditionalReuse(interval=3, tau=STEPS),
    TaylorCache(interval=1),
    ChangeCache(threshold=0.0),
)


@pytest.mark.parametrize("method", NOTHING, ids=str)
def test_with_nothing_to_do_they_are_vanilla(tiny_engine: flashu.Engine, method: Method) -> None:
    assert torch.equal(drawn(tiny_engine, method).latents, drawn(tiny_engine).latents)


def test_fewer_steps_are_fewer_steps(tiny_engine: flashu.Engine) -> None:
    assert torch.equal(drawn(tiny_engine, FewerSteps(steps=0.5)).latents, drawn(tiny_engine, steps=6).latents)


def test_outside_the_interval_there_is_no_unconditional_branch(tiny_engine: flashu.Engine) -> None:
    made = drawn(tiny_engine, GuidanceInterval(start=0.25, stop=0.5))
    assert [r.rows for r in made.trace] == [1] * 3 + [2] * 3 + [1] * 6
    nowhere = drawn(tiny_engine, GuidanceInterval(start=0.0, stop=0.01))
    assert torch.allclose(nowhere.latents, drawn(tiny_engine, guidance=1.0).latents, atol=1e-5)


def test_the_unconditional_branch_is_computed_now_and_then(tiny_engine: flashu.Engine) -> None:
    made = drawn(tiny_engine, UnconditionalReuse(interval=4, tau=2))
    assert [r.rows for r in made.trace] == [2, 1, 1, 1, 2, 1, 1, 1, 2, 1, 2, 2]
    alone = drawn(tiny_engine, UnconditionalReuse(interval=4), guidance=1.0)
    assert torch.equal(alone.latents, drawn(tiny_engine, guidance=1.0).latents)


def test_a_taylor_cache_of_order_zero_is_the_head_cache(tiny_engine: flashu.Engine) -> None:
    taylor, cache = (drawn(tiny_engine, m) for m in (TaylorCache(interval=3, order=0), HeadCache("generation", 3, 0.0)))
    assert torch.equal(taylor.latents, cache.latents)
    assert [r.rows for r in taylor.trace] == [2, 0, 0] * 4


@pytest.mark.parametrize("order", [1, 2])
def test_features_continue_a_polynomial_of_their_order(order: int) -> None:
    """Backward differences of a line are exact; of a parabola the extrapolation is TaylorSeer's."""
    history = FeatureHistory()

    def value(i: int) -> torch.Tensor:
        return torch.tensor([[3.0 + 2 * i + (0.5 * i * i if order == 2 else 0)]])

    for i in (0, 3, 6):
        history.keep(i, ("main",), value(i))
    slope = (value(6) - value(3)) / 3
    bend = (slope - (value(3) - value(0)) / 3) / 3
    expected = value(6) + 2 * slope + (2**2 / 2) * bend * (order == 2)
    assert torch.allclose(history.at(8, order, ("main",)), expected)
    if order == 1:
        assert torch.allclose(history.at(8, 1, ("main",)), value(8))
    assert torch.equal(history.at(8, 0, ("main",)), value(6))


def test_the_head_runs_again_when_the_latents_have_moved(tiny_engine: flashu.Engine) -> None:
    made = drawn(tiny_engine, ChangeCache(threshold=0.3))
    looked = [r.rows > 0 for r in made.trace]
    assert looked[0]
    assert 1 < sum(looked) < STEPS
    assert sum(r.rows > 0 for r in drawn(tiny_engine, ChangeCache(threshold=1e6)).trace) == 1


def test_reuse_never_lacks_rows(tiny_engine: flashu.Engine) -> None:
    """When guidance comes back, features of the conditional rows alone are not enough: the head runs."""
    made = drawn(tiny_engine, GuidanceInterval(start=0.5, stop=1.0), HeadCache("generation", 4, 0.0))
    assert [r.rows for r in made.trace] == [1, 0, 0, 0, 1, 0, 2, 0, 2, 0, 0, 0]


PAIRS = [
    (a, b)
    for a, b in combinations((*BASELINES, *GENERATION.values()), 2)
    if not a.writes & b.writes and {a, b} & set(BASELINES)
]


@pytest.mark.parametrize(("a", "b"), PAIRS, ids=lambda m: m.name)
def test_pairs_draw_and_are_explained(tiny_engine: flashu.Engine, a: Method, b: Method) -> None:
    engine = tiny_engine.with_recipe(Recipe((a, b), "pair"))
    made = engine.generate(PROMPTS[:1], steps=STEPS)
    assert bool(made.latents.isfinite().all())
    table = engine.explain("generation", steps=STEPS)
    assert len(table.forwards) == len(made.trace)
    if "drift" not in (a.reads | b.reads):  # what has moved is known at run time only
        assert [f.rows if f.computed else 0 for f in table.forwards] == [r.rows for r in made.trace]


def solved(solver: str, forwards: int) -> float:
    """Error at t = 1 of dz/dt = -2 z + sin(5 t), z(0) = 1."""
    times = solvers.times(forwards, 3.0, solver)
    z, state = torch.ones(1, dtype=torch.float64), solvers.SOLVERS[solver]()
    for t, dt in zip(times[:-1].double().tolist(), times.double().diff().tolist(), strict=True):
        z = state.advance(z, -2 * z + math.sin(5 * t), dt)
    particular = (2 * math.sin(5.0) - 5 * math.cos(5.0)) / 29
    return abs(float(z) - (particular + (1 + 5 / 29) * math.exp(-2.0)))


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("adams", 2), ("heun", 2)])
def test_solvers_have_their_order(solver: str, order: int) -> None:
    coarse, fine = solved(solver, 101), solved(solver, 401)
    assert math.log(coarse / fine, 4) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("forwards", [1, 2, 3, 7, 12])
def test_unipc_is_diffusers(forwards: int) -> None:
    """On a curved field, along diffusers' own times."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=2, solver_type="bh2"
    )
    theirs.set_timesteps(forwards)
    times = 1 - theirs.sigmas.double()
    ours = solvers.UniPC(float(times[0]))
    x = y = torch.tensor([[[1.0, -0.3, 2.0]]])
    for k, t in enumerate(theirs.timesteps):
        x = theirs.step(torch.sin(3 * x) - 2, t, x, return_dict=False)[0]
        y = ours.advance(y, 2 - torch.sin(3 * y), float(times[k + 1] - times[k]))
        assert torch.allclose(x, y, atol=1e-4), k


def test_heun_evaluates_inner_times_twice() -> None:
    assert set(solvers.SOLVERS) == set(SOLVERS)
    for forwards in range(1, 9):
        times = solvers.times(forwards, 3.0, "heun").tolist()
        assert len(times) == forwards + 1
        assert times == sorted(times)
        assert (times[0], times[-1]) == (0, 1)
        assert times[-2] < 1
    five = solvers.times(5, 1.0, "heun").tolist()
    assert five == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 1])


@pytest.mark.parametrize("solver", ["adams", "heun", "unipc"])
def test_solvers_draw(tiny_engine: flashu.Engine, solver: str) -> None:
    made = drawn(tiny_engine, solver=solver)
    assert len(made.trace) == STEPS
    assert not torch.equal(made.latents, drawn(tiny_engine).latents)
    one = drawn(tiny_engine, solver=solver, steps=1)
    assert torch.equal(one.latents, drawn(tiny_engine, steps=1).latents)
    recipe = Recipe((), "x", solver=solver)
    assert Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Recipe(solver="rk45"), "no solver"),
        (lambda: FewerSteps(steps=0), "steps must be"),
        (lambda: GuidanceInterval(start=0.5, stop=0.5), "from start to stop"),
        (lambda: UnconditionalReuse(interval=0), "interval"),
        (lambda: TaylorCache(order=3), "order is 0 to 2"),
        (lambda: ChangeCache(threshold=-1), "negative"),
        (lambda: Recipe((HeadCache(), TaylorCache())), "several methods write features"),
        (lambda: Recipe((AdaptiveGuidance(), GuidanceInterval())), "several methods write scales"),
    ],
)
def test_settings_out_of_range_are_refused(make, words: str) -> None:
    with pytest.raises(flashu.RecipeError, match=words):
        make()


def test_a_plan_never_reuses_what_is_not_there() -> None:
    scales = {"uncond": 2.0}
    reuse = Plan(features="reuse", scales=scales, reuse=frozenset(scales))
    nothing, deltas = frozenset[str](), frozenset(scales)
    assert reuse.possible((), nothing) == Plan(scales=scales)
    assert reuse.possible(("main",), deltas) == reuse
    assert reuse.possible(("main", "uncond"), nothing) == Plan(features="reuse", scales=scales)
    assert reuse.possible(("main",), nothing) == Plan(scales=scales)
    assert Plan(reuse=deltas).possible((), deltas).branches == ("main",)
