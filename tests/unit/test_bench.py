"""The bench: its rows, its arithmetic and its reports. No test here looks at how long anything took."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
from rich.console import Console
from tests.unit.bench_tiny import TASKS, Ticks, subject

from flashu.bench import measure, rows
from flashu.bench.ceiling import Ceiling
from flashu.bench.kinds import PROMPT, Kind, Piece, components, compose, kind_of, script, tally
from flashu.bench.lanes import Take
from flashu.bench.result import FORMAT, Spread
from flashu.bench.table import tabulated
from flashu.bench.watch import Watch
from flashu.errors import FlashUError
from flashu.plan import LayerPlan, Plan

# -- rows ------------------------------------------------------------------------------------------------------


def test_every_row_the_issue_asks_for_is_there() -> None:
    names = [row.name for row in rows.rows_of("generation")]
    assert len(names) == len(set(names))
    assert {"original", "exact", "exact+compile", "exact+compile+graphs", "paper", "fast", "fewer-steps"} <= set(names)
    assert {f"{m} only" for m in ("ffn_prune", "layer_skip", "head_cache", "adaptive_guidance")} <= set(names)
    assert {"paper without layer_skip", "paper without hybrid", "paper without adaptive_guidance"} <= set(names)
    assert "paper in place" in names
    assert "token_prune only" in [row.name for row in rows.rows_of("understanding")]


def test_the_hybrid_row_prunes_to_the_end() -> None:
    (row,) = rows.choose_rows("generation", ["paper without hybrid"])
    assert row.recipe is not None
    assert {m.to_dict().get("tau") for m in row.recipe.of("generation") if m.name == "ffn_prune"} == {0}


def test_chosen_rows_keep_the_lists_order() -> None:
    assert [row.name for row in rows.choose_rows("generation", ["paper", "exact"])] == ["exact", "paper"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["exakt"], "did you mean 'exact'"),
        (["zzzz"], "rows are original"),
        (["fewer-steps"], "name that row too"),
    ],
)
def test_an_unusable_row_is_one_clear_error(names: list[str], said: str) -> None:
    with pytest.raises(FlashUError, match=said) as error:
        rows.choose_rows("generation", names)
    assert "\n" not in str(error.value)


# -- arithmetic ------------------------------------------------------------------------------------------------


def test_rounds_are_interleaved() -> None:
    order = []

    def play(name: str, n: int) -> Take:
        order.append((name, n))
        return Take([], 0.0, None)

    takes = measure.interleaved(["a", "b", "c"], 2, play)
    assert order == [(name, n) for n in (0, 1) for name in "abc"]
    assert {name: len(found) for name, found in takes.items()} == {"a": 2, "b": 2, "c": 2}


def test_medians_and_spreads() -> None:
    assert Spread.of([3.0, 1.0, 8.0]) == Spread(3.0, 1.0, 8.0, 3)


def test_a_run_is_composed_from_the_mean_of_each_kind() -> None:
    full, reuse = Kind("denoise", guided=True), Kind("reuse", guided=True)
    pieces = [Piece(full, 4.0, {"LLM": 3.0}), Piece(reuse, 0.5, {"head": 0.5}), Piece(full, 6.0, {"LLM": 4.0})]
    counts = {full: 10, reuse: 4}
    assert compose(pieces, counts) == pytest.approx(10 * 5.0 + 4 * 0.5)
    found = components(pieces, counts)
    assert found == pytest.approx({"LLM": 35.0, "head": 2.0, "other": 15.0})
    assert sum(found.values()) == pytest.approx(compose(pieces, counts))


def test_kinds_tell_costs_apart_and_nothing_else() -> None:
    skipped = [LayerPlan(frozenset({1, 2})), LayerPlan(frozenset({3, 4}))]
    assert len({kind_of(Plan(layers, guidance=g), "denoise", {}) for layers in skipped for g in (2.0, 5.0)}) == 1
    assert kind_of(Plan(skipped[0], head="reuse"), "denoise", {}) == kind_of(Plan(head="reuse"), "denoise", {})
    assert kind_of(Plan(head="reuse", probe="tokens"), "denoise", {}).probe
    pruned = Plan(LayerPlan(ffn="generation"))
    assert len({kind_of(pruned, "denoise", {"generation": share}) for share in (0.2, 0.2, 0.3)}) == 2


def test_prompts_are_tallied_once_per_layer_plan() -> None:
    one, two = LayerPlan(frozenset({1})), LayerPlan(frozenset({2}))
    plans = [("denoise", Plan(layers)) for layers in (one, one, two, one)] + [("denoise", Plan(two, head="reuse"))]
    full = kind_of(Plan(one), "denoise", {})
    assert tally(plans, {}, prompts=True) == {full: 4, Kind("reuse"): 1, Kind(PROMPT, skipped=1): 2}


def test_a_script_meets_each_kind_once_and_none_that_is_known() -> None:
    full, reuse = Plan(LayerPlan(frozenset({1}))), Plan(head="reuse")
    plans = [("denoise", full), ("denoise", full), ("denoise", reuse), ("denoise", reuse)]
    assert script(plans, {}) == [full, reuse]
    assert script(plans, {}, known={Kind("reuse")}) == [full]
    assert script(plans, {}, known={kind_of(full, "denoise", {})}) == [full, reuse]  # nothing to reuse otherwise
    answer = [("prefill", full), ("decode", full), ("decode", full)]
    assert script(answer, {}, each=3) == [full, full, full, full]
    assert script(answer, {}, {kind_of(full, step, {}) for step, _ in answer}) == []


def test_fewer_steps_cost_what_the_other_row_costs() -> None:
    pieces = [Piece(Kind("denoise"), 2.0, {}), Piece(Kind(PROMPT), 1.0, {}), Piece(Kind("setup"), 9.0, {})]
    assert measure.equal_forwards(pieces, 1.0 + 2.0 * 17 + 0.9) == 17
    assert measure.equal_forwards(pieces, 0.0) == 1


def test_pieces_tile_a_run_and_asides_are_taken_out() -> None:
    watch = Watch(Ticks())  # each reading of the clock is one tick
    watch.begin(Kind("a"))
    with watch.aside(Kind(PROMPT)), watch.part("LLM"), watch.part("head"):
        pass
    with watch.part("head"):
        pass
    watch.begin(Kind("b"))
    first, aside, second = watch.pieces()
    assert (first.kind, aside.kind, second.kind) == (Kind("a"), Kind(PROMPT), Kind("b"))
    assert aside.amount == 3
    assert aside.parts == {"LLM": 1}
    assert first.amount == 7 - aside.amount
    assert first.parts == {"head": 1}
    assert watch.pieces() == []


# -- the whole bench -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "sampled"), [("t2i", False), ("t2i", True), ("mmu", True)])
def test_a_report_says_everything_and_is_json(
    task: str, sampled: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(measure, "SHORTEST", 0.0)
    ceilings = itertools.cycle([Ceiling(1e12, 1e10, 64, 1 << 20), Ceiling(9e11, 3e10, 64, 1 << 20)])
    monkeypatch.setattr(measure, "measure_ceiling", lambda *_: next(ceilings))
    names = [
        "original",
        "exact",
        "exact+compile+graphs",
        "paper",
        "paper in place",
        *(["fewer-steps"] if task == "t2i" else []),
    ]
    wanted = rows.choose_rows(TASKS[task], names)  # type: ignore[arg-type]
    report = measure.bench(subject(task), wanted, repeats=2, sampled=sampled, check=True)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["format"] == FORMAT
    assert (data["ceiling"]["flops"], data["ceiling"]["bytes"]) == (1e12, 3e10)  # the best of all rounds
    assert {"device", "torch", "commit", "threads", "when"} <= data["machine"].keys()
    assert {"model", "task", "batch", "dtype", "steps", "prompt_tokens"} <= data["subject"].keys()
    assert [row["name"] for row in data["rows"]] == names
    for row in data["rows"]:
        if row["name"] == "exact+compile+graphs":
            assert "CUDA" in row["note"]
            assert row["seconds"] is None
            continue
        assert row["seconds"]["low"] <= row["seconds"]["median"] <= row["seconds"]["high"]
        assert row["seconds"]["n"] == 2
        assert row["flops"] > 0
        assert row["bytes"] > 0
        assert row["times_exact"] > 0
        assert row["kinds"]
        assert {"features", "LLM", "VAE", "other"} <= row["parts"].keys()
        assert row["whole_seconds"] is None or sampled
        assert math.isclose(sum(row["parts"].values()), row["seconds"]["median"], rel_tol=1.0)
    by_name = {row["name"]: row for row in data["rows"]}
    if task == "t2i":
        assert (by_name["original"]["forwards"], by_name["exact"]["forwards"]) == (9, 10)
        assert by_name["paper"]["forwards"] == 7
        assert by_name["fewer-steps"]["forwards"] >= 1
    console = Console(width=80, record=True)
    console.print(tabulated(report))
    assert "CUDA graphs need a CUDA device" in " ".join(console.export_text().split())
    pytest.importorskip("matplotlib")
    from flashu.bench.plot import plot

    plot(report, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 1000
