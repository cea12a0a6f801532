"""What a server allows, and how it shares the machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from flashu.errors import FlashUError

Batching = Literal["step", "request", "none"]
BATCHING: tuple[Batching, ...] = ("step", "request", "none")


@dataclass(frozen=True)
class ServeSettings:
    """Limits of requests (beyond them a 4xx) and of the queue, and the schedule.

    ``batching``: "step" admits and batches at every forward; "request" gathers waiting requests of one kind and
    carries them out together to the end; "none" carries out one request at a time. The latter two are baselines.
    ``drawing``, ``answering``: samples (an image, an answer) under way at once; ``rows``: most rows of one drawing
    forward. ``answer_share``: the part of the machine's time that answers get while drawings wait too.
    ``queue``: samples that may wait. ``timeout``: seconds from acceptance to the result. ``work``: most n x steps x
    pixels of a request. ``body``: bytes of a request; ``read_timeout``: seconds in which it must arrive. ``pixels``: of
    an image drawn or sent. ``kept``: images that stay for ``response_format`` "url", for ``kept_seconds``.
    ``cors``: origins whose pages may call; ``hosts``: names by which the server may be called, () = any;
    ``fetch_hosts``: hosts from which images may be fetched, () = none.
    """

    batching: Batching = "step"
    drawing: int = 16
    answering: int = 16
    rows: int = 32
    answer_share: float = 0.5
    queue: int = 256
    timeout: float = 600.0
    n: int = 10
    steps: int = 200
    work: int = 2_000_000_000
    max_tokens: int = 4096
    body: int = 32 * 2**20
    read_timeout: float = 60.0
    pixels: int = 16_777_216
    images: int = 8
    kept: int = 256
    kept_seconds: float = 3600.0
    api_key: str | None = None
    cors: Sequence[str] = ()
    hosts: Sequence[str] = ()
    fetch_hosts: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.batching not in BATCHING:
            raise FlashUError(f"batching is {', '.join(BATCHING)}, not {self.batching!r}")
        if not 0 < self.answer_share < 1:
            raise FlashUError(f"answer_share must lie between 0 and 1, got {self.answer_share}")
        for name in ("drawing", "answering", "rows", "n", "steps", "work", "max_tokens", "body", "pixels", "images"):
            if getattr(self, name) < 1:
                raise FlashUError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("queue", "kept"):
            if getattr(self, name) < 0:
                raise FlashUError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("timeout", "read_timeout", "kept_seconds"):
            if not getattr(self, name) > 0:
                raise FlashUError(f"{name} must be more than 0 seconds, got {getattr(self, name)}")
        if self.api_key is not None and not self.api_key.strip():
            raise FlashUError("the API key is empty: give one, or none at all")
