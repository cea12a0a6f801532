"""The bench on families that it does not know."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from rich.console import Console

from flashu.bench import measure, rows
from flashu.bench.ceiling import Ceiling
from flashu.bench.programs import program_of
from flashu.bench.steps import AROUND, PROMPT, compose
from flashu.bench.subject import TASK, Subject, subject_of
from flashu.bench.table import tabulated
from flashu.bench.tracing import Tracer
from flashu.runtime.compile import LayerCalls
from tests.bench.small import Ticks, counted
from tests.fakes.masked import MaskedModel, seeded
from tests.fakes.tokens import TokenModel

FAMILIES = [TokenModel, MaskedModel]


@pytest.fixture(params=FAMILIES, ids=lambda cls: cls.spec.family)
def model(request: pytest.FixtureRequest) -> TokenModel:
    return seeded(request.param)


def subject(model: TokenModel, task: str, batch: int = 1) -> Subject:
    return subject_of("fake", model, model.processor, task, batch=batch, steps=8, new_tokens=6)  # type: ignore[arg-type]


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("task", ["t2i", "mmu"])
def test_every_row_is_measured_or_says_why_not(
    model: TokenModel, task: str, sampled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "SHORTEST", 0.0)
    monkeypatch.setattr(measure, "measure_ceiling", lambda *_: Ceiling(1e12, 1e10, 64, 1 << 20))
    wanted = [row for row in rows.rows_of(TASK[task]) if not row.compiled]
    report = measure.bench(subject(model, task), wanted, repeats=1, sampled=sampled, check=sampled)
    data = {row["name"]: row for row in json.loads(json.dumps(report.to_dict(), allow_nan=False))["rows"]}
    skipped = {name for name, row in data.items() if row["seconds"] is None}
    # Neither has a head, and a tenth of six layers is none.
    expected = {"original", "head_cache only" if task == "t2i" else "layer_skip only"}
    if task == "t2i" and model.spec.drawing == "autoregressive":
        expected |= {"adaptive_guidance only", "fewer-steps"}  # as many forwards as tokens
    assert skipped == expected
    assert all(data[name]["note"] for name in skipped)
    for name in data.keys() - skipped:
        assert data[name]["flops"] > 0
        assert data[name]["bytes"] > 0
        assert {"LLM", "logits", "features"} <= data[name]["parts"].keys()
    (missing,) = {name.removesuffix(" only") for name in expected & {"head_cache only", "layer_skip only"}}
    assert missing in data["paper"]["note"]
    assert missing not in [method["method"] for method in data["paper"]["recipe"]["methods"]]
    assert data["paper"]["flops"] < data["exact"]["flops"]
    console = Console(width=80, record=True)
    console.print(tabulated(report))
    assert "no family of the registry" in console.export_text()


@pytest.mark.parametrize("task", ["t2i", "mmu"])
def test_counts_of_a_short_run_compose_to_those_of_a_whole_one(model: TokenModel, task: str) -> None:
    about = subject(model, task)
    # The end of a line goes through with the code before it, which no plan says.
    off = 0.15 if task == "t2i" and model.spec.drawing == "autoregressive" else 0.05
    for name in ("exact", "paper", "ffn_prune only"):
        (row,) = rows.choose_rows(about.task, [name])
        program = program_of(row, about)
        sampled, whole = counted(program, whole=False), counted(program, whole=True)
        forwards = [span for span in whole.spans if span.kind.step not in AROUND]
        flops = sum(span.amount for span in forwards)
        assert compose(sampled.spans, program.counts()) == pytest.approx(flops, rel=off), name
        assert program.flops == pytest.approx(flops, rel=2 * off), name
        kinds = {kind: n for kind, n in program.counts().items() if kind.step != PROMPT}
        assert Counter(s.kind for s in forwards if s.kind.step != PROMPT) == kinds, name


def test_a_run_gives_what_an_engine_gives(model: TokenModel) -> None:
    about = subject(model, "t2i", batch=2)
    (row,) = rows.choose_rows("generation", ["exact"])
    program = program_of(row, about)
    drawn = program.run(Tracer(Ticks()))
    prompts = [request.prompt for request in about.images_to_draw(8)]
    assert torch.equal(drawn, program.engine.generate(prompts, seed=7, steps=8, decode=False).latents)


@pytest.mark.parametrize(("family", "task"), [(TokenModel, "mmu"), (MaskedModel, "t2i")])
def test_compiled_rows_compute_the_same(family: type[TokenModel], task: str) -> None:
    torch._dynamo.reset()
    about = subject(seeded(family), task)
    eager, compiled = (program_of(row, about) for row in rows.choose_rows(about.task, ["paper", "paper+compile"]))
    assert [program.engine.prepared.calls.compiled for program in (eager, compiled)] == [False, True]
    compiled.engine.prepared.calls = LayerCalls(True, backend="eager")
    assert torch.equal(compiled.run(Tracer(Ticks())), eager.run(Tracer(Ticks())))
