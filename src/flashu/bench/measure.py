"""A benchmark of rows on a subject: warm up, count, measure in rounds, summarise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import fmean, median

from torch import Tensor

from flashu.bench.ceiling import highest, measure_ceiling
from flashu.bench.memory import MEANING, Peak
from flashu.bench.programs import Program, decode_image, program_of
from flashu.bench.result import Report, RowResult, brief
from flashu.bench.rows import Row
from flashu.bench.steps import AROUND, PROMPT, Span, StepKind, compose, compose_components, means
from flashu.bench.subject import Subject
from flashu.bench.tracing import Tracer
from flashu.errors import FlashUError
from flashu.evaluation.flops import FlopClock, counting
from flashu.evaluation.machine import conditions
from flashu.evaluation.statistics import Spread
from flashu.evaluation.timing import Clock, clock_of, in_turns, timed

SHORTEST = 0.5
"""Seconds a short run lasts at least: a small model's is repeated."""
Say = Callable[[str], None]
SharedSpans = dict[tuple[bool, bool], list[Span]]
"""Of one round of short runs: a kind of step that several rows have is timed once, unless these differ in (compiled,
in place)."""


@dataclass(frozen=True)
class Sample:
    """One run: its spans, the seconds it took from end to end, the most memory it held (see `memory.MEANING`), and its
    result (None: of a short run of nothing)."""

    spans: list[Span]
    seconds: float
    peak: int | None
    result: Tensor | None = None


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
    called with what is being done. A row that this machine cannot run is skipped, with the reason in its note.
    """
    if subject.layers and not sampled:
        raise FlashUError("whole runs need all layers: give --steps-sampled with --layers")
    programs, notes = programs_of(rows, subject)
    clock = clock_of(subject.device)
    say("measuring the machine's ceilings")
    ceilings = [measure_ceiling(subject.device, subject.dtype)]
    flops = count_flops(programs, say)
    compiling = {p: compile_seconds(p, clock, sampled, say) for p in programs if p.row.compiled}
    if not sampled:
        compared = {name for p in programs if p.row.same_cost_as for name in (p.row.name, p.row.same_cost_as)}
        match_costs(programs, {p: [short_run(p, clock, SHORTEST)] for p in programs if p.row.name in compared})
    samples: dict[Program, list[Sample]] = {program: [] for program in programs}
    shared: SharedSpans = {}
    for n, program in in_turns(programs, repeats):
        if program is programs[0]:
            ceilings.append(measure_ceiling(subject.device, subject.dtype))  # they drift as the rows do
            shared = {}
        say(f"round {n + 1} of {repeats}: {program.row.name}")
        samples[program].append(shared_run(program, clock, shared) if sampled else whole_run(program, clock))
    if sampled:
        match_costs(programs, samples)
    results = {row: RowResult(row, note) for row, note in notes.items()}
    for program in programs:
        result = summary(program, samples[program], flops, sampled)
        if sampled and check:
            say(f"a whole run of {program.row.name}")
            result = replace(result, whole_seconds=whole_run(program, clock).seconds)
        results[program.row.name] = replace(result, compile_seconds=compiling.get(program))
    return Report(
        subject.about(),
        subject.units,
        sampled,
        repeats,
        conditions(subject.device),
        asdict(highest(ceilings)),
        MEANING[subject.device.type],
        tuple(results[row.name] for row in rows),
    )


def programs_of(rows: Sequence[Row], subject: Subject) -> tuple[list[Program], dict[str, str]]:
    """The rows that can be run here on the subject, and for the others the reason why not."""
    programs: list[Program] = []
    notes: dict[str, str] = {}
    for row in rows:
        try:
            if row.same_cost_as in notes:
                raise FlashUError(f"it costs what {row.same_cost_as!r} costs, which is skipped")
            if row.same_cost_as and subject.sizes.spec.drawing == "autoregressive":
                raise FlashUError("this model takes a forward for each token, however many steps are asked for")
            programs.append(program_of(row, subject))
        except FlashUError as error:
            notes[row.name] = str(error)
    return programs, notes


# -- runs --------------------------------------------------------------------------------------------------------
def whole_run(program: Program, clock: Clock) -> Sample:
    """A whole request."""
    return _run(program.whole, clock, program.subject)


def short_run(
    program: Program,
    clock: Clock,
    at_least: float = 0.0,
    known: Container[StepKind] = (),
    *,
    eager: bool = False,
) -> Sample:
    """The shortest runs with every kind of forward but the ``known``, repeated for ``at_least`` seconds; nothing if
    every kind is known."""
    if all(kind in known for kind in program.counts()):
        return Sample([], 0.0, None)
    return _run(lambda tracer: program.run(tracer, known, eager=eager), clock, program.subject, at_least)


def _run(call: Callable[[Tracer], Tensor], clock: Clock, subject: Subject, at_least: float = 0.0) -> Sample:
    tracer = Tracer(clock, subject.depth)
    spans: list[Span] = []
    seconds = 0.0
    with Peak(subject.device) as peak:
        while not spans or seconds < at_least:
            result, took = timed(partial(call, tracer), clock)
            spans += tracer.collect()
            seconds += took
    return Sample(spans, seconds, peak.bytes, result)


def shared_run(program: Program, clock: Clock, shared: SharedSpans) -> Sample:
    """A short run of what the spans ``shared`` by a round's rows lack. The sample has the list that later rows of the
    round add to; the first run's also has the decoding of what it drew, which short runs leave out."""
    key = program.row.compiled, program.row.in_place
    known = shared.setdefault(key, [])
    sample = short_run(program, clock, SHORTEST, known={span.kind for span in known})
    if not known and program.subject.drawing:
        assert sample.result is not None
        tracer = Tracer(clock)
        decode_image(program.subject, tracer, sample.result)
        known += tracer.collect()
    known += sample.spans
    return replace(sample, spans=known)


# -- before the rounds -------------------------------------------------------------------------------------------
def count_flops(programs: Sequence[Program], say: Say) -> dict[StepKind, float]:
    """FLOPs of one span of each kind, which also warms up what is eager. Compiled code does the same work."""
    counted: dict[StepKind, float] = {}
    for program in programs:
        say(f"warming up and counting the FLOPs of {program.row.name}")
        clock = FlopClock()
        with counting(clock):
            counted |= means(short_run(program, clock, known=counted, eager=True).spans)
    return counted


def compile_seconds(program: Program, clock: Clock, sampled: bool, say: Say) -> float:
    """Seconds by which the first run, which compiles, is longer than the second. Short runs, except where answers are
    timed whole: there the layers to skip are known only at run time, and so is what to compile."""
    say(f"compiling {program.row.name}")
    run = short_run if sampled or program.subject.drawing else whole_run
    first = run(program, clock).seconds
    return max(first - run(program, clock).seconds, 0.0)


def match_costs(programs: Sequence[Program], samples: Mapping[Program, Sequence[Sample]]) -> None:
    """Give the rows that cost the same as another as many forwards as cost what that one's forwards cost."""
    by_name = {program.row.name: program for program in programs}
    for program in programs:
        if program.row.same_cost_as:
            model = by_name[program.row.same_cost_as]
            spans = {p: [span for sample in samples[p] for span in sample.spans] for p in (program, model)}
            own = [span for span in spans[program] if span.kind in program.counts()]
            program.steps = equal_forwards(own, compose(spans[model], model.counts()))


def equal_forwards(spans: Sequence[Span], amount: float) -> int:
    """How many of the full forwards among ``spans``, after their one forward over the prompts, cost ``amount``."""
    each = means(spans)
    prompt = sum(value for kind, value in each.items() if kind.step == PROMPT)
    full = sum(value for kind, value in each.items() if kind.step == "block")
    return max(1, round((amount - prompt) / full))


# -- after the rounds --------------------------------------------------------------------------------------------
def summary(program: Program, samples: Sequence[Sample], flops: Mapping[StepKind, float], sampled: bool) -> RowResult:
    """One row's result: medians over the rounds, amounts composed from the spans; ``flops`` of one of each kind."""
    counts = [program.kinds if sampled else Counter(span.kind for span in sample.spans) for sample in samples]
    forwards = [Counter({kind: n for kind, n in count.items() if kind.step not in AROUND}) for count in counts]
    pairs = list(zip(samples, counts, strict=True))
    parts = [compose_components(sample.spans, count) for sample, count in pairs]
    each = [means(sample.spans) for sample in samples]
    peaks = [sample.peak for sample in samples if sample.peak is not None]
    return RowResult(
        program.row.name,
        program.note,
        recipe=None if program.row.recipe is None else program.engine.recipe.to_dict(),
        forwards=program.forwards,
        seconds=Spread.of([compose(s.spans, count) if sampled else s.seconds for s, count in pairs]),
        parts={name: median(part.get(name, 0.0) for part in parts) for name in parts[0]},
        kinds=tuple(
            {
                "kind": str(kind),
                "count": fmean(count[kind] for count in counts),
                "seconds": brief(Spread.of([mean[kind] for mean in each if kind in mean])),
                "flops": flops.get(kind, 0.0),
                "bytes": program.bytes_of(kind),
            }
            for kind in {kind: None for count in counts for kind in count}
        ),
        flops=sum(count * flops[kind] for kind, count in forwards[-1].items()),
        # From the sizes of the model at hand, which lacks layers.
        flops_predicted=0.0 if program.subject.layers else program.flops,
        bytes=0.0 if program.subject.layers else sum(n * program.bytes_of(kind) for kind, n in forwards[-1].items()),
        model_seconds=median(compose(s.spans, count) for s, count in zip(samples, forwards, strict=True)),
        peak_memory=max(peaks) if peaks else None,
    )
