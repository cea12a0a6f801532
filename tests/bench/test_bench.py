"""The bench: its rows, its arithmetic and its reports. No test here looks at how long anything took."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tests.bench.small import Ticks, program, subject
from tests.runtime.test_graphs import Addresses

from flashu.bench import measure, rows
from flashu.bench.ceiling import Ceiling
from flashu.bench.result import FORMAT
from flashu.bench.steps import (
    PROMPT,
    Span,
    StepKind,
    compose,
    compose_components,
    count_kinds,
    kind_of,
    shortest_run,
)
from flashu.bench.subject import TASK, turned
from flashu.bench.table import tabulated
from flashu.bench.tracing import TracedGraphs, Tracer
from flashu.errors import FlashUError
from flashu.plan import LayerPlan, Plan, Step
from flashu.plan.presets import paper
from flashu.plan.recipe import exact
from flashu.plan.table import Forward, PlanTable, Prompt, Totals

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


def test_a_run_is_composed_from_the_mean_of_each_kind() -> None:
    full, reuse = StepKind("block", guided=True), StepKind("reuse", guided=True)
    spans = [
        Span(full, {"LLM": 3.0, "other": 1.0}),
        Span(reuse, {"head": 0.5}),
        Span(full, {"LLM": 4.0, "other": 2.0}),
    ]
    counts = {full: 10, reuse: 4}
    assert compose(spans, counts) == pytest.approx(10 * 5.0 + 4 * 0.5)
    found = compose_components(spans, counts)
    assert found == pytest.approx({"LLM": 35.0, "head": 2.0, "other": 15.0})
    assert sum(found.values()) == pytest.approx(compose(spans, counts))


BLOCK, PREFILL, TOKEN = (
    Step(task, kind, 0, 9)
    for task, kind in (("generation", "block"), ("understanding", "prefill"), ("understanding", "token"))
)


def forward(plan: Plan, step: Step = BLOCK) -> Forward:
    return Forward(step, plan, 1, 1, 0, 0, 0, None)


def test_kinds_tell_costs_apart_and_nothing_else() -> None:
    skipped = [LayerPlan(frozenset({1, 2})), LayerPlan(frozenset({3, 4}))]
    guided = [Plan(layers, scales={"uncond": s}) for layers in skipped for s in (2.0, 5.0)]
    assert len({kind_of(BLOCK, plan, {}) for plan in guided}) == 1
    assert kind_of(BLOCK, Plan(skipped[0]), {}) != kind_of(BLOCK, guided[0], {})
    reused = Plan(scales={"uncond": 2.0}, reuse=frozenset({"uncond"}))
    assert kind_of(BLOCK, reused, {}) == kind_of(BLOCK, Plan(), {})
    assert kind_of(BLOCK, Plan(skipped[0], "reuse"), {}) == kind_of(BLOCK, Plan(features="reuse"), {})
    assert kind_of(BLOCK, Plan(features="reuse", probe="tokens"), {}).probe
    pruned = Plan(LayerPlan(ffn="generation"))
    assert len({kind_of(BLOCK, pruned, {"generation": share}) for share in (0.2, 0.2, 0.3)}) == 2


def test_prompts_are_counted_once_per_layer_plan() -> None:
    one, two = LayerPlan(frozenset({1})), LayerPlan(frozenset({2}))
    plans = [Plan(one), Plan(one), Plan(two), Plan(one), Plan(two, "reuse")]
    prompts = (Prompt(0, one, 1, 4, 0), Prompt(2, two, 1, 4, 0))
    table = PlanTable("", "", "generation", 6, tuple(map(forward, plans)), prompts, Totals(0, 0, 0, 0))
    full = kind_of(BLOCK, Plan(one), {})
    assert count_kinds(table, {}) == {full: 4, StepKind("reuse"): 1, StepKind(PROMPT, skipped=1): 2}


def test_the_shortest_run_has_each_kind_once_and_none_that_is_known() -> None:
    full, reuse = Plan(LayerPlan(frozenset({1}))), Plan(features="reuse")
    drawing = [*map(forward, (full, full, reuse, reuse))]
    assert shortest_run(drawing, {}) == [full, reuse]
    assert shortest_run(drawing, {}, known={StepKind("reuse")}) == [full]
    assert shortest_run(drawing, {}, known={kind_of(BLOCK, full, {})}) == [full, reuse]  # else there is none to reuse
    answer = [forward(full, PREFILL), forward(full, TOKEN), forward(full, TOKEN)]
    assert shortest_run(answer, {}) == [full, full, full, full]
    assert shortest_run(answer, {}, {kind_of(one.step, full, {}) for one in answer}) == []


def test_fewer_steps_cost_what_the_other_row_costs() -> None:
    amounts = {StepKind("block"): 2.0, StepKind(PROMPT): 1.0, StepKind("setup"): 9.0}
    spans = [Span(kind, {"other": amount}) for kind, amount in amounts.items()]
    assert measure.equal_forwards(spans, 1.0 + 2.0 * 17 + 0.9) == 17
    assert measure.equal_forwards(spans, 0.0) == 1


def test_spans_tile_a_run_and_nested_ones_are_taken_out() -> None:
    tracer = Tracer(Ticks())  # each reading of the clock is one tick
    with tracer.component("LLM"):  # before any span
        pass
    tracer.begin(StepKind("a"))
    with tracer.nested(StepKind(PROMPT)), tracer.component("LLM"), tracer.component("head"):
        pass
    with tracer.component("head"):
        pass
    tracer.begin(StepKind("b"))
    first, nested, second = tracer.collect()
    assert (first.kind, nested.kind, second.kind) == (StepKind("a"), StepKind(PROMPT), StepKind("b"))
    assert nested.components == {"LLM": 1, "other": 2}
    assert first.components == {"head": 1, "other": 3}
    assert second.components == {"other": 1}
    assert tracer.collect() == []


class Capturing(Ticks):
    """A clock without readings while a graph is captured."""

    def __init__(self) -> None:
        super().__init__()
        self.capturing = False

    def now(self) -> int | None:  # type: ignore[override]
        return None if self.capturing else super().now()


def test_no_reading_is_needed_while_a_graph_is_captured() -> None:
    clock = Capturing()
    tracer = Tracer(clock)
    tracer.begin(StepKind("a"))
    clock.capturing = True
    with tracer.component("LLM"):
        pass
    clock.capturing = False
    (span,) = tracer.collect()
    assert span.components == {"other": 1}


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
    about = subject(task)
    report = measure.bench(about, rows.choose_rows(TASK[task], names), repeats=2, sampled=sampled, check=True)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["format"] == FORMAT
    assert (data["ceiling"]["flops"], data["ceiling"]["bytes"]) == (1e12, 3e10)  # the best of all rounds
    assert {"device", "torch", "commit", "threads", "when"} <= data["machine"].keys()
    assert {"model", "task", "batch", "dtype", "steps", "prompt_tokens"} <= data["subject"].keys()
    beside = sum(buffer.nbytes for buffer in about.model.buffers())
    beside += sum(ffn.order.nbytes for ffn in about.model.ffns().values())  # the in-place row moved the neurons
    assert data["subject"]["held_bytes"] == 4 * data["subject"]["parameters"] + beside
    assert [row["name"] for row in data["rows"]] == names
    for row in data["rows"]:
        if row["name"] == "exact+compile+graphs":
            assert "CUDA" in row["note"]
            assert row["seconds"] is None
            continue
        assert not row["note"]
        assert row["seconds"]["low"] <= row["seconds"]["median"] <= row["seconds"]["high"]
        assert row["seconds"]["n"] == 2
        assert row["flops"] > 0
        assert row["bytes"] > 0
        assert row["times_exact"] > 0
        assert row["kinds"]
        assert {"features", "LLM", "VAE", "other"} <= row["parts"].keys()
        assert row["whole_seconds"] is None or sampled
        total = sum(row["parts"].values())
        if sampled:
            assert total == pytest.approx(row["seconds"]["median"])
        else:
            assert 0 < total <= row["seconds"]["median"]
    by_name = {row["name"]: row for row in data["rows"]}
    if task == "t2i":
        assert (by_name["original"]["forwards"], by_name["exact"]["forwards"]) == (9, 10)
        assert by_name["paper"]["forwards"] == 7
        assert by_name["fewer-steps"]["forwards"] >= 1
    console = Console(width=80, record=True)
    console.print(tabulated(report))
    assert "CUDA graphs need a model on a CUDA device" in " ".join(console.export_text().split())
    pytest.importorskip("matplotlib")
    from flashu.bench.plot import plot

    plot(report, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 1000


def test_a_row_that_costs_what_a_skipped_one_costs_is_skipped() -> None:
    wanted = [rows.Row("paper", paper(), graphs=True), rows.Row("fewer-steps", exact(), same_cost_as="paper")]
    programs, notes = measure.programs_of(wanted, subject("t2i"))
    assert not programs
    assert "CUDA graphs need" in notes["paper"]
    assert notes["fewer-steps"] == "it costs what 'paper' costs, which is skipped"


def test_requests_of_a_batch_differ() -> None:
    assert [turned("a b c", n) for n in range(4)] == ["a b c", "b c a", "c a b", "a b c"]
    asked = subject("mmu", batch=2)
    assert asked.questions[0].text != asked.questions[1].text
    assert asked.questions[0].images[0].tobytes() != asked.questions[1].images[0].tobytes()
    assert asked.text_tokens + 16 + 1 == 37  # with the image and its time


def test_a_captured_forward_counts_as_the_decoders() -> None:
    row = program("exact", subject("mmu"))
    eager = row.run(Tracer(Ticks()))
    capture = Addresses()
    row.graphs = TracedGraphs(capture)  # type: ignore[attr-defined]
    tracer = Tracer(Ticks())
    assert torch.equal(row.run(tracer), eager)
    assert capture.replays > 0
    forwards = [span for span in tracer.collect() if span.kind.step == "token"]
    assert all(span.components.keys() == {"LLM", "other"} for span in forwards)
