"""A benchmark from a subject and rows: warm up, count, measure in rounds, summarise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import TypeVar

from flashu.bench.ceiling import highest, measure_ceiling
from flashu.bench.flops import FlopClock, counting
from flashu.bench.kinds import PROMPT, Kind, Piece, compose, means
from flashu.bench.lanes import Banks, Lane, OriginalLane, RecipeLane, Take, decode_image
from flashu.bench.machine import conditions
from flashu.bench.memory import MEANING
from flashu.bench.result import Report, RowResult
from flashu.bench.rows import Row
from flashu.bench.subject import Subject
from flashu.bench.summary import about, summary
from flashu.bench.watch import Clock, Watch, clock_of
from flashu.errors import FlashUError

NO_GRAPHS = "CUDA graphs need a CUDA device: there is none here"
SHORTEST = 0.5
"""Seconds a sampled run lasts at least: a small model's is played again and again."""
Say = Callable[[str], None]
T = TypeVar("T")


def bench(
    subject: Subject,
    rows: Sequence[Row],
    *,
    repeats: int = 3,
    sampled: bool = False,
    check: bool = False,
    say: Say = lambda _: None,
) -> Report:
    """Measure ``rows`` in ``repeats`` interleaved rounds after a warm-up.

    ``sampled``: compose each run from one forward of each kind; ``check``: also run each row whole, once. ``say`` is
    told what is being done.
    """
    device = subject.model.device
    clock, banks = clock_of(device), Banks(subject.model)
    lanes, notes = [], {}
    for row in rows:
        if row.graphs and device.type != "cuda":
            notes[row.name] = NO_GRAPHS
            continue
        try:
            lanes.append(lane_of(row, subject, banks, clock))
        except FlashUError as error:
            notes[row.name] = str(error)
    say("measuring the machine's ceilings")
    ceilings = [measure_ceiling(device, subject.model.dtype)]
    flops = count_flops(lanes, subject, banks, say)
    compiling = {lane: warm_up(lane, sampled, say) for lane in lanes if lane.row.compiled}
    if not sampled:
        settle_fewer(lanes, {lane: [lane.sample(SHORTEST)] for lane in lanes if is_needed(lane, lanes)})

    pools = [Pool(decoded(subject, clock)) for _ in range(repeats)] if sampled else []

    def play(lane: Lane, n: int) -> Take:
        if lane is lanes[0]:  # the machine drifts, and its best with it
            ceilings.append(measure_ceiling(device, subject.model.dtype))
        say(f"round {n + 1} of {repeats}: {lane.row.name}")
        return pools[n].add(lane) if sampled else lane.whole()

    takes = interleaved(lanes, repeats, play)
    if sampled:
        takes = {
            lane: [pool.of(lane, take) for pool, take in zip(pools, own, strict=True)] for lane, own in takes.items()
        }
        settle_fewer(lanes, takes)
    results = {}
    for lane in lanes:
        result = summary(lane, takes[lane], flops, sampled)
        if sampled and check:
            say(f"a whole run of {lane.row.name}")
            result = replace(result, whole_seconds=lane.whole().seconds)
        results[lane.row.name] = replace(result, compile_seconds=compiling.get(lane))
    return Report(
        about(subject),
        subject.units,
        sampled,
        repeats,
        conditions(device),
        asdict(highest(ceilings)),
        MEANING[device.type],
        tuple(results[row.name] if row.name in results else RowResult(row.name, notes[row.name]) for row in rows),
    )


def lane_of(row: Row, subject: Subject, banks: Banks, clock: Clock, compiled: bool | None = None) -> Lane:
    """The lane a row runs on; ``compiled`` overrides what the row says."""
    if row.recipe is None:
        if subject.weights not in ("", "packed"):
            raise FlashUError(f"the original program knows no {subject.weights} weights")
        return OriginalLane(row, subject, clock)
    return RecipeLane(row, subject, clock, banks, compiled=row.compiled if compiled is None else compiled)


def interleaved(lanes: Sequence[T], repeats: int, play: Callable[[T, int], Take]) -> dict[T, list[Take]]:
    """A B C A B C ...: what drifts, drifts for all."""
    takes: dict[T, list[Take]] = {lane: [] for lane in lanes}
    for n in range(repeats):
        for lane in lanes:
            takes[lane].append(play(lane, n))
    return takes


class Pool:
    """What one round of short runs met: a kind of forward that several rows share is timed once, unless their rooms
    or the layout of their weights differ."""

    def __init__(self, image: Sequence[Piece]) -> None:
        self.met: dict[tuple[bool, bool], list[Piece]] = defaultdict(lambda: list(image))

    def add(self, lane: Lane) -> Take:
        met = self.met[lane.row.compiled, lane.row.in_place]
        take = lane.sample(SHORTEST, known={piece.kind for piece in met})
        met += take.pieces
        return take

    def of(self, lane: Lane, take: Take) -> Take:
        """The pieces a lane's runs are composed of."""
        wanted = lane.counts()
        return replace(
            take, pieces=[piece for piece in self.met[lane.row.compiled, lane.row.in_place] if piece.kind in wanted]
        )


def count_flops(lanes: Sequence[Lane], subject: Subject, banks: Banks, say: Say) -> dict[Kind, float]:
    """FLOPs of one piece of each kind, and the warm-up of eager rooms. Compiled ones do the same work."""
    counted: dict[Kind, float] = {}
    for lane in lanes:
        say(f"warming up and counting the FLOPs of {lane.row.name}")
        clock = FlopClock()
        eager = lane_of(lane.row, subject, banks, clock, compiled=False)
        with counting(clock):
            counted |= means(eager.sample(known=counted).pieces)
    return counted


def warm_up(lane: Lane, sampled: bool, say: Say) -> float:
    """Seconds by which the first run, which compiles, is longer than the second. Short runs, but where answers are
    timed whole: which layers those skip, they find out, and so what there is to compile."""
    say(f"compiling {lane.row.name}")
    play = lane.sample if sampled or lane.subject.task == "t2i" else lane.whole
    first = play().seconds
    return max(first - play().seconds, 0.0)


def is_needed(lane: Lane, lanes: Sequence[Lane]) -> bool:
    """Whether the cost of a lane decides how many forwards some lane takes."""
    return bool(lane.row.as_dear_as) or any(other.row.as_dear_as == lane.row.name for other in lanes)


def settle_fewer(lanes: Sequence[Lane], takes: dict[Lane, list[Take]]) -> None:
    """Give the rows "as dear as" another as many forwards as cost what that one's forwards cost."""
    by_name = {lane.row.name: lane for lane in lanes}
    for lane in lanes:
        if lane.row.as_dear_as:
            dear = by_name[lane.row.as_dear_as]
            assert isinstance(lane, RecipeLane)
            lane.steps = equal_forwards(_pieces(takes[lane]), compose(_pieces(takes[dear]), dear.inside()))


def equal_forwards(pieces: Sequence[Piece], amount: float) -> int:
    """How many of the full forwards among ``pieces``, after their one prompt pass, cost ``amount``."""
    each = means(pieces)
    prompt = sum(value for kind, value in each.items() if kind.step == PROMPT)
    full = sum(value for kind, value in each.items() if kind.step == "denoise")
    return max(1, round((amount - prompt) / full))


def decoded(subject: Subject, clock: Clock) -> list[Piece]:
    """The decoding of the latents, which sampled runs leave out."""
    watch = Watch(clock)
    if subject.task == "t2i":
        decode_image(watch, subject, subject.noise())
    return watch.pieces()


def _pieces(takes: Sequence[Take]) -> list[Piece]:
    return [piece for take in takes for piece in take.pieces]
