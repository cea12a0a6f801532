"""GenEval 2, GEdit-Bench and ImgEdit: the layouts their scorers read, edits in turn, resumed and sharded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import flashu
from flashu.evaluation.official import GenEval2
from flashu.evaluation.official_edits import GEdit, ImgEdit
from flashu.evaluation.official_run import evaluate
from flashu.evaluation.shard import Shard
from tests.conftest import tiny_model
from tests.evaluation.test_official import tree
from tests.fakes.masked import seeded
from tests.fakes.tokens import SIDE, TokenModel


@pytest.fixture(scope="module")
def engine() -> flashu.Engine:
    """Of the small family that edits."""
    model = seeded(TokenModel)
    return flashu.Engine(model, model.processor)


def picture(file: Path, seed: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    levels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(levels).save(file)


@pytest.fixture
def single(tmp_path: Path) -> ImgEdit:
    for n in range(3):
        picture(tmp_path / f"pictures/animal/{n}.png", n)
    entries = {f"10{n}": {"id": f"animal/{n}.png", "prompt": f"make it w{n}", "edit_type": "adjust"} for n in range(3)}
    (tmp_path / "basic_edit.json").write_text(json.dumps(entries))
    return ImgEdit.read(tmp_path / "basic_edit.json", tmp_path / "pictures")


@pytest.fixture
def turns(tmp_path: Path) -> ImgEdit:
    for n in range(2):
        picture(tmp_path / f"pictures/{n}.png", n)
    entries = {
        "1": {"id": "0.png", "turn1": "make it red", "turn2": "and wider", "turn3": "as it was"},
        "2": {"id": "1.png", "turn1": "add a hat", "turn2": "remove it"},
    }
    (tmp_path / "turns.json").write_text(json.dumps(entries))
    return ImgEdit.read(tmp_path / "turns.json", tmp_path / "pictures")


@pytest.fixture
def gedit(tmp_path: Path) -> GEdit:
    rows = []
    for n, language in enumerate(("en", "cn", "en")):
        picture(tmp_path / f"rows/{n}.png", n)
        row = {"task_type": "color_alter", "key": f"key{n % 2}{n}", "instruction": f"make it w{n}"}
        rows.append(row | {"instruction_language": language, "input_image": f"{n}.png", "Intersection_exist": True})
    (tmp_path / "rows/gedit.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return GEdit.read(str(tmp_path / "rows/gedit.jsonl"))


def test_geneval2_names_each_prompts_image(tmp_path: Path) -> None:
    """Its scorer opens {prompt: file}."""
    data = tmp_path / "geneval2_data.jsonl"
    lines = [{"prompt": f"w{n} w{n + 1}", "atom_count": 3, "vqa_list": [["Is it?", "Yes"]]} for n in range(3)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    model = tiny_model()
    tiny = flashu.Engine(model, model.processor)
    summary = evaluate(tiny, GenEval2.read(data), tmp_path / "out", model="tiny", steps=2, shard=Shard(0, 2))
    assert (summary.items, summary.images) == (2, 2)
    paths = json.loads((tmp_path / "out/image_paths.json").read_text())
    assert list(paths) == ["w0 w1", "w2 w3"]
    evaluate(tiny, GenEval2.read(data), tmp_path / "out", model="tiny", steps=2, shard=Shard(1, 2))
    paths = json.loads((tmp_path / "out/image_paths.json").read_text())
    assert list(paths) == [line["prompt"] for line in lines]
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    drawn = tiny.generate("w2 w3", seed=2, steps=2, guidance=manifest["settings"]["guidance"]).images[0]
    assert Image.open(paths["w2 w3"]).tobytes() == drawn.tobytes()
    data.write_text(json.dumps(lines[0]) + "\n" + json.dumps(lines[0]))
    with pytest.raises(flashu.FlashUError, match="twice"):
        GenEval2.read(data)


def test_imgedit_has_a_picture_per_key(engine: flashu.Engine, single: ImgEdit, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = evaluate(engine, single, out, model="fake", seed=5, baseline="exact", baseline_items=1)
    assert (summary.items, summary.images, summary.forwards) == (3, 3, SIDE * SIDE)
    assert summary.speedup is not None
    assert sorted(f.name for f in out.glob("*.png")) == ["100.png", "101.png", "102.png"]
    source = tmp_path / "pictures/animal/1.png"
    edited = engine.edit(source, "make it w1", seed=6).images[0]
    assert Image.open(out / "101.png").tobytes() == edited.tobytes()


def test_edits_in_turn(engine: flashu.Engine, turns: ImgEdit, tmp_path: Path) -> None:
    """One session: each instruction is about the image that the one before gave, and may speak of those before it."""
    out = tmp_path / "out"
    summary = evaluate(engine, turns, out, model="fake")
    assert (summary.items, summary.images) == (2, 5)
    assert sorted(str(f.relative_to(out)) for f in out.glob("*/*.png")) == [
        *(f"1/turn{n}.png" for n in (1, 2, 3)),
        *(f"2/turn{n}.png" for n in (1, 2)),
    ]
    session = engine.editing(tmp_path / "pictures/1.png")
    first, second = (session.edit(p, seed=3 + n).images[0] for n, p in enumerate(("add a hat", "remove it")))
    assert first.tobytes() == engine.edit(tmp_path / "pictures/1.png", "add a hat", seed=3).images[0].tobytes()
    assert Image.open(out / "2/turn1.png").tobytes() == first.tobytes()
    assert Image.open(out / "2/turn2.png").tobytes() == second.tobytes()
    record = json.loads((out / "manifest.json").read_text())["times"]["2"]
    assert (record["images"], record["seeds"]) == (2, [3, 4])


def test_gedit_has_sources_beside_results(engine: flashu.Engine, gedit: GEdit, tmp_path: Path) -> None:
    """Its scorer opens both, and resizes the result to the source."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    evaluate(engine, gedit, whole, model="fake")
    names = ["cn/key11.png", "cn/key11_SRCIMG.png", "en/key00.png", "en/key00_SRCIMG.png"]
    found = sorted(str(f.relative_to(whole / "fullset/color_alter")) for f in whole.rglob("fullset/*/*/*"))
    assert found == [*names, "en/key02.png", "en/key02_SRCIMG.png"]
    for n, name in enumerate(("en/key00", "cn/key11", "en/key02")):
        kept = Image.open(whole / f"fullset/color_alter/{name}_SRCIMG.png")
        assert kept.tobytes() == Image.open(tmp_path / f"rows/{n}.png").tobytes()
    for index in (1, 0):
        evaluate(engine, gedit, parts, model="fake", shard=Shard(index, 2))
    assert tree(parts) == tree(whole)
    assert [item.name for item in GEdit.read(str(tmp_path / "rows/gedit.jsonl"), "cn").items] == [
        "color_alter/cn/key11"
    ]


def test_gedit_as_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are read without their pictures."""
    import sys
    from types import ModuleType

    rows = [
        {"task_type": "ps_human", "key": "k", "instruction": "smile", "instruction_language": "en"},
        {"task_type": "ps_human", "key": "k", "instruction": "笑", "instruction_language": "cn"},
    ]
    opened = []

    class Table(list):
        column_names = (*rows[0], "input_image", "input_image_raw")

        def select_columns(self, names: list[str]) -> list:
            assert not any("image" in name for name in names)
            return rows

        def __getitem__(self, n: int) -> dict:
            opened.append(n)
            return rows[n] | {"input_image": Image.new("RGB", (SIDE, SIDE))}

    module = ModuleType("datasets")
    module.load_dataset = lambda name, split: Table(rows)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    read = GEdit.read("stepfun-ai/GEdit-Bench")
    assert [item.prompt for item in read.items] == ["smile", "笑"]
    assert not opened
    assert read.items[1].source().size == (SIDE, SIDE)  # type: ignore[misc]
    assert opened == [1]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(flashu.FlashUError, match="pip install datasets"):
        GEdit.read("stepfun-ai/GEdit-Bench")


def test_an_interrupted_edit_goes_on(engine: flashu.Engine, turns: ImgEdit, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    evaluate(engine, turns, whole, model="fake")

    class Stop(Exception):
        pass

    forwards = 0

    def stop(*_: object) -> None:
        nonlocal forwards
        forwards += 1
        if forwards == SIDE * SIDE * 4 + 1:  # in the second item's second turn
            raise Stop

    with pytest.raises(Stop):
        evaluate(engine, turns, broken, model="fake", on_step=stop)
    assert sorted(f.name for f in broken.iterdir() if f.name.isdigit()) == ["1"]
    evaluate(engine, turns, broken, model="fake")
    assert tree(broken) == tree(whole)


def test_the_original_program_as_the_baseline(tmp_path: Path) -> None:
    data = tmp_path / "geneval2_data.jsonl"
    data.write_text(json.dumps({"prompt": "w0 w1"}) + "\n")
    model = tiny_model()
    tiny = flashu.Engine(model, model.processor)
    summary = evaluate(tiny, GenEval2.read(data), tmp_path / "out", model="tiny", steps=2, baseline="original")
    assert summary.baseline == "original"
    assert summary.speedup is not None


def test_what_cannot_be(engine: flashu.Engine, single: ImgEdit, tmp_path: Path) -> None:
    with pytest.raises(flashu.FlashUError, match="no family of the registry"):
        evaluate(engine, single, tmp_path / "out", model="fake", baseline="original")
    model = tiny_model()
    with pytest.raises(flashu.FlashUError, match="edit"):
        evaluate(flashu.Engine(model, model.processor), single, tmp_path / "tiny", model="tiny", steps=2)
    with pytest.raises(flashu.FlashUError, match="no language 'de'"):
        GEdit.read("rows.jsonl", "de")
    (tmp_path / "pictures/animal/0.png").unlink()
    with pytest.raises(flashu.FlashUError, match="folder of the benchmark's pictures"):
        evaluate(engine, single, tmp_path / "other", model="fake")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "no entries by key"),
        ('{"../a": {"id": "0.png", "prompt": "w"}}', "cannot be the name"),
        ('{"1": {"id": "0.png"}}', "has no prompt"),
        ('{"1": {"prompt": "w"}}', "names no picture"),
        ('{"1": {"id": "0.png", "turn1": "a", "turn2": "b"}, "2": {"id": "0.png", "prompt": "w"}}', "has no turn1"),
    ],
)
def test_bad_instructions(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "edits.json").write_text(content)
    with pytest.raises(flashu.FlashUError, match=message):
        ImgEdit.read(tmp_path / "edits.json", tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"key": "a"}, "names no input_image"),
        ({"input_image": "a.png", "key": "a/b", "task_type": "t", "instruction_language": "en"}, "cannot be the place"),
        ({"input_image": "a.png", "key": "a", "task_type": "t", "instruction_language": "en"}, "no instruction"),
    ],
)
def test_bad_rows(row: dict[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(flashu.FlashUError, match=message):
        GEdit.read(str(tmp_path / "rows.jsonl"))


def test_the_commands(tmp_path: Path) -> None:
    from flashu.cli.main import app

    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": "a red circle"}) + "\n")
    picture(tmp_path / "pictures/0.png", 0)
    (tmp_path / "edits.json").write_text('{"7": {"id": "0.png", "prompt": "make it red"}}')
    out = str(tmp_path / "out")
    drawn = ["eval", "geneval2", "--prompts", str(tmp_path / "data.jsonl"), "-o", out, "--steps", "1", "--json"]
    done = CliRunner().invoke(app, drawn)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["items"] == 1
    edits = ["--instructions", str(tmp_path / "edits.json"), "--images", str(tmp_path / "pictures")]
    done = CliRunner().invoke(app, ["eval", "imgedit", *edits, "-o", f"{out}-edits", "--steps", "1"])
    assert done.exit_code != 0
    assert "does not edit" in done.output
