"""A job: what one request asks of the scheduler, and the events it gets."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from PIL import Image
from torch import Tensor

from flashu.inference.actions import AnswerRequest, DrawRequest
from flashu.inference.run import Run
from flashu.server.errors import ApiError


@dataclass(frozen=True)
class Started:
    """Every sample of the job has been written for the model: from here on nothing is wrong with the request."""


@dataclass(frozen=True)
class Stepped:
    """A forward of a drawing; ``preview``: the image so far, where one was asked for."""

    sample: int
    step: int
    total: int
    preview: Image.Image | None = None


@dataclass(frozen=True)
class Said:
    """A piece of an answer's text."""

    sample: int
    text: str


@dataclass(frozen=True)
class Work:
    """What a sample took. ``forwards``: all; ``decoder``: those that went through the decoder. ``seconds``: from
    acceptance to the result; ``waited`` of them before its first forward; ``first``: to the first token of text.
    ``scales``: the largest guidance scale of each branch."""

    forwards: int
    decoder: int
    prompt_tokens: int
    seconds: float
    waited: float
    first: float | None = None
    scales: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Drawn:
    """``thought``: the text that was thought before drawing."""

    sample: int
    image: Image.Image
    work: Work
    thought: str = ""


@dataclass(frozen=True)
class Answered:
    """``stopped``: the answer ended by itself or at a stop text, not at its limit."""

    sample: int
    text: str
    tokens: int
    stopped: bool
    work: Work


@dataclass(frozen=True)
class Failed:
    error: ApiError


@dataclass(frozen=True)
class Ended:
    """Nothing comes after it."""


JobEvent: TypeAlias = Started | Stepped | Said | Drawn | Answered | Failed | Ended


@dataclass(eq=False)
class Job:
    """One request. ``tell`` is called from the scheduler's thread. ``sampling``: of answers, as `Engine.answer` takes
    it, with ``seeds`` apart; ``stop``: texts that end an answer; ``previews``: how many a drawing shows on its way."""

    id: str
    preset: str
    requests: Sequence[DrawRequest | AnswerRequest]
    tell: Callable[[JobEvent], None]
    task: Literal["generation", "understanding"] = "generation"
    sampling: dict[str, Any] = field(default_factory=dict)
    seeds: Sequence[int] = ()
    stop: Sequence[str] = ()
    previews: int = 0
    fields: Mapping[type[Exception], str] = field(default_factory=dict)
    """Which field of the request an error of the model is about."""
    accepted: float = field(default_factory=time.perf_counter)
    waiting: list[Sample] = field(default_factory=list)
    left: int = 0
    """Samples without a result."""
    over: bool = False

    def finish(self, event: JobEvent | None = None) -> None:
        """Tell the last thing."""
        if self.over:
            return
        self.over = True
        if event is not None:
            self.tell(event)
        self.tell(Ended())


@dataclass(eq=False)
class Sample:
    """One image or answer of a job, as a run."""

    job: Job
    index: int
    run: Run
    served: int = 0
    """Number of the scheduler's forward that it was last in."""
    began: float | None = None
    first: float | None = None
    reader: Reader | None = None
    state: Tensor | None = None
    """Latest latents, where previews are wanted."""
    point: tuple[float, Tensor] | None = None
    """Latents before those, and their time."""

    @property
    def preset(self) -> str:
        return self.job.preset

    def work(self) -> Work:
        now, trace = time.perf_counter(), self.run.trace
        scales: dict[str, float] = {}
        for step in trace:
            for branch, scale in step.plan.scales.items():
                scales[branch] = max(scale, scales.get(branch, scale))
        return Work(
            len(trace),
            sum(step.tokens > 0 for step in trace),
            trace[0].tokens + trace[0].past + trace[0].shared if trace else 0,
            now - self.job.accepted,
            (self.began or now) - self.job.accepted,
            None if self.first is None else self.first - self.job.accepted,
            scales,
        )


class Reader:
    """Text of tokens as they come. A piece that ends inside a character, or might begin a stop text, waits."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode, self._stop = decode, tuple(stop)
        self._start = self._read = 0
        self.text = ""
        """Decoded so far."""
        self.shown = 0
        """Characters given out."""
        self.stopped = False

    def read(self, ids: Sequence[int], last: bool = False) -> str:
        """What there is to show after ``ids``, all tokens so far; ``last``: no more will come."""
        if self.stopped:
            return ""
        # Only the last few tokens are decoded: those shown last, for what a token's text depends on, and the new.
        before = self._decode(ids[self._start : self._read])
        now = self._decode(ids[self._start :])
        if last or (len(now) > len(before) and not now.endswith("\N{REPLACEMENT CHARACTER}")):
            self.text += now[len(before) :]
            self._start, self._read = self._read, len(ids)
        # The one that is complete first, however many tokens came at once.
        found = [(at + len(stop), at) for stop in self._stop if (at := self.text.find(stop, self.shown)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)[1]], True
        upto = len(self.text) if self.stopped or last else len(self.text) - self._held()
        piece, self.shown = self.text[self.shown : upto], max(self.shown, upto)
        return piece

    def _held(self) -> int:
        """Characters at the end that may be the beginning of a stop text."""
        most = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(self.text)), most, -1):
                if self.text.endswith(stop[:size]):
                    most = size
                    break
        return most
