"""From takes to a row's result: medians over the rounds, amounts composed from the pieces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from flashu.bench.flops import Reads, original_forward, original_token
from flashu.bench.kinds import DECODE_IMAGE, ENCODE, SETUP, Kind, components, compose, means
from flashu.bench.lanes import Lane, RecipeLane, Take
from flashu.bench.result import KindResult, RowResult, Spread
from flashu.bench.subject import TASK, Subject
from flashu.plan import cost
from flashu.plan.explain import Sizes, tabulate

AROUND = frozenset({SETUP, ENCODE, DECODE_IMAGE})
"""Pieces whose FLOPs and bytes are not the model's forwards'."""


def summary(lane: Lane, takes: Sequence[Take], flops: Mapping[Kind, float], sampled: bool) -> RowResult:
    """One row's result; ``flops`` of one piece of each kind."""
    drawing = lane.subject.task == "t2i"
    counts = [lane.counts() if sampled else Counter(piece.kind for piece in take.pieces) for take in takes]
    inside = [Counter({kind: n for kind, n in count.items() if kind.step not in AROUND}) for count in counts]
    pairs = list(zip(takes, counts, strict=True))
    seconds = [compose(take.pieces, count) if sampled else take.seconds for take, count in pairs]
    parts = [components(take.pieces, count) for take, count in pairs]
    each = [means(take.pieces) for take in takes]
    reads, last = reads_of(lane), inside[-1]
    peaks = [take.peak for take in takes if take.peak is not None]
    return RowResult(
        lane.row.name,
        recipe=lane.recipe.to_dict() if isinstance(lane, RecipeLane) else None,
        forwards=lane.forwards,
        seconds=Spread.of(seconds),
        parts={name: median(p.get(name, 0.0) for p in parts) for name in parts[0]},
        kinds=tuple(
            KindResult(
                str(kind),
                fmean(count[kind] for count in counts),
                Spread.of([found[kind] for found in each if kind in found]),
                flops.get(kind, 0.0),
                reads.of(kind, drawing),
            )
            for kind in {kind: None for count in counts for kind in count}
        ),
        flops=sum(count * flops[kind] for kind, count in last.items()),
        flops_predicted=predicted(lane),
        bytes=float(sum(count * reads.of(kind, drawing) for kind, count in last.items())),
        model_seconds=median(compose(take.pieces, count) for take, count in zip(takes, inside, strict=True)),
        peak_memory=max(peaks) if peaks else None,
    )


def predicted(lane: Lane) -> float:
    """FLOPs of a whole run's forwards from shapes alone."""
    subject = lane.subject
    cfg = subject.model.config
    rows = subject.batch * (1 if subject.guidance is None else 2)
    if not isinstance(lane, RecipeLane):
        if subject.task == "t2i":
            length = subject.processor.text.max_text + subject.image_tokens + 5
            return float(lane.forwards * original_forward(cfg, rows, length, subject.image_tokens))
        return float(sum(original_token(cfg, rows, asked(subject) + n) for n in range(lane.forwards)))
    sizes = Sizes(subject.name, cfg, subject.processor.defaults, factor(subject), subject.processor.text.max_text)
    words = sum(len(part) for part in subject.question)
    settings = {"steps": lane.steps, "prompt_tokens": len(subject.prompts[0]), "question_tokens": words}
    table = tabulate(sizes, lane.recipe, TASK[subject.task], max_new_tokens=subject.new_tokens, **settings)
    forwards = subject.batch * sum(forward.flops for forward in table.forwards)
    if subject.task == "mmu":
        return float(forwards - subject.batch * cost.semantic_path(cfg, subject.image_tokens))  # not a forward's here
    # The empty prompt is the same for all images.
    return forwards + sum(prompt.flops / prompt.rows * (subject.batch + prompt.rows - 1) for prompt in table.prompts)


def reads_of(lane: Lane) -> Reads:
    subject = lane.subject
    return Reads(subject.model, subject.batch * asked(subject))


def asked(subject: Subject) -> int:
    """Tokens of a question with its picture."""
    return sum(len(part) for part in subject.question) + subject.image_tokens + 1


def factor(subject: Subject) -> int:
    return 8 if subject.processor.vae is None else subject.processor.vae.factor


def about(subject: Subject) -> dict[str, Any]:
    """What was measured, for the report."""
    model, defaults = subject.model, subject.processor.defaults
    return {
        "model": subject.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "task": subject.task,
        "batch": subject.batch,
        "dtype": str(model.dtype).removeprefix("torch."),
        "weights": subject.weights,
        "device": str(model.device),
        "pixels": [defaults.height, defaults.width],
        "guidance": subject.guidance,
        "steps": subject.steps if subject.task == "t2i" else None,
        "new_tokens": subject.new_tokens if subject.task == "mmu" else None,
        "prompt_tokens": len(subject.prompts[0]),
        "question_tokens": sum(len(part) for part in subject.question),
        "image_tokens": subject.image_tokens,
        "autoencoder": subject.processor.vae is not None,
    }
