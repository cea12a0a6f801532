"""Groups of options: what a command offers of them, and what it gets."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from flashu.cli.options import DrawingOptions, EngineOptions, offers

got: list[tuple[str, EngineOptions, DrawingOptions]] = []
app = typer.Typer()


@app.command()
@offers(EngineOptions, "model", "preset", preset="paper")
@offers(DrawingOptions)
def command(word: str, options: EngineOptions, drawing: DrawingOptions) -> None:
    """Say a word."""
    got.append((word, options, drawing))


def run(*words: str) -> tuple[str, EngineOptions, DrawingOptions]:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return got.pop()


def test_what_is_given_arrives_and_the_rest_has_its_default() -> None:
    assert run("a") == ("a", EngineOptions(preset="paper"), DrawingOptions())
    said = run("a", "--model", "m", "--steps", "3", "--width", "64", "--guidance", "0", "--preset", "exact")
    assert said == ("a", EngineOptions("m", "exact"), DrawingOptions(steps=3, guidance=0, width=64))


def test_only_what_is_offered_can_be_given() -> None:
    assert CliRunner().invoke(app, ["a", "--offload"]).exit_code == 2
    shown = CliRunner().invoke(app, ["--help"]).stdout
    assert "Say a word." in shown
    assert "--model" in shown
    assert "--offload" not in shown


def test_an_option_nobody_has_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="modle"):
        offers(EngineOptions, "modle")
