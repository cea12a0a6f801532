"""UniMoD's rules as properties, its settings, files and errors, and routed models at work in the engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.emu3 import emu3_tiny
from tests.models.emu3.golden import recorded as emu3
from tests.training.unimod import batch, config, model, routers
from torch import Tensor

import flashu
from flashu.inference.engine import Engine
from flashu.plan import LayerPlan, Route
from flashu.plan.recipe import Recipe
from flashu.plan.schedules import cosine, ramp
from flashu.runtime.layout import TokenLayout
from flashu.runtime.routing import Routed, best, narrowed
from flashu.runtime.runner import Runner
from flashu.runtime.view import View
from flashu.training.cross_entropy import cross_entropy
from flashu.training.mod import PRESETS, RoutedTraining, Routers, UniModConfig, preset, randomly, select_layers
from flashu.training.mod.config import matched

KEEP = st.floats(0.01, 1.0)


@st.composite
def scores(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Probabilities of a few values (so with ties), valid and forced tokens, counts."""
    rows, width = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    values = draw(st.lists(st.sampled_from([0.1, 0.5, 0.9]), min_size=rows * width, max_size=rows * width))
    marks = st.lists(st.booleans(), min_size=rows * width, max_size=rows * width)
    p = torch.tensor(values).view(rows, width)
    valid, forced = (torch.tensor(draw(marks)).view(rows, width) for _ in range(2))
    return p, valid, forced, draw(st.lists(st.integers(1, width), min_size=rows, max_size=rows))


@given(scores())
@settings(max_examples=150, deadline=None)
def test_the_best_tokens(case: tuple[Tensor, Tensor, Tensor, list[int]]) -> None:
    """By forced, then p, then the lower index; padding last; ascending; as many as asked."""
    p, valid, forced, counts = case
    index = best(p, valid, forced, counts)
    for row, count in enumerate(counts):
        order = sorted(
            range(p.shape[1]), key=lambda t: (-float(p[row, t] + forced[row, t]) if valid[row, t] else 1.0, t)
        )
        assert index[row].tolist() == sorted(order[:count]) + [-1] * (index.shape[1] - count)


@given(st.integers(2, 8), st.integers(0, 3), st.data())
@settings(max_examples=60, deadline=None)
def test_who_sees_whom_among_the_kept(width: int, past: int, data: st.DataObject) -> None:
    """As before among those kept; fillers are seen by nobody else."""
    mask = torch.rand(1, 1, width, past + width, generator=torch.Generator().manual_seed(width)) > 0.4
    mask |= torch.cat((torch.zeros(width, past, dtype=torch.bool), torch.eye(width, dtype=torch.bool)), dim=1)
    kept = sorted(data.draw(st.sets(st.integers(0, width - 1), min_size=1)))
    fill = data.draw(st.integers(0, 2))
    index = torch.tensor([[*kept, *[-1] * fill]])
    rope = torch.arange(width, dtype=torch.float)[None, None, :, None]
    view = narrowed(View((rope, rope), mask), index, past, fill == 0)
    assert view.mask is not None
    assert not isinstance(view.mask, str)
    assert torch.equal(view.rope[0][0, 0, : len(kept), 0], torch.tensor(kept).float())
    columns = [*range(past), *(k + past for k in kept)]
    assert torch.equal(view.mask[0, 0, : len(kept), : past + len(kept)], mask[0, 0][kept][:, columns])
    assert not view.mask[0, 0, : len(kept), past + len(kept) :].any()
    assert view.mask.any(-1).all()


@given(st.lists(KEEP, min_size=1, max_size=6), st.integers(1, 40))
def test_counts(shares: list[float], length: int) -> None:
    for share in shares:
        count = Route(0, mode="bypass", keep=share).count(length)
        assert 1 <= count <= length
        assert count >= share * length


def test_routed_outputs_are_scattered_where_they_came_from() -> None:
    x, y = torch.zeros(2, 4, 3), torch.ones(2, 2, 3)
    index = torch.tensor([[1, 3], [2, -1]])
    routed = Routed(Route(0, mode="bypass", gate="none"), None, torch.rand(2, 4), index, torch.ones(2, 4).bool(), False)
    assert routed.merged(x, routed.taken(x), y)[..., 0].tolist() == [[0, 1, 0, 1], [0, 0, 1, 0]]
    assert routed.chosen.tolist() == [[False, True, False, True], [False, False, True, False]]


def test_keeping_all_without_a_gate_is_the_dense_model() -> None:
    for family in ("showo", "emu3"):
        made, rows = model(family), batch(family)
        layers = made.spec.layers
        every = {task: dict.fromkeys(range(layers), 1.0) for task in ("t2i", "mmu")}
        dense = RoutedTraining(made, UniModConfig())(rows)
        routed = RoutedTraining(made, UniModConfig(every, gate="none"))(rows)
        torch.testing.assert_close(routed.weighted, dense.weighted, atol=1e-6, rtol=1e-6)
        starting_at_one = RoutedTraining(made, UniModConfig(every, scale="tanh"))(rows)
        torch.testing.assert_close(starting_at_one.weighted, dense.weighted, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("name", [*PRESETS, "show-o-paper", "emu3-paper", "random"])
def test_presets_train(name: str) -> None:
    """Every arm has finite losses, and gradients in just the routers it has."""
    for family in ("showo", "emu3"):
        made = model(family)
        layers = made.spec.layers
        own = randomly(preset("emu3-paper", layers)) if name == "random" else preset(name, layers)
        trained = RoutedTraining(made, own)
        losses = trained(batch(family))
        trained.total(losses).backward()
        assert bool(torch.isfinite(losses.weighted))
        assert all(w.grad is not None and bool(w.grad.any()) for w in trained.routers.parameters())
        assert len(list(trained.routers.parameters())) == len(trained.config.names())


def test_chunks_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(6, 11)
    hidden, targets = torch.randn(7, 6, generator=generator), torch.randint(0, 11, (7,), generator=generator)
    found = []
    for chunk in (None, 2, 3, 100):
        h = hidden.clone().requires_grad_()
        head.zero_grad()
        loss = cross_entropy(head, tuple(head.parameters()), h, targets, chunk)
        (3 * loss).backward()
        found.append([loss.detach(), h.grad, head.weight.grad.clone(), head.bias.grad.clone()])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b)


def test_schedules_and_selection() -> None:
    assert ramp(range(3, 6)) == pytest.approx({3: 1.0, 4: 0.6, 5: 0.2})
    shares = cosine(range(5), 0.5)
    assert list(shares.values()) == pytest.approx([1.0, 0.5 + 0.5 * 2**-0.5, 0.5, 0.5 - 0.5 * 2**-0.5, 0.01])
    assert select_layers([3, 1, 1, 2], 2) == [1, 2]
    assert select_layers([1, 1, 1, 1], 2) == [2, 3]
    assert select_layers([1, 2, 3, 4], 2, protect=(0, 1)) == [2, 3]
    made = matched(preset("single-router-paper", 6), lambda c: sum(c.keep["t2i"].values()), 2.4)
    assert sum(made.keep["t2i"].values()) == pytest.approx(2.4, abs=1e-3)
    kinds = UniModConfig({"t2i": {1: 0.5, 2: 0.5}, "mmu": {2: 0.5, 3: 0.5}}).layer_kinds(emu3.model().spec)
    assert kinds == {1: "t2i", 2: "shared", 3: "mmu"}


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"keep": {"t2i": {0: 1.5}}}, "above 0 and at most 1"),
        ({"keep": {"t2i": {0: 0.0}}}, "above 0 and at most 1"),
        ({"keep": {"t2i": {0: float("nan")}}}, "above 0"),
        ({"routers": "two"}, "task, layer, one, none"),
        ({"gate": "mlp"}, "none, ffn, block"),
        ({"keep": {"t2i": {1: 0.5}}, "skip": {"t2i": [1]}}, "both routed and skipped"),
        ({"force": {"mmu": "all"}}, "none, text, answers"),
        ({"auxiliary": -1}, "at least 0"),
        ({"keeps": {}}, "unknown settings"),
        ({"preset": "emu3-paper"}, "number of layers"),
        ({"preset": "emu4-paper", "layers": 4}, "known are"),
    ],
)
def test_bad_settings(settings_: dict[str, object], message: str) -> None:
    with pytest.raises(flashu.FlashUError, match=message):
        UniModConfig.from_dict(settings_)


def test_settings_and_routers_are_saved_and_loaded(tmp_path: Path) -> None:
    made = config("emu3", "forced")
    assert UniModConfig.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    assert Recipe.from_dict(json.loads(json.dumps(made.recipe().to_dict()))) == made.recipe()
    spec = emu3.model().spec
    routers("emu3", "preset", spec).save(tmp_path)
    loaded = Routers.load(tmp_path, spec)
    before = routers("emu3", "preset", spec)
    assert all(torch.equal(loaded.weight[name], w) for name, w in before.weight.items())
    with pytest.raises(flashu.CheckpointError, match="another model"):
        Routers.load(tmp_path, replace(spec, hidden=32))
    with pytest.raises(flashu.CheckpointError, match="no routers"):
        Routers.load(tmp_path / "nowhere", spec)
    with pytest.raises(flashu.FlashUError, match="layers 0 to 7"):
        Routers(UniModConfig({"mmu": {9: 0.5}}), spec)


def test_missing_rows_and_targets() -> None:
    made = model("emu3")
    rows = batch("emu3")[0]
    with pytest.raises(flashu.FlashUError, match="no rows"):
        RoutedTraining(made, UniModConfig())([])
    with pytest.raises(flashu.FlashUError, match="nothing to predict"):
        RoutedTraining(made, UniModConfig())([replace(rows, targets=torch.full_like(rows.targets, -100))])
    plan = LayerPlan(routes=(Route(1, mode="bypass", router="t2i_1"),))
    with pytest.raises(flashu.FlashUError, match="no router"):
        Runner(made).walk(made.embed_tokens(rows.tokens), TokenLayout.causal([64] * 3), plan)


# -- in the engine -------------------------------------------------------------------------------------------------
def engine(recipe: Recipe | str = "exact", weights: dict[str, Tensor] | None = None) -> Engine:
    return Engine(emu3.model().requires_grad_(False), emu3_tiny.processor(emu3.vq()), recipe, routers=weights)


def drawn(made: Engine, prompts: list[str], seed: int = 0) -> Tensor:
    return made.generate(prompts, seed=seed, decode=False).latents


def test_a_routed_model_draws_and_answers() -> None:
    prompts = ["w1 w2 w3", "w9"]
    exact = engine()
    spec = exact.model.spec
    half = UniModConfig({task: {4: 1.0, 6: 1.0} for task in ("t2i", "mmu")}, gate="none", threshold=None)
    plain = engine(half.recipe(), dict(Routers(half, spec).weights()))
    assert torch.equal(drawn(plain, prompts), drawn(exact, prompts))
    own = preset("emu3-paper", spec.layers)
    routed = engine(own.recipe(), dict(routers("emu3", "preset", spec).weights()))
    together = drawn(routed, prompts)
    assert torch.equal(together, torch.cat([drawn(routed, [prompt], n) for n, prompt in enumerate(prompts)]))
    assert not torch.equal(together, drawn(exact, prompts))
    both = routed.chat(["w5 w6 w7 w8", "w3"], max_new_tokens=6)
    assert [a.tokens for a in both] == [routed.chat(q, max_new_tokens=6).tokens for q in ("w5 w6 w7 w8", "w3")]


def test_each_layer_caches_what_ran_there() -> None:
    made = emu3.model()
    own = config("emu3", "preset")
    runner = Runner(made, routers=routers("emu3", "preset", made.spec).weights())
    ids = emu3.goldens()["train.input_ids"][:1, :30]
    layout = TokenLayout.causal([30])
    with torch.inference_mode():
        done = runner.walk(made.embed_tokens(ids), layout, own.plan("mmu"), keep=True)
    assert done.kv is not None
    assert [k.shape[2] for k, _ in done.kv.layers] == [30] * 4 + [6] * 4
