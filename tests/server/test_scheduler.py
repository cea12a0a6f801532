"""A request's result is its own, whatever it is batched with and whenever it joins; rows are given back at once."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops

import flashu
from flashu import FlashUError
from flashu.inference.actions import AnswerRequest, DrawRequest
from flashu.server.errors import ApiError
from flashu.server.jobs import Answered, Drawn, Ended, Failed, Job, JobEvent, Reader, Said, Started, Stepped
from flashu.server.scheduler import Scheduler
from flashu.server.settings import ServeSettings
from flashu.server.shares import Shares

pytestmark = pytest.mark.filterwarnings("ignore:this model does not know")
PRESETS = ("exact", "paper", "fast")


@dataclass
class Asked:
    """A job under test, and everything it was told."""

    job: Job
    told: list[JobEvent] = field(default_factory=list)
    news: Any = field(default_factory=queue.Queue)

    def __post_init__(self) -> None:
        self.job.tell = self._tell

    def _tell(self, event: JobEvent) -> None:
        self.told.append(event)
        self.news.put(event)

    def until(self, wanted: Callable[[JobEvent], bool], timeout: float = 60) -> JobEvent:
        while True:
            event = self.news.get(timeout=timeout)
            if wanted(event):
                return event

    def results(self) -> list[Any]:
        if not any(isinstance(event, Ended) for event in self.told):
            self.until(lambda event: isinstance(event, Ended))
        return sorted((e for e in self.told if isinstance(e, Drawn | Answered)), key=lambda e: e.sample)

    def error(self) -> ApiError:
        self.results()
        (failed,) = (event for event in self.told if isinstance(event, Failed))
        return failed.error


def drawing(preset: str, *requests: DrawRequest, **more: Any) -> Asked:
    return Asked(Job("", preset, requests, lambda event: None, **more))


def question(preset: str, *requests: AnswerRequest, seed: int = 0, temperature: float = 0.0, **more: Any) -> Asked:
    seeds = [seed + n for n in range(len(requests))]
    sampling = {"temperature": temperature, "top_p": None}
    return Asked(Job("", preset, requests, lambda event: None, "understanding", sampling, seeds, **more))


@contextmanager
def scheduling(engines: dict[str, flashu.Engine], **options: Any) -> Iterator[Scheduler]:
    for engine in engines.values():
        engine.prepare("generation")
        engine.prepare("understanding")
    scheduler = Scheduler(engines, ServeSettings(**options))
    scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.stop()
        assert not scheduler.alive


@pytest.fixture(scope="module")
def engines(tiny_engine: flashu.Engine) -> dict[str, flashu.Engine]:
    return {name: tiny_engine.with_recipe(name) for name in PRESETS}


def picture(n: int) -> Image.Image:
    return Image.new("RGB", (64, 64), (40 * n % 255, 90, 200))


def near(a: Image.Image, b: Image.Image) -> bool:
    return max(high for _, high in ImageChops.difference(a, b).getextrema()) <= 2


@pytest.mark.parametrize("batching", ["step", "request", "none"])
def test_results_are_those_of_each_request_alone(batching: str, engines: dict[str, flashu.Engine]) -> None:
    """Of three presets with caches, pruning and skipped layers, in unlike sizes and numbers of steps, joining at
    different steps."""
    asked: list[tuple[Asked, Any]] = []
    with scheduling(engines, batching=batching, drawing=5, answering=3, rows=6) as scheduler:
        for n in range(12):
            preset = PRESETS[n % 3]
            side = (64, 48)[n // 3 % 2]
            request = DrawRequest(f"w{n} w2", n, 6 + n % 4, (5.0, 0.0)[n // 6], None, side, side)
            draw = drawing(preset, request, previews=n % 3)
            text = f"w{n} w{n + 1} w3"
            answer = question(preset, *[AnswerRequest(text, (picture(n),), 1 + n % 7)] * 2, seed=n, temperature=n % 2)
            asked += [(draw, request), (answer, n)]
            for one in (draw, answer):
                scheduler.submit(one.job)
            time.sleep(0.01 * (n % 3))
        for one, about in asked:
            results, engine = one.results(), engines[one.job.preset]
            assert isinstance(one.told[0], Started)
            if isinstance(about, DrawRequest):
                own = engine.generate(
                    about.prompt, seed=about.seed, steps=about.steps, guidance=about.guidance, height=about.height,
                    width=about.width,
                )  # fmt: skip
                assert near(results[0].image, own.images[0])
                assert results[0].work.forwards == len(own.trace)
                assert results[0].work.decoder == sum(step.rows > 0 for step in own.trace)
                steps = [event for event in one.told if isinstance(event, Stepped)]
                assert [event.step for event in steps] == list(range(1, len(own.trace) + 1))
                assert sum(event.preview is not None for event in steps) == one.job.previews
                continue
            requests = list(one.job.requests)
            answers = engine.respond(requests, seed=about, temperature=about % 2)  # type: ignore[arg-type]
            for result, own_answer in zip(results, answers, strict=True):
                assert result.text == own_answer.text
                assert result.tokens == len(own_answer.tokens)
                said = [e.text for e in one.told if isinstance(e, Said) and e.sample == result.sample]
                assert "".join(said) == result.text


def test_samples_at_different_steps_go_together(engines: dict[str, flashu.Engine]) -> None:
    with scheduling(engines) as scheduler:
        first = drawing("exact", DrawRequest("w1", 0, 40))
        scheduler.submit(first.job)
        first.until(lambda event: isinstance(event, Stepped) and event.step >= 5)
        second = drawing("exact", DrawRequest("w2", 1, 40))
        scheduler.submit(second.job)
        first.results(), second.results()
        batches = scheduler.metrics.batch.labels("block").collect()[0].samples
        alone = next(s.value for s in batches if s.labels.get("le") == "1.0")
        together = next(s.value for s in batches if s.labels.get("le") == "2.0") - alone
    assert together >= 20
    assert alone + 2 * together == 80


def test_an_answer_does_not_wait_for_a_drawing(engines: dict[str, flashu.Engine]) -> None:
    with scheduling(engines) as scheduler:
        draw = drawing("exact", *(DrawRequest("w1", n, 60) for n in range(8)))
        scheduler.submit(draw.job)
        draw.until(lambda event: isinstance(event, Stepped) and event.step >= 2)
        ask = question("exact", AnswerRequest("w1 w2", (picture(1),), 4))
        scheduler.submit(ask.job)
        ask.results()
        assert not any(isinstance(event, Drawn) for event in draw.told)
        steps = max(event.step for event in draw.told if isinstance(event, Stepped))
        assert steps < 30
        draw.results()


def test_a_cancelled_job_leaves_at_the_next_step(engines: dict[str, flashu.Engine]) -> None:
    with scheduling(engines, drawing=2) as scheduler:
        gone = drawing("exact", *(DrawRequest("w1", n, 10_000) for n in range(3)))
        scheduler.submit(gone.job)
        gone.until(lambda event: isinstance(event, Stepped))
        other = drawing("exact", DrawRequest("w2", 5, 6))
        scheduler.submit(other.job)
        scheduler.cancel(gone.job)
        (result,) = other.results()
        assert near(result.image, engines["exact"].generate("w2", seed=5, steps=6).images[0])
        told = len(gone.told)
        assert scheduler.waiting == {"generation": 0, "understanding": 0}
        assert scheduler._running == []
        time.sleep(0.05)
        assert len(gone.told) == told
        cancelled = scheduler.metrics.registry.get_sample_value(
            "flashu_samples_total", {"task": "generation", "end": "cancelled"}
        )
        assert cancelled == 3


def test_jobs_take_too_long(engines: dict[str, flashu.Engine]) -> None:
    with scheduling(engines, drawing=1, timeout=0.3) as scheduler:
        late = [drawing("exact", DrawRequest("w1", n, 10_000)) for n in range(2)]
        for one in late:
            scheduler.submit(one.job)
        assert [one.error().status for one in late] == [504, 504]
        soon = question("exact", AnswerRequest("w1", (), 1))
        scheduler.submit(soon.job)
        assert soon.results()


def test_a_full_queue(engines: dict[str, flashu.Engine]) -> None:
    with scheduling(engines, drawing=2, queue=3) as scheduler:
        held = drawing("exact", *(DrawRequest("w1", n, 200) for n in range(5)))
        scheduler.submit(held.job)
        with pytest.raises(ApiError) as caught:
            scheduler.submit(drawing("exact", DrawRequest("w1", 0, 2), DrawRequest("w1", 1, 2)).job)
        assert caught.value.status == 429
        assert caught.value.retry_after is not None
        assert 1 <= caught.value.retry_after <= 60
        scheduler.cancel(held.job)
        after = drawing("exact", DrawRequest("w1", 0, 2))
        for _ in range(200):
            if not sum(scheduler.waiting.values()):
                break
            time.sleep(0.01)
        scheduler.submit(after.job)
        assert after.results()


def test_draining_finishes_what_was_accepted(engines: dict[str, flashu.Engine]) -> None:
    with scheduling(engines, drawing=2) as scheduler:
        asked = [drawing("paper", DrawRequest("w1", n, 20)) for n in range(5)]
        asked += [question("paper", AnswerRequest("w1", (), 5)) for n in range(5)]
        for one in asked:
            scheduler.submit(one.job)
        done = threading.Event()
        scheduler.drain(done.set)
        with pytest.raises(ApiError) as caught:
            scheduler.submit(drawing("exact", DrawRequest("w1", 0, 2)).job)
        assert caught.value.status == 503
        assert done.wait(60)
        assert all(len(one.results()) == 1 for one in asked)


def test_stopping_tells_who_waits(engines: dict[str, flashu.Engine]) -> None:
    with scheduling(engines, drawing=1) as scheduler:
        asked = [drawing("exact", DrawRequest("w1", n, 10_000)) for n in range(3)]
        for one in asked:
            scheduler.submit(one.job)
        asked[0].until(lambda event: isinstance(event, Stepped))
    assert [one.error().status for one in asked] == [503] * 3


def test_what_the_model_refuses(engines: dict[str, flashu.Engine]) -> None:
    with scheduling(engines) as scheduler:
        bad = drawing("exact", DrawRequest(" "), fields={flashu.PromptError: "prompt"})
        scheduler.submit(bad.job)
        assert (bad.error().status, bad.error().param) == (400, "prompt")
        assert not any(isinstance(event, Started) for event in bad.told)


def test_a_fault_in_a_forward_fails_its_samples_alone(
    engines: dict[str, flashu.Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    with scheduling(engines) as scheduler:

        def broken(requests: Sequence[Any]) -> list[Any]:
            raise RuntimeError("a fault")

        with monkeypatch.context() as patch:
            patch.setattr(scheduler.executors["paper"], "forward", broken)
            asked = drawing("exact", DrawRequest("w1", 0, 20)), drawing("paper", DrawRequest("w1", 0, 20))
            for one in asked:
                scheduler.submit(one.job)
            assert asked[1].error().status == 500
            assert len(asked[0].results()) == 1
        again = drawing("paper", DrawRequest("w1", 0, 4))
        scheduler.submit(again.job)
        assert again.results()


@pytest.mark.parametrize("most", [2, 0])
def test_a_forward_that_does_not_fit_goes_by_halves(
    most: int, engines: dict[str, flashu.Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results are the same; what does not fit alone is told so, and may come again."""
    with scheduling(engines) as scheduler, monkeypatch.context() as patch:
        forward = scheduler.executors["exact"].forward

        def small(requests: Sequence[Any]) -> list[Any]:
            if requests[0].step.kind == "block" and len(requests) > most:
                raise torch.OutOfMemoryError("out of memory")
            return forward(requests)

        patch.setattr(scheduler.executors["exact"], "forward", small)
        asked = drawing("exact", *(DrawRequest("w1 w2", n, 6) for n in range(5)))
        scheduler.submit(asked.job)
        if not most:
            error = asked.error()
            assert (error.status, error.retry_after) == (503, 5)
            assert "memory" in error.message
            return
        own = engines["exact"].generate("w1 w2", images_per_prompt=5, seed=0, steps=6).images
        assert all(near(result.image, image) for result, image in zip(asked.results(), own, strict=True))
        assert scheduler._rows <= 2 * most


def test_a_fault_between_forwards_fails_its_job_alone(engines: dict[str, flashu.Engine]) -> None:
    def broken(prompt: str, after: int) -> Asked:
        asked = drawing("exact", DrawRequest(prompt, 0, 6))
        write = engines["exact"].runs_to_draw

        def runs(requests: Sequence[DrawRequest]) -> list[Any]:
            made = write(requests)
            prepare = made[0].prepare

            def fail() -> Any:
                if requests[0].prompt == prompt and len(made[0].trace) >= after:
                    raise FlashUError("this cannot go on")
                return prepare()

            made[0].prepare = fail
            return made

        patch.setattr(engines["exact"], "runs_to_draw", runs)
        return asked

    with scheduling(engines) as scheduler, pytest.MonkeyPatch.context() as patch:
        asked, other = broken("w2", 2), drawing("exact", DrawRequest("w1", 0, 6))
        for one in (other, asked):
            scheduler.submit(one.job)
        assert asked.error().status == 400
        assert len(other.results()) == 1


def test_a_batch_that_shares_its_state_is_not_served(tiny_engine: flashu.Engine) -> None:
    engine = tiny_engine.with_recipe(flashu.FlashUConfig(reference=True, r_p=0, r_LS=0.3, T_LS=4, T_cache=1, tau=0))
    with pytest.raises(FlashUError, match="cannot be served"):
        Scheduler({"reference": engine}, ServeSettings())


def test_latents_that_run_away_are_the_requests_fault(engines: dict[str, flashu.Engine]) -> None:
    with scheduling(engines) as scheduler:
        wild = drawing("exact", DrawRequest("w1", 0, 30, 1000.0))
        calm = drawing("exact", DrawRequest("w1", 0, 30))
        for one in (wild, calm):
            scheduler.submit(one.job)
        assert len(calm.results()) == 1
        results = wild.results()
        assert results or wild.error().status == 400


# -- shares ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_while_both_wait_each_gets_its_share(share: float) -> None:
    shares, both = Shares(share), frozenset(("generation", "understanding"))
    had = dict.fromkeys(both, 0.0)
    for _ in range(4000):
        task = shares.choose(both, prefill=False)  # type: ignore[arg-type]
        cost = {"generation": 0.04, "understanding": 0.003}[task]
        shares.took(task, cost)
        had[task] += cost
    assert had["understanding"] / sum(had.values()) == pytest.approx(share, abs=0.02)


def test_time_that_a_task_did_not_want_is_not_owed() -> None:
    shares = Shares(0.5)
    for _ in range(1000):
        assert shares.choose(frozenset(("generation",)), prefill=False) == "generation"
        shares.took("generation", 1.0)
    both = frozenset(("generation", "understanding"))
    turns = []
    for _ in range(10):
        turns.append(shares.choose(both, prefill=False))  # type: ignore[arg-type]
        shares.took(turns[-1], 0.1)
    assert turns.count("generation") == 5


def test_prefills_go_first_but_not_for_ever() -> None:
    shares, both = Shares(0.5), frozenset(("generation", "understanding"))
    turns = []
    for _ in range(100):
        turns.append(shares.choose(both, prefill=True))  # type: ignore[arg-type]
        shares.took(turns[-1], 0.05)
    assert turns[:4] == ["understanding"] * 4
    assert turns.count("generation") > 40


# -- text --------------------------------------------------------------------------------------------------------
def letters(ids: Sequence[int]) -> str:
    """One byte a token."""
    return bytes(ids).decode("utf-8", errors="replace")


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="ab\N{GREEK SMALL LETTER ALPHA}\N{GRINNING FACE} ", max_size=30), data=st.data())
def test_pieces_of_text_are_whole_and_end_at_a_stop(text: str, data: st.DataObject) -> None:
    stop = data.draw(st.lists(st.text(alphabet="ab ", min_size=1, max_size=4), max_size=3))
    ids = list(text.encode())
    reader, pieces, count = Reader(letters, stop), [], 0
    while count < len(ids) and not reader.stopped:
        count = min(count + data.draw(st.integers(1, 3)), len(ids))
        pieces.append(reader.read(ids[:count], last=count == len(ids)))
        assert not reader.stopped or "\N{REPLACEMENT CHARACTER}" not in pieces[-1]
    found = [(text.find(one) + len(one), text.find(one)) for one in stop if one in text]
    assert reader.stopped == bool(found)
    assert "".join(pieces) == reader.text == (text[: min(found)[1]] if found else text)


@torch.inference_mode()
def test_previews_show_where_the_drawing_is_heading(scenes: flashu.Engine) -> None:
    """Halfway, a preview is nearer to the finished picture than the latents themselves are."""
    with scheduling({"exact": scenes}) as scheduler:
        asked = drawing("exact", DrawRequest("a red circle", 1, 12), previews=3)
        scheduler.submit(asked.job)
        (result,) = asked.results()
    shown = [event.preview for event in asked.told if isinstance(event, Stepped) and event.preview is not None]
    states: list[Any] = []
    drawn = scenes.generate(
        "a red circle", seed=1, steps=12, on_step=lambda step, plan, latents: states.append(latents.clone())
    )

    def distance(image: Image.Image) -> float:
        return float(np.abs(np.asarray(image, dtype=float) - np.asarray(drawn.images[0], dtype=float)).mean())

    assert near(result.image, drawn.images[0])
    assert distance(shown[1]) < distance(scenes.decode(states[5])[0])
