"""The scheduler: one thread that owns the model, and admits, batches and ends samples at every forward."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flashu.errors import FlashUError
from flashu.inference.engine import Engine
from flashu.inference.run import Event
from flashu.runtime.memory import enough_memory
from flashu.runtime.request import StepRequest
from flashu.runtime.slots import SlotPool
from flashu.server.errors import ApiError
from flashu.server.jobs import Answered, Drawn, Failed, Job, Reader, Said, Sample, Started, Stepped
from flashu.server.metrics import Metrics
from flashu.server.previews import Previews
from flashu.server.settings import ServeSettings
from flashu.server.shares import Shares, Task

log = logging.getLogger("flashu")

TASKS: tuple[Task, ...] = ("generation", "understanding")
ADVICE = "try again later, or ask for a smaller image"
LONGEST_RETRY = 60
"""Seconds: the most that a client is asked to wait before it tries again."""


class Scheduler:
    """Carries out jobs on ``engines`` (by preset; one model), each sample a `Run` of its own, so that methods keep
    their state per sample whatever it is batched with.

    At every forward: new jobs are admitted, cancelled ones leave, and the samples whose turn it is (`Shares`) are
    computed with all others of an equal signature. `submit` and `cancel` may be called from any thread.
    """

    def __init__(self, engines: Mapping[str, Engine], settings: ServeSettings, metrics: Metrics | None = None) -> None:
        for name, engine in engines.items():
            if engine.recipe.reference:
                raise FlashUError(f"{name} reproduces a program in which a batch shares its state: it cannot be served")
        self.engines, self.settings, self.metrics = engines, settings, metrics or Metrics()
        self.executors = {name: engine.executor(SlotPool(settings.answering)) for name, engine in engines.items()}
        self.draining = False
        self._shares = Shares(settings.answer_share)
        self._previews = Previews(engines)
        self._limit: dict[Task, int] = {"generation": settings.drawing, "understanding": settings.answering}
        self._queue: dict[Task, deque[Job]] = {task: deque() for task in TASKS}
        self._running: list[Sample] = []
        self._changed = threading.Condition()
        self._cancelled: list[Job] = []
        self._stopping = False
        self._rows = settings.rows
        """Most rows of a forward: fewer once so many did not fit."""
        self._forwards = 0
        self._pace = 1.0
        """Seconds that a sample took lately."""
        self._idle_calls: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._work, name="flashu-model", daemon=True)

    # -- from any thread ---------------------------------------------------------------------------------------
    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        """Accept a job; `ApiError` 429 when too much waits, 503 when the server is about to stop."""
        with self._changed:
            if self.draining:
                raise ApiError(503, "the server is stopping and takes no new requests", retry_after=5)
            count = len(job.requests)
            waiting = sum(self.waiting.values())
            free = max(self._limit[job.task] - sum(s.job.task == job.task for s in self._running), 0)
            if waiting + count > self.settings.queue + free:
                after = math.ceil(self._pace * (waiting + 1) / self._limit[job.task])
                message = f"{waiting} samples are waiting, and at most {self.settings.queue} may: try again later"
                raise ApiError(429, message, retry_after=min(max(after, 1), LONGEST_RETRY))
            job.left = count
            self._queue[job.task].append(job)
            self._count()
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Its rows are free from the next forward on. It gets no more events."""
        with self._changed:
            self._cancelled.append(job)
            self._changed.notify()

    def drain(self, then: Callable[[], None]) -> None:
        """Take no more jobs, and call ``then`` once those accepted are done."""
        with self._changed:
            self.draining = True
            self._idle_calls.append(then)
            self._changed.notify()

    def stop(self) -> None:
        """End the thread; what is under way fails with 503."""
        with self._changed:
            self.draining = self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def waiting(self) -> dict[Task, int]:
        """Samples that have not begun, by task."""
        return {
            task: sum(len(job.waiting) if job.waiting else job.left for job in queue)
            for task, queue in self._queue.items()
        }

    # -- the thread --------------------------------------------------------------------------------------------
    def _work(self) -> None:
        with torch.inference_mode():
            while True:
                try:
                    if not self._once():
                        return
                except Exception:
                    log.exception("the scheduler failed; what was under way is given up")
                    self._give_up(list(self._jobs()), ApiError(500, "the server failed on this request"))

    def _once(self) -> bool:
        """One forward, or a wait for work; False when the thread is to end."""
        with self._changed:
            self._leave()
            self._expire()
            if self._stopping:
                self._give_up(list(self._jobs()), ApiError(503, "the server has stopped"))
                return False
            if not self._running and not any(self._queue.values()):
                calls, self._idle_calls = self._idle_calls, []
                for call in calls:
                    call()
                self._changed.wait()
                return True
        self._admit()
        with self._changed:
            self._count()
        chosen, task = self._chosen()
        if chosen:
            self._forward(chosen, task)
        return True

    def _jobs(self) -> Iterable[Job]:
        found = {id(sample.job): sample.job for sample in self._running}
        found |= {id(job): job for queue in self._queue.values() for job in queue}
        return found.values()

    def _count(self) -> None:
        for task, count in self.waiting.items():
            self.metrics.waiting.labels(task).set(count)
            self.metrics.running.labels(task).set(sum(sample.job.task == task for sample in self._running))

    # -- who is in ---------------------------------------------------------------------------------------------
    def _admit(self) -> None:
        if self.settings.batching != "step":
            self._admit_whole()
            return
        for task in TASKS:
            free = self._limit[task] - sum(sample.job.task == task for sample in self._running)
            while free > 0 and (job := self._first(task)) is not None:
                free -= self._begin(job, free)

    def _admit_whole(self) -> None:
        """Requests that go together to their end: one, or all that wait of the first one's kind."""
        if self._running:
            return
        heads = [first for task in TASKS if (first := self._first(task)) is not None]
        if not heads:
            return
        job: Job | None = min(heads, key=lambda first: first.accepted)
        assert job is not None
        task, preset, free = job.task, job.preset, self._limit[job.task]
        while job is not None and job.preset == preset and free > 0:
            free -= self._begin(job, len(job.requests))
            if self.settings.batching == "none" and self._running:
                return
            job = self._first(task)

    def _first(self, task: Task) -> Job | None:
        with self._changed:
            return self._queue[task][0] if self._queue[task] else None

    def _begin(self, job: Job, most: int) -> int:
        """Let samples of a job in, ``most`` at most. Returns how many."""
        if not job.waiting and not self._write(job):
            return 0
        with self._changed:
            entering, job.waiting = job.waiting[:most], job.waiting[most:]
            self._running += entering
            if not job.waiting:
                self._queue[job.task].remove(job)
        return len(entering)

    def _write(self, job: Job) -> bool:
        """Write a job's runs; whether that could be done."""
        engine = self.engines[job.preset]
        try:
            with self.metrics.timed("write"):
                if job.task == "generation":
                    runs = engine.runs_to_draw(job.requests)  # type: ignore[arg-type]
                else:
                    runs = engine.runs_to_answer(job.requests, seed=job.seeds, **job.sampling)  # type: ignore[arg-type]
        except Exception as error:
            self._give_up([job], _unwritten(job, error))
            return False
        job.waiting = [Sample(job, n, run) for n, run in enumerate(runs)]
        for sample in job.waiting:
            sample.reader = Reader(engine.layout.text, job.stop)
        job.tell(Started())
        return True

    def _leave(self) -> None:
        """Cancelled jobs go."""
        cancelled, self._cancelled = self._cancelled, []
        for job in cancelled:
            if not job.over:
                job.over = True
                self._remove(job, "cancelled")

    def _expire(self) -> None:
        now = time.perf_counter()
        late = [job for job in self._jobs() if now - job.accepted > self.settings.timeout]
        message = f"not done within {self.settings.timeout:g} seconds"
        self._give_up(late, ApiError(504, message), "timeout")

    def _give_up(self, jobs: Sequence[Job], error: ApiError, end: str = "failed") -> None:
        for job in jobs:
            self._remove(job, end)
            job.finish(Failed(error))

    def _remove(self, job: Job, end: str) -> None:
        with self._changed:
            for sample in self._running:
                if sample.job is job:
                    sample.run.close()
            self._running = [sample for sample in self._running if sample.job is not job]
            self._queue[job.task] = deque(other for other in self._queue[job.task] if other is not job)
            self.metrics.samples.labels(job.task, end).inc(job.left)
            self._count()

    # -- whose turn it is --------------------------------------------------------------------------------------
    def _chosen(self) -> tuple[list[Sample], Task]:
        """The samples of the next forward, all of one preset and task."""
        by_task: dict[Task, list[Sample]] = {task: [s for s in self._running if s.job.task == task] for task in TASKS}
        waiting = frozenset(task for task, samples in by_task.items() if samples)
        if not waiting:
            return [], "generation"
        new = [s for s in by_task["understanding"] if s.began is None]
        task = self._shares.choose(waiting, bool(new))
        samples = new if task == "understanding" and new else by_task[task]
        # The sample that has waited longest, and all that can be computed with it.
        oldest = min(samples, key=lambda sample: sample.served)
        asked = self._asked(oldest)
        if asked is None:
            return [], task
        signature = asked.signature
        group: list[Sample] = []
        rows = 0
        for sample in sorted(samples, key=lambda sample: sample.served):
            request = self._asked(sample)
            if request is None or sample.preset != oldest.preset or request.signature != signature:
                continue
            if group and rows + len(request.rows) > self._rows:
                break
            group.append(sample)
            rows += len(request.rows)
        return [sample for sample in group if not sample.job.over], task

    def _asked(self, sample: Sample) -> StepRequest | None:
        """The forward that a sample needs next. None: there is none, and its job has been given up."""
        try:
            if (request := sample.run.prepare()) is not None:
                return request
            error: Exception = RuntimeError("a run ended without a result")
        except Exception as raised:
            error = raised
        if not sample.job.over:
            self._give_up([sample.job], _unwritten(sample.job, error))
        return None

    def _forward(self, group: Sequence[Sample], task: Task) -> None:
        began = time.perf_counter()
        self._forwards += 1
        requests = [request for sample in group if (request := sample.run.prepare()) is not None]
        kind = requests[0].step.kind
        for sample in group:
            sample.served = self._forwards
            sample.began = sample.began or began
        try:
            with self.metrics.timed(kind), enough_memory(f"compute {len(group)} samples at once", ADVICE):
                outputs = self.executors[group[0].preset].forward(requests)
                done = [sample.run.accept(output) for sample, output in zip(group, outputs, strict=True)]
        except FlashUError as error:
            self._without(group, task, kind, error)
            return
        except Exception:
            log.exception("a forward failed")
            self._give_up([sample.job for sample in group], ApiError(500, "the server failed on this request"))
            return
        self.metrics.batch.labels(kind).observe(len(group))
        self.metrics.rows.labels(kind).observe(sum(len(request.rows) for request in requests))
        drawn: list[tuple[Sample, Tensor]] = []
        for sample, events in zip(group, done, strict=True):
            self._note(sample)
            if task == "understanding":
                self._said(sample, events)
            else:
                drawn += self._stepped(sample, events)
        with self.metrics.timed("previews"):
            self._previews.show()
        if drawn:
            self._finish_drawings(drawn)
        self._shares.took(task, time.perf_counter() - began)

    def _without(self, group: Sequence[Sample], task: Task, kind: str, error: FlashUError) -> None:
        """A forward that could not be computed: by halves where it left nothing behind; what fails alone goes."""
        if len(group) > 1 and kind in ("block", "prefill"):
            half = len(group) // 2
            self._rows = max(1, min(self._rows, sum(len(r.rows) for s in group if (r := s.run.prepare())) // 2))
            log.warning("%s; going on with at most %d rows at a time", error, self._rows)
            for part in (group[:half], group[half:]):
                if part := [sample for sample in part if not sample.job.over]:
                    self._forward(part, task)
            return
        memory = error.__cause__ is not None
        self._give_up([sample.job for sample in group], ApiError(503 if memory else 400, str(error), retry_after=5))

    def _note(self, sample: Sample) -> None:
        """Count what a forward did."""
        step, metrics = sample.run.trace[-1], self.metrics
        metrics.skipped.inc(len(step.plan.layers.skip))
        if step.step.task == "generation":
            metrics.steps.inc()
            metrics.reused.inc(step.plan.features == "reuse")
        elif len(sample.run.trace) == 1:
            metrics.prompt_tokens.inc(step.tokens + step.past + step.shared)
            metrics.shared.inc(step.shared)

    # -- results -----------------------------------------------------------------------------------------------
    def _said(self, sample: Sample, events: Sequence[Event]) -> None:
        run, reader = sample.run, sample.reader
        assert reader is not None
        new = sum(event.kind == "token" for event in events)
        self.metrics.tokens.inc(new)
        if new and sample.first is None:
            sample.first = time.perf_counter()
            self.metrics.first.observe(sample.first - sample.job.accepted)
        if piece := reader.read(run.text, last=run.done):
            sample.job.tell(Said(sample.index, piece))
        if not run.done and not reader.stopped:
            return
        limit = next((event.total for event in events if event.kind == "text"), None)
        stopped = reader.stopped or limit is None or len(run.text) < limit
        self._done(sample, Answered(sample.index, reader.text, len(run.text), stopped, sample.work()))

    def _stepped(self, sample: Sample, events: Sequence[Event]) -> list[tuple[Sample, Tensor]]:
        """Tell a drawing's steps; returns what was finished."""
        finished = []
        for event in events:
            if event.kind == "step":
                if not self._previews.wanted(sample, event):
                    sample.job.tell(Stepped(sample.index, event.index + 1, event.total))
            elif event.kind in ("token", "text") and sample.reader is not None:  # a thought before the drawing
                if piece := sample.reader.read(sample.run.text, last=event.kind == "text"):
                    sample.job.tell(Said(sample.index, piece))
            elif event.kind == "image":
                finished.append((sample, event.data))
        return finished

    def _finish_drawings(self, drawn: Sequence[tuple[Sample, Tensor]]) -> None:
        """Decode what was drawn, images of one size together."""
        by_shape: dict[Any, list[tuple[Sample, Tensor]]] = {}
        for sample, latents in drawn:
            if latents.is_floating_point() and not bool(latents.isfinite().all()):
                message = "the latents are not finite: the settings are unusable, try a smaller guidance_scale"
                self._give_up([sample.job], ApiError(400, message))
            elif not sample.job.over:
                by_shape.setdefault(latents.shape, []).append((sample, latents))
        for part in by_shape.values():
            samples = [sample for sample, _ in part]
            try:
                with self.metrics.timed("decode"):
                    images = self.engines[samples[0].preset].decode(torch.stack([latents for _, latents in part]))
            except FlashUError as error:
                self._give_up([s.job for s in samples], ApiError(503, str(error), retry_after=5))
                continue
            except Exception:
                log.exception("images could not be decoded")
                self._give_up([s.job for s in samples], ApiError(500, "the server failed on this request"))
                continue
            for sample, image in zip(samples, images, strict=True):
                thought = "" if sample.reader is None else sample.reader.text
                self._done(sample, Drawn(sample.index, image, sample.work(), thought))

    def _done(self, sample: Sample, result: Drawn | Answered) -> None:
        job = sample.job
        sample.run.close()
        with self._changed:
            self._running = [other for other in self._running if other is not sample]
            job.left -= 1
            self._count()
        self._pace += 0.1 * (result.work.seconds - result.work.waited - self._pace)
        self.metrics.samples.labels(job.task, "done").inc()
        self.metrics.seconds.labels(job.task).observe(result.work.seconds)
        job.tell(result)
        if not job.left:
            job.finish()


def _unwritten(job: Job, error: Exception) -> ApiError:
    """What is wrong with a job whose runs cannot be made, or do not go on."""
    own = list(getattr(job.requests[0], "own", ()))
    if not isinstance(error, FlashUError) and not (own and isinstance(error, TypeError)):
        log.error("a request could not be written", exc_info=error)
        return ApiError(500, "the server failed on this request")
    field = job.fields.get(type(error)) or (own[0] if len(own) == 1 else None)
    return ApiError(400, f"{field}: {error}" if field else str(error), field)
