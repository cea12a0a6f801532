"""A disk that is full: what was there stays whole, the command says so in one line, and a second run goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KILOBYTES = 160


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of `KILOBYTES`."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={KILOBYTES}k", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except OSError as error:
        pytest.skip(f"mount cannot be run: {error}")
    if done.returncode:
        pytest.skip(f"mounting is not allowed: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def flashu(*words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "flashu", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_a_calibration_is_whole_or_not_there(disk: Path) -> None:
    done = flashu("calibrate", "-o", str(disk / "calibration.safetensors"), "--device", "cpu", "--task", "generation")
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert done.stderr.splitlines()[-1].startswith("flashu: ")
        assert list(disk.iterdir()) == []


def test_images_of_an_interrupted_benchmark_are_whole(disk: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"tag": "t", "include": [], "prompt": f"a {c} circle"} for c in ("red", "green", "blue", "yellow") * 6]
    prompts.write_text("".join(json.dumps(one) + "\n" for one in lines))
    draw = ("eval", "geneval", "--prompts", str(prompts), "-o", str(disk / "out"), "--steps", "1", "--device", "cpu")
    (disk / "ballast").write_bytes(b"\0" * (KILOBYTES - 80) * 1024)
    full = flashu(*draw)
    assert full.returncode == 1
    assert "Traceback" not in full.stderr
    assert "space" in full.stderr.splitlines()[-1]
    from PIL import Image

    for file in (disk / "out").glob("[0-9]*/samples/*.png"):  # those under way lie elsewhere
        Image.open(file).load()
    (disk / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
    again = flashu(*draw)
    assert again.returncode == 0, again.stderr
    assert len(list((disk / "out").glob("[0-9]*/samples/*.png"))) == 4 * len(lines)


def test_standard_output_that_is_full() -> None:
    with open("/dev/full", "w") as full:
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        command = [sys.executable, "-m", "flashu", "models", "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("flashu: ")
    assert "Traceback" not in done.stderr
