"""UniMoD against recorded tensors of an independent program: chosen tokens, states, losses, gradients, decoding."""

from __future__ import annotations

import pytest
import torch
from tests.models.emu3.golden import recorded as emu3
from tests.models.showo.golden import recorded as showo
from tests.training.unimod import ABOUT, GROUPS, TOLERANCE, batch, config, goldens, model, routers
from torch import Tensor

from flashu.plan import LayerPlan
from flashu.runtime.cache import KVBlock
from flashu.runtime.layout import TokenLayout
from flashu.runtime.runner import Runner, Skips
from flashu.training.exact import Savings
from flashu.training.mod import RoutedTraining, arank, select_layers
from flashu.training.mod.arank import ranks_of

G = goldens()
COMMON = ABOUT["common"]
CASES = [("showo", v) for v in ("dense", "preset", "forced", "block", "arank", "single")]
CASES += [("emu3", v) for v in ("dense", "preset", "forced", "block")]
NONE = Savings.none().__dict__


def training(family: str, variant: str, **savings: object) -> RoutedTraining:
    made = model(family)
    if variant == "dense":
        return RoutedTraining(made, type(config(family, "preset"))(), **savings)
    return RoutedTraining(made, config(family, variant), routers(family, variant, made.spec), **savings)


def close(ours: Tensor, golden: Tensor, name: str) -> None:
    assert float((ours.detach() - golden).abs().max()) <= TOLERANCE[name]


@pytest.mark.parametrize("savings", [NONE, {}], ids=["whole", "exact"])
@pytest.mark.parametrize(("family", "variant"), CASES)
def test_losses_and_gradients(family: str, variant: str, savings: dict[str, object]) -> None:
    trained = training(family, variant, **savings)
    losses = trained(batch(family))
    total = trained.total(losses)
    tasks = [losses.tasks[task] for task in GROUPS[family]]
    key = f"{family}.{variant}"
    close(torch.stack([*tasks, losses.weighted, losses.auxiliary_sum, total]), G[f"{key}.losses"], "losses_abs")
    total.backward()
    by_name = dict(trained.model.named_parameters())
    norms = torch.stack([by_name[name].grad.norm() for name in COMMON["grad_param_names"][key]])
    golden = G[f"{key}.grad_norms"]
    assert float(((norms - golden).abs() / golden.clamp(min=1e-6)).max()) <= 1e-5
    if variant != "dense":
        for (task, layer), aux in zip(COMMON["aux_order"][key], G[f"{key}.aux"], strict=True):
            close(losses.auxiliary[task, layer], aux, "losses_abs")
        for (task, layer), gradient in zip(COMMON["router_order"][key], G[f"{key}.router_grads"], strict=True):
            ours = trained.routers.weight[trained.config.router(task, layer)].grad
            assert float((ours - gradient).norm() / gradient.norm()) <= 1e-5


@pytest.mark.parametrize("family", ["showo", "emu3"])
def test_chosen_tokens_and_logits(family: str) -> None:
    """Padding that would be chosen last is not computed; nothing sees it."""
    trained, rows = training(family, "preset", **NONE), batch(family)
    losses = trained(rows, logits=True)
    start = 0
    for part in rows:
        for routed in losses.routed[part.task]:
            layer = routed.route.layer
            for n in range(part.shape[0]):
                key = f"{family}.preset.row{start + n}.layer{layer}"
                golden = G[f"{key}.idx"]
                assert torch.equal(routed.index[n][routed.index[n] >= 0], golden[part.valid[n][golden]])
                assert (
                    float((routed.p[n].detach() - G[f"{key}.p"])[part.valid[n]].abs().max()) <= TOLERANCE["hidden_abs"]
                )
        if family == "showo":
            golden = G["showo.preset.logits"][start : start + part.shape[0]]
            close(losses.logits[part.task][part.valid], golden[part.valid], "logits_abs")
        start += part.shape[0]
    if family == "emu3":
        ours = torch.cat([losses.logits[p.task][p.targets != -100] for p in rows])
        close(ours, G["emu3.preset.logits_supervised"], "logits_abs")


def prompts(family: str) -> list[tuple[Tensor, TokenLayout]]:
    """Ids [S] of each question and who sees whom."""
    if family == "emu3":
        g = emu3.goldens()
        rows = [emu3.unpadded(row, mask) for row, mask in zip(g["und.full_ids"], g["und.attention_mask"], strict=True)]
        return [(ids, TokenLayout.causal([len(ids)])) for ids in rows]
    found = []
    for name in ("d0", "d1"):
        ids = showo.goldens()[f"{name}.input_ids"][0]
        end = int((ids == showo.IDS["eoi"]).nonzero()[0]) + 1
        found.append((ids, TokenLayout.causal([len(ids)]).block(0, end)))
    return found


@pytest.mark.parametrize(("family", "names"), [("showo", ("d0", "d1")), ("emu3", ("row0", "row1"))])
@torch.inference_mode()
def test_decoding(family: str, names: tuple[str, ...]) -> None:
    """The prompt by top-k, then tokens by the threshold; each layer keeps what ran there; both rows at once, too."""
    made = model(family)
    plan = config(family, "preset").plan("mmu")
    runner = Runner(made, routers=routers(family, "preset", made.spec).weights())
    layers = [route.layer for route in plan.routes]
    golden = {n: {k: G[f"{family}.decode.{n}.{k}"] for k in ("tokens", "logits", "ran")} for n in names}
    kvs, firsts, lengths = [], [], []
    for ids, layout in prompts(family):
        done = runner.walk(made.embed_tokens(ids[None]), layout, plan, keep=True, read="last")
        kvs.append(done.kv.row(0))
        firsts.append((done, made.logits(done.hidden)[0, 0]))
        lengths.append(len(ids))
    for group in ([0], [1], [0, 1]):
        block = KVBlock(made, [kvs[n] for n in group], [lengths[n] for n in group], 8)
        logits = torch.stack([firsts[n][1] for n in group])
        before = [[int(firsts[n][0].routed[i].chosen[0, -1]) for i in range(len(layers))] for n in group]
        for step in range(8):
            for place, n in enumerate(group):
                own = golden[names[n]]
                close(logits[place], own["logits"][step], "logits_abs")
                assert int(logits[place].argmax()) == int(own["tokens"][step])
                assert before[place] == own["ran"][step].tolist()
            held = [block.space_of[layer].length.clone() for layer in layers]
            x = made.embed_tokens(logits.argmax(-1)[:, None])
            hidden, _ = runner.tokens(x, block, plan, Skips(frozenset()))
            block.advance()
            block.took(range(len(group)), 1)
            after = [block.space_of[layer].length - h for layer, h in zip(layers, held, strict=True)]
            before = torch.stack(after, dim=1).tolist()
            logits = made.logits(hidden)[:, -1]


@pytest.mark.parametrize("variant", ["prob", "score"])
@pytest.mark.parametrize("family", ["showo", "emu3"])
def test_arank(family: str, variant: str) -> None:
    found = arank(model(family), [r for r in batch(family) if r.task != "lm"], variant)
    for task, ours in found.items():
        assert float((ours.mean - G[f"{family}.arank.{variant}.{task}"]).abs().max()) <= 0.5
        assert int((ours.ranks - G[f"{family}.arank.{variant}.{task}.ranks"]).abs().max()) <= 1
        assert ours.spread.shape == ours.effective.shape == ours.mean.shape
        assert bool((ours.effective <= ours.ranks.amax(dim=(0, 2)) + 1e-3).all())


def test_known_ranks_and_selection() -> None:
    ranks, _, nearest = ranks_of(G["rank_demo.attention"])
    assert torch.equal(ranks, G["rank_demo.ranks"])
    assert nearest > 1
    mean = ranks.float().mean(-1)
    assert torch.equal(mean, G["rank_demo.arank"])
    torch.testing.assert_close(mean / G["rank_demo.attention"].shape[-1], G["rank_demo.keep"])
    wanted = COMMON["rank_demo.selected"]
    layers = mean.shape[1]
    free = [select_layers(row.tolist(), wanted["count"]) for row in mean]
    assert free == wanted["without_protect"]
    kept = [select_layers(row.tolist(), wanted["count"], (0, 1, 2, layers - 1)) for row in mean]
    assert kept == wanted["protect_0_1_2_last"]


def test_a_plan_without_routes_is_dense() -> None:
    assert config("showo", "preset").plan("lm") == LayerPlan()
