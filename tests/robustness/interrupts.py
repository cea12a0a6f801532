"""Long commands, interrupted at random moments and then run to their end: `python -m tests.robustness.interrupts`.

Each command runs once without an interruption, then `--moments` times with SIGINT, SIGTERM or SIGKILL sent at a moment
drawn from its whole time, after which it is run again. What it leaves must be the same, byte for byte; of a result of
the lab, the numbers (how long it took is measured anew).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
SECONDS = 300
ENDED = 0
PROMPTS = [
    {"tag": "single_object", "include": [{"class": "circle", "count": 1}], "prompt": f"a {c} circle"}
    for c in ("red", "blue")
]


@dataclass(frozen=True)
class Long:
    """``arguments``: of Python, for an output folder; ``left``: what counts of what it leaves there."""

    arguments: Callable[[Path], list[str]]
    left: Callable[[Path], object]


def flashu(*words: str) -> list[str]:
    return ["-m", "flashu", *words]


def files(*endings: str) -> Callable[[Path], object]:
    def digests(folder: Path) -> object:
        return {
            str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(folder.rglob("*"))
            if file.suffix in endings and file.is_file()
        }

    return digests


def lab(folder: Path) -> object:
    """The numbers of an item, without its times."""
    data = json.loads((folder / "specialization.json").read_text())
    return {key: value for key, value in data.items() if key != "about"}


def training(folder: Path) -> object:
    state = load_file(folder / "assets" / "model.safetensors")
    return {
        name: hashlib.sha256(value.view(torch.uint8).numpy().tobytes()).hexdigest() for name, value in state.items()
    }


def prompts(folder: Path) -> str:
    file = folder.parent / "prompts.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in PROMPTS))
    return str(file)


SMALL = ["--steps", "6", "--drawings", "2", "--questions", "2", "--scenes", "64", "--save-seconds", "0"]
COMMANDS = {
    "eval geneval": Long(
        lambda o: flashu("eval", "geneval", "--prompts", prompts(o), "-o", str(o), "--steps", "6", "--device", "cpu"),
        files(".png"),
    ),
    "lab specialization": Long(lambda o: flashu("lab", "specialization", "-o", str(o), "--device", "cpu"), lab),
    "train draft": Long(
        lambda o: flashu(
            "train",
            "draft",
            "-o",
            str(o),
            "--items",
            "40",
            "--held-out",
            "8",
            "--steps",
            "12",
            "--batch",
            "4",
            "--device",
            "cpu",
        ),
        files(".safetensors"),
    ),
    "train scenes": Long(
        lambda o: ["-m", "flashu.training.scenes", *SMALL, "--runs", str(o / "runs"), "--assets", str(o / "assets")],
        training,
    ),
}


def run(command: Long, folder: Path, stop: tuple[float, signal.Signals] | None = None) -> int:
    """Its exit code; ``stop``: send the signal after so many seconds."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))}
    process = subprocess.Popen(
        [sys.executable, *command.arguments(folder)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        _, said = process.communicate(timeout=SECONDS if stop is None else stop[0])
    except subprocess.TimeoutExpired:
        if stop is None:
            process.kill()
            raise
        process.send_signal(stop[1])
        _, said = process.communicate(timeout=60)
    if stop is None and process.returncode != ENDED:
        raise SystemExit(f"{' '.join(command.arguments(folder))}: {said.decode()[-2000:]}")
    if b"Traceback" in said and stop is not None and stop[1] is not signal.SIGKILL:
        print(f"a traceback after {stop[1].name}: {said.decode()[-300:]}", file=sys.stderr)
    return process.returncode


def prepared(name: str, folder: Path) -> Path:
    folder.mkdir(parents=True)
    if name == "train scenes":  # an autoencoder is there: only the model is trained
        (folder / "assets").mkdir()
        shutil.copy(ROOT / "src/flashu/assets/scenes/autoencoder.safetensors", folder / "assets")
    return folder


def compared(name: str, moments: int, dice: random.Random, place: Path) -> list[str]:
    """A line for each resumed run that left something else."""
    command = COMMANDS[name]
    whole = prepared(name, place / "whole")
    began = time.monotonic()
    run(command, whole)
    seconds = time.monotonic() - began
    wanted, wrong, hit = command.left(whole), [], 0
    for n in range(moments):
        at, sent = dice.uniform(0.2, seconds), SIGNALS[n % len(SIGNALS)]
        folder = prepared(name, place / str(n))
        hit += run(command, folder, (at, sent)) != ENDED
        run(command, folder)
        if command.left(folder) != wanted:
            wrong.append(f"{name}: {sent.name} after {at:.2f} of {seconds:.2f} s: something else was left")
        shutil.rmtree(folder)
    print(f"| {name} | {seconds:.1f} | {moments} | {hit} | {moments - len(wrong)} |", flush=True)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=COMMANDS, default=list(COMMANDS))
    given = parser.parse_args()
    dice, wrong = random.Random(given.seed), []
    print("| command | seconds | runs | interrupted | equal in the end |\n|---|---:|---:|---:|---:|", flush=True)
    for name in given.only:
        with tempfile.TemporaryDirectory() as place:
            wrong += compared(name, given.moments, dice, Path(place))
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
