"""The timer with a clock that is set by hand: order, warm-up, settling and what is counted."""

from __future__ import annotations

import pytest
import torch

from flashu.evaluation.statistics import Spread
from flashu.evaluation.timing import CudaClock, WallClock, clock_of, in_turns, time_in_turns, timed


class HandClock:
    """Shows the time it is given. Like a device's, it is right only when settled."""

    def __init__(self) -> None:
        self.time = 0.0
        self.pending = False

    def now(self) -> float:
        return self.time

    def between(self, start: float, end: float) -> float:
        assert not self.pending, "read before it was settled"
        return end - start

    def settle(self) -> None:
        self.pending = False


def test_calls_take_turns_after_a_warm_up() -> None:
    clock = HandClock()
    order: list[tuple[str, int]] = []

    def call(name: str, cost: float):
        def run(number: int) -> None:
            order.append((name, number))
            clock.time += cost + number
            clock.pending = True

        return run

    ticks: list[None] = []
    calls = {"slow": call("slow", 4.0), "fast": call("fast", 1.0)}
    found = time_in_turns(calls, 2, clock, warm_up=1, on_call=lambda: ticks.append(None))
    assert order == [("slow", 0), ("fast", 0), ("slow", 0), ("fast", 0), ("slow", 1), ("fast", 1)]
    assert (found["slow"].values, found["fast"].values) == ((4, 5), (1, 2))
    assert len(ticks) == 6
    assert found["fast"].speedup(found["slow"]).values == (4, 2.5)


def test_no_warm_up_and_no_calls_are_allowed() -> None:
    clock = HandClock()

    def run(number: int) -> None:
        clock.time += 1

    assert time_in_turns({"a": run}, 3, clock, warm_up=0)["a"].values == (1, 1, 1)
    assert time_in_turns({}, 3, clock) == {}


def test_rounds_may_begin_with_another_each() -> None:
    assert list(in_turns("ABC", 2)) == [(0, "A"), (0, "B"), (0, "C"), (1, "A"), (1, "B"), (1, "C")]
    assert [case for _, case in in_turns("ABC", 4, rotate=True)] == list("ABCBCACABABC")


def test_one_call_is_timed_with_its_result() -> None:
    clock = HandClock()

    def call() -> str:
        clock.time += 2.5
        return "made"

    assert timed(call, clock) == ("made", 2.5)


def test_a_spread_by_hand() -> None:
    spread = Spread.of([4, 1, 3, 2, 10])
    assert (spread.median, spread.low, spread.high, spread.least, spread.most) == (3, 2, 4, 1, 10)
    assert Spread.of([7]) == Spread((7,), 7, 7, 7, 7, 7)
    with pytest.raises(ValueError):
        Spread.of([1, 2]).speedup(Spread.of([1]))


def test_the_clock_of_a_device() -> None:
    assert isinstance(clock_of(torch.device("cpu")), WallClock)
    assert isinstance(clock_of(torch.device("cuda", 1)), CudaClock)
    clock = WallClock()
    start = clock.now()
    assert clock.between(start, start + 2) == 2
    assert clock.now() >= start


def test_capturing_a_graph_takes_no_time() -> None:
    assert CudaClock().between(None, None) == 0
