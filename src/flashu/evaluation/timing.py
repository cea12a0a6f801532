"""Timing several calls in turns, so that a drift of the machine meets all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import torch

from flashu.evaluation.statistics import Spread

T = TypeVar("T")


class Clock(Protocol):
    """What is read before and after. ``between``: seconds (or FLOPs, whatever it counts), valid once settled."""

    def now(self) -> Any: ...
    def between(self, start: Any, end: Any) -> float: ...
    def settle(self) -> None:
        """Wait until every reading is final."""


class WallClock:
    """Seconds of a device whose calls return when done."""

    def now(self) -> float:
        return time.perf_counter()

    def between(self, start: float, end: float) -> float:
        return end - start

    def settle(self) -> None:
        pass


class CudaClock:
    """Seconds between events on the device, so that reading the clock does not hold the device up."""

    def now(self) -> torch.cuda.Event | None:
        if torch.cuda.is_current_stream_capturing():
            return None  # capturing a graph takes no time of the device
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: torch.cuda.Event | None, end: torch.cuda.Event | None) -> float:
        return 0.0 if start is None or end is None else start.elapsed_time(end) / 1000

    def settle(self) -> None:
        torch.cuda.synchronize()


def clock_of(device: torch.device) -> Clock:
    return CudaClock() if device.type == "cuda" else WallClock()


def timed(call: Callable[[], T], clock: Clock) -> tuple[T, float]:
    """The result of one call, and its seconds, device work included."""
    clock.settle()
    start = clock.now()
    result = call()
    end = clock.now()
    clock.settle()
    return result, clock.between(start, end)


def in_turns(cases: Sequence[T], rounds: int, *, rotate: bool = False) -> Iterator[tuple[int, T]]:
    """(round, case): A B C A B C ...; with ``rotate`` A B C B C A ..., each round begun by another."""
    for number in range(rounds):
        first = number % len(cases) if rotate else 0
        for case in (*cases[first:], *cases[:first]):
            yield number, case


def time_in_turns(
    calls: Mapping[str, Callable[[int], object]],
    rounds: int,
    clock: Clock,
    *,
    warm_up: int = 1,
    rotate: bool = False,
    on_call: Callable[[], object] = lambda: None,
) -> dict[str, Spread]:
    """Time every call in ``rounds`` interleaved rounds, after ``warm_up`` rounds that do not count.

    A call is given the number of its round, warm-up rounds that of the first (0). ``on_call`` after each call, the
    warm-up's included.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number, name in in_turns(list(calls), warm_up + rounds, rotate=rotate):
        _, amount = timed(partial(calls[name], max(number - warm_up, 0)), clock)
        if number >= warm_up:
            seconds[name].append(amount)
        on_call()
    return {name: Spread.of(values) for name, values in seconds.items()}
