"""Numbers beyond reason: one clear error before a model is opened or anything allocated."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import signature
from typing import Any, get_args

import pytest
import typer
from typer.testing import CliRunner

from flashu.cli.main import app

HUGE = 10**9


@pytest.fixture(autouse=True)
def nothing_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*args: object, **settings: object) -> None:
        raise AssertionError("a model is opened although a number is unusable")

    monkeypatch.setattr("flashu.models.registry.open_model", opened)


def refused(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["generate", "a", "--width", str(HUGE)], "image tokens"),
        (["generate", "a", "--height", str(HUGE)], "image tokens"),
        (["generate", "a", "--steps", str(HUGE)], "20 to 100"),
        (["generate", "a", "-n", str(HUGE)], "listed in memory"),
        (["generate", "a", "--batch-size", str(HUGE)], "held in memory"),
        (["generate", "a", "--guidance", "inf"], "released settings"),
        (["generate", "a", "--seed", str(2**32)], "32 bits"),
        (["ask", __file__, "what?", "--max-new-tokens", str(HUGE)], "32768"),
        (["ask", __file__, "what?", "--frames", str(HUGE)], "one row"),
        (["plan", "--width", str(HUGE)], "image tokens"),
        (["bench", "--threads", str(HUGE)], "cores"),
        (["bench", "--new-tokens", str(HUGE)], "32768"),
        (["demo", "--images", str(HUGE)], "listed in memory"),
    ],
)
def test_the_error_names_the_option_and_the_reason(words: list[str], reason: str) -> None:
    line = refused(*words)
    assert f"'{words[-2]}'" in line
    assert reason in line


def test_seeds_of_items_are_not_negative() -> None:
    """They seed numpy, which takes no negative ones."""
    for words in (["demo"], ["lab", "table1"], ["eval", "lmms-task", "-o", "out"]):
        assert "'--seed'" in refused(*words, "--seed", "-1")


def commands(group: typer.Typer, *names: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for info in group.registered_commands:
        assert info.callback is not None
        yield (*names, info.name or info.callback.__name__.replace("_", "-")), info.callback
    for inner in group.registered_groups:
        assert isinstance(inner.typer_instance, typer.Typer)
        own = inner.typer_instance.registered_callback
        if own is not None and own.callback is not None:
            yield (*names, str(inner.name)), own.callback
        yield from commands(inner.typer_instance, *names, str(inner.name))


def numbers(command: Any) -> Iterator[str]:
    """The options of a command that take a number."""
    for parameter in signature(command, eval_str=True).parameters.values():
        kind, *about = get_args(parameter.annotation) or (parameter.annotation,)
        if {int, float} & {kind, *get_args(kind)}:
            named = [name for option in about for name in (option.default, *(option.param_decls or ())) if name != ...]
            yield named[-1] if named else "--" + parameter.name.replace("_", "-")


NUMBERS = [(*names, option) for names, command in commands(app) for option in numbers(command)]


def test_numbers_are_found() -> None:
    assert len(NUMBERS) > 30


@pytest.mark.parametrize("words", NUMBERS, ids=" ".join)
def test_every_number_of_every_command_has_a_limit(words: tuple[str, ...]) -> None:
    """The option is looked at before what else the command may lack."""
    assert f"'{words[-1]}'" in refused(*words, str(10**30))
