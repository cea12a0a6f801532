"""A server of `scenes` in a process of its own, and ones of small fake models in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import flashu
from flashu.server.service import Service
from flashu.server.settings import ServeSettings
from tests.fakes.masked import seeded
from tests.fakes.tokens import TokenModel
from tests.server.served import Served, in_process, in_thread


@pytest.fixture(scope="session")
def scenes() -> flashu.Engine:
    return flashu.load("scenes")


@pytest.fixture(scope="session")
def server() -> Iterator[Served]:
    with in_process("--presets", "paper") as served:
        yield served


@pytest.fixture(scope="session")
def editing() -> Iterator[Served]:
    """A model that edits, and draws token by token."""
    model = seeded(TokenModel)
    service = Service({"exact": flashu.Engine(model, model.processor)}, ServeSettings(n=4), "fake")  # type: ignore[arg-type]
    with in_thread(service) as served:
        yield served
