"""Command lines: strange values of every option, odd files, outputs that cannot be written."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from flashu.cli.main import app
from flashu.errors import FlashUError
from tests.robustness.cases import Case

VALUES = ("", "-1", "0", "1.5", "nan", "inf", "1000000000", "1e400", "x", "\x1b[31m", "9" * 5000, "--", "é", "🦊", "\0")
PLACES = (
    "/",
    "/dev/zero",
    "/dev/full",
    "/proc/x",
    "none/none",
    "x" * 300,
    "\0",
    "~",
    "-",
    "{folder}/pipe",
    "{folder}/latin.txt",
)
TARGETS = (
    "/proc/x.png",
    "/dev/full/x.png",
    "x" * 300 + ".png",
    "{folder}/latin.txt/x.png",
    "{folder}/x.svg",
    "\0.png",
    "",
)


def cases(folder: Path, seed: int) -> list[Case]:
    os.makedirs(folder, exist_ok=True)
    if not (folder / "pipe").exists():
        os.mkfifo(folder / "pipe")
    (folder / "latin.txt").write_bytes("ein Würfel\n".encode("latin-1"))
    Image.new("RGB", (64, 64), "red").save(folder / "red.png")
    listed = list(_lines(folder))
    random.Random(seed).shuffle(listed)
    return [Case("commands", _shown(line), lambda line=line: command(line), "either") for line in listed]


def _shown(line: Sequence[str]) -> str:
    return " ".join(f"{word!r:.50}" for word in line)


def _lines(folder: Path) -> Iterator[list[str]]:
    out = str(folder / "out.png")
    generate, ask = ["generate", "a red circle", "-o", out], ["ask", str(folder / "red.png"), "what is it?"]
    quick = {
        "generate": (
            [*generate, "--steps", "1"],
            ["steps", "guidance", "seed", "height", "width", "n", "preset", "model", "dtype", "device", "quantize"],
        ),
        "ask": (
            [*ask, "--max-new-tokens", "1"],
            ["max-new-tokens", "temperature", "seed", "preset", "model", "dtype", "device", "draft"],
        ),
        "plan": (["plan"], ["steps", "guidance", "height", "width", "max-new-tokens", "preset", "model", "task"]),
        "edit": (
            ["edit", str(folder / "red.png"), "make it blue", "-o", out, "--steps", "1"],
            ["steps", "guidance", "seed", "model"],
        ),
        "calibrate": (
            ["calibrate", "-o", str(folder / "c.safetensors")],
            ["prompts", "questions", "task", "seed", "model"],
        ),
        "bench": (["bench"], ["repeats", "steps", "model", "preset"]),
        "tune": (["tune", "-o", str(folder / "t")], ["trials", "minutes", "budget", "model", "task"]),
        "models": (["models"], ["json"]),
        "eval geneval": (
            ["eval", "geneval", "--prompts", str(folder / "none.jsonl"), "-o", str(folder / "g")],
            ["shard", "limit", "steps", "model", "seed"],
        ),
        "train draft": (["train", "draft", "-o", str(folder / "d")], ["steps", "model", "kind"]),
    }
    for line, options in quick.values():
        for option, value in itertools.product(options, VALUES):
            yield [*line, f"--{option}" if len(option) > 1 else f"-{option}", value]
        for option, value in itertools.product(
            ("model", "preset", "calibration", "prompts-file", "file", "config"), PLACES
        ):
            yield [*line, f"--{option}", value.format(folder=folder)]
        yield [*line, "--nonsense"]
        if len(line) > 1:  # the others have nothing to lack
            yield [line[0]]
        yield [*line, "--help"]
    for target in TARGETS:
        yield ["generate", "a red circle", "--steps", "1", "-o", target.format(folder=folder)]
    for place in PLACES:
        yield ["ask", place.format(folder=folder), "what is it?"]
        yield [
            "generate",
            "a red circle",
            "--image",
            place.format(folder=folder),
            "--mask",
            place.format(folder=folder),
            "-o",
            out,
        ]
        yield ["plan", "--preset", place.format(folder=folder)]
        yield ["train", "--config", place.format(folder=folder)]
        yield ["eval", "dpg", "--prompts", place.format(folder=folder), "-o", str(folder / "dpg")]
        yield ["eval", "geneval", "--prompts", place.format(folder=folder), "-o", str(folder / "gen")]
    for word in ("", "genrate", "--version", "--debug", "\0", "x" * 5000, "--help"):
        yield [word]


def command(line: Sequence[str]) -> None:
    """Runs a command in this process. What it refuses, with one line on stderr, becomes a `FlashUError`."""
    said, shown = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
        code = _code(list(line))
    sys.stdout.flush()
    message = said.getvalue()
    assert "Traceback" not in message, message[-500:]
    assert "This is a defect" not in message, message[-500:]
    assert code in (0, 1, 2), (code, message[-300:])
    if code:
        lines = [one for one in message.splitlines() if one.startswith("flashu: ")]
        assert lines, f"exit code {code} without a word: {message[-300:]!r}"
        raise FlashUError(lines[-1])


def _code(line: list[str]) -> Any:
    try:
        app(line)
    except SystemExit as end:
        return end.code or 0
    return 0
