"""Offline jobs: every item once, through interruptions, on one process or on Ray's workers."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import flashu
from flashu.batch import generate
from flashu.cli.main import app
from flashu.errors import FlashUError

PROMPTS = [f"{n} red circles" for n in ("two", "three", "four", "five", "one")]
SETTINGS: dict[str, Any] = {"steps": 4, "shard_size": 2, "batch_size": 2, "device": "cpu"}


def contents(out: Path) -> list[tuple[str, bytes]]:
    """Every file of every shard, in order."""
    found = []
    for path in sorted(out.glob("shard-*.tar")):
        with tarfile.open(path) as tar:
            found += [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    return found


def test_every_item_is_drawn_once_as_the_engine_draws_it(tmp_path: Path) -> None:
    report = generate(PROMPTS, tmp_path, seed=7, **SETTINGS)
    assert (report.items, report.of, report.failed, report.shards) == (5, 5, 0, 3)
    files = contents(tmp_path)
    assert [name for name, _ in files] == [f"{n:09d}.{kind}" for n in range(5) for kind in ("png", "json")]
    assert json.loads(files[3][1]) == {"prompt": PROMPTS[1], "seed": 8}
    alone = flashu.load("scenes", device="cpu").generate(PROMPTS[:2], seed=7, steps=4).images[1]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(files[2][1]))), np.asarray(alone))


def test_an_interrupted_job_goes_on_where_it_stopped(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(PROMPTS, tmp_path / "a", on_shard=stop, **SETTINGS)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("shard-*.tar")}
    assert len(before) == 2
    assert generate(PROMPTS, tmp_path / "a", **SETTINGS).items == 5
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    generate(PROMPTS, tmp_path / "b", **SETTINGS)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_other_results_are_not_mixed_in(tmp_path: Path) -> None:
    generate(PROMPTS[:2], tmp_path, **SETTINGS)
    with pytest.raises(FlashUError, match="another folder"):
        generate(PROMPTS[:2], tmp_path, **SETTINGS | {"steps": 5})
    with pytest.raises(FlashUError, match="another folder"):
        generate(PROMPTS[:3], tmp_path, **SETTINGS)


@pytest.mark.parametrize(
    ("items", "says"),
    [
        ([], "nothing to draw"),
        ([" "], "no prompt"),
        ([{"prompt": "a", "key": "../a"}], "key"),
        ([{"prompt": "a", "key": "x"}] * 2, "same key"),
        ([{"prompt": "a", "text": "x"}], "unknown field 'text'"),
    ],
)
def test_bad_items_are_refused_before_anything_is_drawn(items: list[Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(FlashUError, match=says):
        generate(items, tmp_path)
    assert not any(tmp_path.iterdir())


def test_workers_of_ray_draw_the_same(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason='needs pip install ".[ray]"')
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        report = generate(PROMPTS, tmp_path / "ray", workers=2, **SETTINGS)
    finally:
        ray.shutdown()
    assert (report.items, report.shards) == (5, 3)
    generate(PROMPTS, tmp_path / "here", **SETTINGS)
    assert contents(tmp_path / "ray") == contents(tmp_path / "here")


def test_the_command_reads_prompts_and_resumes(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text, "key": f"p{n}"}) + "\n" for n, text in enumerate(PROMPTS)))
    words = [
        str(prompts),
        "-o",
        str(tmp_path / "out"),
        "--steps",
        "4",
        "--shard-size",
        "3",
        "--device",
        "cpu",
        "--json",
    ]
    for _ in range(2):
        result = CliRunner().invoke(app, ["batch", *words, "--json"])
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["items"] == 5
    assert {name.split(".")[0] for name, _ in contents(tmp_path / "out")} == {f"p{n}" for n in range(5)}
