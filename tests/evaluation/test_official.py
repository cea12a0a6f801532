"""The official benchmarks' folders: complete, resumable byte by byte, sharded, refused when made another way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import flashu
from flashu.evaluation.official import DPG, GenEval
from flashu.evaluation.official_run import evaluate
from flashu.evaluation.shard import Shard
from tests.conftest import tiny_model
from tests.fakes.masked import seeded
from tests.fakes.tokens import SIDE, TokenModel

ROOT = Path(__file__).parents[2]
STEPS = 2


@pytest.fixture(scope="module")
def engine() -> flashu.Engine:
    model = tiny_model()
    assert model.processor is not None
    return flashu.Engine(model, model.processor)


@pytest.fixture
def geneval(tmp_path: Path) -> GenEval:
    file = tmp_path / "evaluation_metadata.jsonl"
    entries = [{"tag": "single_object", "include": [], "prompt": f"w{n} w{n + 1}"} for n in range(5)]
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return GenEval.read(file)


@pytest.fixture
def dpg(tmp_path: Path) -> DPG:
    file = tmp_path / "dpg.json"
    file.write_text(json.dumps([{"prompt": f"w{n} " * 30, "prompt_file_name": f"part{n}"} for n in range(3)]))
    return DPG.read(file)


def tree(out: Path) -> dict[str, bytes]:
    """All files and their bytes, but for the times."""
    files = {str(f.relative_to(out)): f.read_bytes() for f in out.rglob("*") if f.is_file()}
    manifest = json.loads(files.pop("manifest.json"))
    manifest.pop("times", None)
    files.pop("summary.json", None)
    kept = {name: data for name, data in files.items() if not name.startswith(".flashu")}
    return kept | {"manifest": json.dumps(manifest).encode()}


def test_geneval_has_the_scorers_layout(engine: flashu.Engine, geneval: GenEval, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = evaluate(engine, geneval, out, model="tiny", steps=STEPS, baseline="quality", baseline_items=0)
    assert (summary.items, summary.of, summary.images, summary.forwards) == (5, 5, 20, STEPS)
    folders = sorted(f.name for f in out.iterdir() if f.name.isdigit())
    assert folders == [f"{n:05d}" for n in range(5)]
    for item in geneval.items:
        folder = out / item.name
        assert json.loads((folder / "metadata.jsonl").read_text()) == item.metadata
        assert sorted(f.name for f in (folder / "samples").iterdir()) == [f"{n:04d}.png" for n in range(4)]
        assert Image.open(folder / "grid.png").size == (128, 128)
    first = engine.generate("w0 w1", steps=STEPS, guidance=7.5, images_per_prompt=4, seed=0).images
    assert Image.open(out / "00000/samples/0003.png").tobytes() == first[3].tobytes()
    third = engine.generate("w2 w3", steps=STEPS, guidance=7.5, seed=9).images[0]
    assert Image.open(out / "00002/samples/0001.png").tobytes() == third.tobytes()
    manifest = json.loads((out / "manifest.json").read_text())
    assert set(manifest["times"]) == {item.name for item in geneval.items}
    assert manifest["settings"]["guidance"] == 7.5
    assert not list((out / ".flashu").glob("drafts*"))


def test_dpg_has_the_scorers_grids(engine: flashu.Engine, dpg: DPG, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = evaluate(engine, dpg, out, model="tiny", steps=STEPS, baseline="exact", baseline_items=1)
    assert sorted(f.name for f in out.glob("*.png")) == ["part0.png", "part1.png", "part2.png"]
    assert summary.baseline == "exact"
    assert summary.speedup is not None
    cut = " ".join(["w1"] * 19)  # longer prompts than the model's 19 words are cut, as by the authors
    images = engine.generate(cut, steps=STEPS, guidance=10.0, images_per_prompt=4, seed=4).images
    whole = Image.open(out / "part1.png")
    for n, (x, y) in enumerate([(0, 0), (64, 0), (0, 64), (64, 64)]):
        assert whole.crop((x, y, x + 64, y + 64)).tobytes() == images[n].tobytes()


def test_dpg_reads_a_folder_of_texts(tmp_path: Path) -> None:
    (tmp_path / "7.txt").write_text("w1 w2\n")
    (tmp_path / "abc.txt").write_text("w3")
    assert [(item.name, item.prompt) for item in DPG.read(tmp_path).items] == [("7", "w1 w2"), ("abc", "w3")]


@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_run_goes_on(after: int, engine: flashu.Engine, geneval: GenEval, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    evaluate(engine, geneval, whole, model="tiny", steps=STEPS)

    class Stop(Exception):
        pass

    drawn = 0

    def stop(*_: object) -> None:
        nonlocal drawn
        drawn += 1
        if drawn == after * STEPS + 1:  # in the middle of an item
            raise Stop

    with pytest.raises(Stop):
        evaluate(engine, geneval, broken, model="tiny", steps=STEPS, on_step=stop)
    finished = {f.name: f.stat().st_mtime_ns for f in broken.iterdir() if f.name.isdigit()}
    assert len(finished) == after
    evaluate(engine, geneval, broken, model="tiny", steps=STEPS)
    assert tree(broken) == tree(whole)
    assert all((broken / name).stat().st_mtime_ns == at for name, at in finished.items())


def test_another_family_draws_with_its_own_defaults(geneval: GenEval, tmp_path: Path) -> None:
    """No script of its authors is known."""
    model = seeded(TokenModel)
    summary = evaluate(flashu.Engine(model, model.processor), geneval, tmp_path / "out", model="fake")  # type: ignore[arg-type]
    assert (summary.images, summary.forwards) == (20, SIDE * SIDE)
    settings = json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]
    assert (settings["steps"], settings["guidance"]) == (SIDE * SIDE, 3.0)
    assert Image.open(tmp_path / "out" / "00000" / "grid.png").size == (2 * SIDE, 2 * SIDE)


KILLED = """
import sys, time
from pathlib import Path
from tests.conftest import tiny_model
from tests.fakes.masked import seeded
from tests.fakes.tokens import SIDE, TokenModel
import flashu
from flashu.evaluation.official import GenEval
from flashu.evaluation.official_run import evaluate
model = tiny_model()
evaluate(flashu.Engine(model, model.processor), GenEval.read(Path(sys.argv[1])), Path(sys.argv[2]), model="tiny",
         steps=2, on_step=lambda *_: time.sleep(0.15))
"""


def test_a_killed_run_goes_on(engine: flashu.Engine, geneval: GenEval, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    evaluate(engine, geneval, whole, model="tiny", steps=2)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "evaluation_metadata.jsonl"), str(broken)]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        until = time.monotonic() + 60
        while not (broken / "00001").exists() and time.monotonic() < until:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    for folder in (f for f in broken.iterdir() if f.name.isdigit()):
        assert {f.name: f.read_bytes() for f in folder.rglob("*.png")} == {
            f.name: f.read_bytes() for f in (whole / folder.name).rglob("*.png")
        }
    evaluate(engine, geneval, broken, model="tiny", steps=2)
    assert tree(broken) == tree(whole)


def test_shards_make_up_the_whole(engine: flashu.Engine, geneval: GenEval, tmp_path: Path) -> None:
    recipe = flashu.FlashUConfig(understanding=flashu.UnderstandingConfig(r_LS=0.2))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    evaluate(engine.with_recipe(recipe), geneval, whole, model="tiny", steps=4)
    for index in (2, 0, 1):  # each process calibrates for itself, on the same prompt
        own = flashu.Engine(engine.model, engine.processor, recipe)
        evaluate(own, geneval, parts, model="tiny", steps=4, shard=Shard(index, 3))
    assert tree(parts) == tree(whole)
    assert json.loads((parts / "summary.json").read_text())["items"] == 5
    before = json.loads((parts / "manifest.json").read_text())["times"]
    assert set(before) == {item.name for item in geneval.items}
    summary = evaluate(engine.with_recipe(recipe), geneval, parts, model="tiny", steps=4)  # one process, after three
    assert json.loads((parts / "manifest.json").read_text())["times"] == before
    assert summary.seconds_per_image == pytest.approx(sorted(t["seconds"] for t in before.values())[2] / 4)


def test_two_processes_do_not_draw_the_same_shard(engine: flashu.Engine, geneval: GenEval, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    out, shard = tmp_path / "out", Shard(0, 5)
    evaluate(engine, geneval, out, model="tiny", steps=STEPS, shard=shard)
    with (out / ".flashu/0-of-5.jsonl").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(flashu.FlashUError, match="another process is writing"):
            evaluate(engine, geneval, out, model="tiny", steps=STEPS, shard=shard)
        evaluate(engine, geneval, out, model="tiny", steps=STEPS, shard=Shard(1, 5))
    assert json.loads((out / "summary.json").read_text())["items"] == 2


def test_a_baseline_is_timed_once(engine: flashu.Engine, geneval: GenEval, tmp_path: Path) -> None:
    wanted = {"model": "tiny", "steps": STEPS, "baseline": "exact", "baseline_items": 2}
    first = evaluate(engine, geneval, tmp_path, **wanted)
    again = evaluate(engine, geneval, tmp_path, **wanted)
    assert (again.baseline, again.speedup) == ("exact", first.speedup)
    other = evaluate(engine, geneval, tmp_path, **wanted | {"baseline": "quality"})
    assert (other.baseline, other.speedup is None) == ("quality", False)


def test_results_made_another_way_are_not_mixed(engine: flashu.Engine, geneval: GenEval, tmp_path: Path) -> None:
    evaluate(engine, geneval, tmp_path / "out", model="tiny", steps=STEPS, shard=Shard(0, 5))
    with pytest.raises(flashu.FlashUError, match="another folder"):
        evaluate(engine, geneval, tmp_path / "out", model="tiny", steps=STEPS, seed=1)
    (tmp_path / "out/00001").mkdir()
    with pytest.raises(flashu.FlashUError, match="lacks"):
        evaluate(engine, geneval, tmp_path / "out", model="tiny", steps=STEPS)


@pytest.mark.parametrize("text", ["3", "a/b", "2/2", "-1/2"])
def test_bad_shards(text: str) -> None:
    with pytest.raises(flashu.FlashUError, match=r"part|shard"):
        Shard.parse(text)


def test_shards_of_launchers() -> None:
    assert Shard.of_process({"RANK": "2", "WORLD_SIZE": "4"}) == Shard(2, 4)
    assert Shard.of_process({}) == Shard.parse("0/1") == Shard()


@pytest.mark.parametrize("text", ["", "{", '{"tag": 1}\n', "[]"])
def test_bad_prompt_files(text: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts"
    file.write_text(text)
    for kind in (GenEval, DPG):
        with pytest.raises(flashu.FlashUError, match="prompts"):
            kind.read(file)


def test_the_command(tmp_path: Path) -> None:
    from flashu.cli.main import app

    file = tmp_path / "meta.jsonl"
    file.write_text(json.dumps({"prompt": "a red circle", "tag": "single_object"}) + "\n")
    command = ["eval", "geneval", "--prompts", str(file), "-o", str(tmp_path / "out"), "--steps", "1", "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["items"] == 1
    assert (tmp_path / "out/00000/samples/0003.png").is_file()
