"""The load that `flashu bench serve` puts on a server, and what it makes of the answers."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest
from rich.console import Console
from tests.fakes.masked import seeded
from tests.fakes.tokens import TokenModel
from tests.server.served import Served, in_thread

import flashu
from flashu.bench.serving import Load, ServingReport, Timed, arrivals, bench_serving, capabilities, loaded, summed
from flashu.bench.serving_table import tabulated
from flashu.server.service import Service
from flashu.server.settings import ServeSettings


@pytest.fixture(scope="module")
def fake() -> Iterator[Served]:
    model = seeded(TokenModel)
    service = Service({"exact": flashu.Engine(model, model.processor)}, ServeSettings(), "fake")  # type: ignore[arg-type]
    with in_thread(service) as served:
        yield served


def test_arrivals_are_a_poisson_process_of_their_seed() -> None:
    some = arrivals(50.0, 60.0, 3, True, 4)
    again = arrivals(50.0, 60.0, 3, True, 4)
    assert some == again
    assert some != arrivals(50.0, 60.0, 4, True, 4)
    assert len(some) == pytest.approx(3000, abs=4 * 3000**0.5)
    gaps = [b.at - a.at for a, b in pairwise(some)]
    mean = sum(gaps) / len(gaps)
    assert (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 == pytest.approx(mean, rel=0.1)
    shares = {kind: sum(r.kind == kind for r in some) / len(some) for kind in ("draw", "ask", "edit")}
    assert shares == {
        "draw": pytest.approx(0.4, abs=0.04),
        "ask": pytest.approx(0.5, abs=0.04),
        "edit": pytest.approx(0.1, abs=0.03),
    }
    assert not any(r.kind == "edit" for r in arrivals(50.0, 5.0, 3, False, 4))


def test_a_server_is_loaded_without_waiting_for_it(fake: Served) -> None:
    assert capabilities(fake.url)["edits"]
    requests = arrivals(30.0, 1.0, 0, True, None)
    load = loaded(fake.url, "step", 30.0, requests)
    assert (load.offered, load.done, load.errors) == (len(requests), len(requests), 0)
    assert set(load.latency) == {"draw", "ask", "edit"}
    assert load.first["ask"]["p50"] <= load.latency["ask"]["p50"]
    assert 0 < load.throughput < 40


def test_numbers_of_a_load() -> None:
    began = time.perf_counter()
    results = [Timed("ask", began + n, 0.1 * (n + 1), 1.0) for n in range(10)]
    results.append(Timed("draw", began + 1, None, None, "503"))
    load = summed("none", 1.0, results, began)
    assert (load.offered, load.done, load.errors) == (11, 10, 1)
    assert load.throughput == pytest.approx(1.0)
    assert load.first["ask"]["p50"] == pytest.approx(0.55)
    assert "draw" not in load.latency


def test_a_report() -> None:
    def load(schedule: str, rate: float, throughput: float, first: float) -> Load:
        spread = {"p50": first / 2, "p95": first, "p99": first}
        return Load(schedule, rate, 10, 10, 0, throughput, {"ask": spread, "draw": spread}, {"ask": spread})

    loads = [load("none", 1, 1, 4), load("step", 1, 1, 1), load("none", 9, 2, 50), load("step", 9, 5, 5)]
    report = ServingReport("scenes", "exact", None, 20, 0, loads)
    assert report.gain == 2.5
    assert report.first_tokens == [(1, 0.25), (9, 0.1)]
    text = Console(width=80, file=io.StringIO(), record=True)
    text.print(tabulated(report))
    shown = text.export_text()
    assert "2.50x" in shown
    assert "25% of one at a time's" in shown
    assert "…" not in shown


@pytest.mark.slow
def test_the_three_schedules_side_by_side() -> None:
    report = bench_serving("scenes", "exact", seconds=2, rates=[2.0], steps=2, threads=1)
    assert [load.schedule for load in report.loads] == ["none", "request", "step"]
    assert not any(load.errors for load in report.loads)
