"""The trainer: what it learns from, how it stops and goes on, and what it leaves."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.emu3.golden import recorded as emu3

import flashu
from flashu.training.records import Records, read, rows_of
from flashu.training.settings import TrainSettings
from flashu.training.trainer import BAD, LOSSES, Trainer

pytest.importorskip("accelerate")


def records(count: int = 12) -> list[dict[str, Any]]:
    """Two tasks' rows of unlike lengths."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for n in range(count):
        ids = torch.randint(0, 160, (8 + n % 5,), generator=generator).tolist()
        targets = [-100, -100, *ids[3:], -100]
        made.append({"task": ("t2i", "mmu")[n % 2], "ids": ids, "targets": targets})
    return made


def settings(output: Path, **changes: Any) -> TrainSettings:
    known: dict[str, Any] = {
        "model": "tiny", "output": str(output), "data": {}, "rows": {"t2i": 2, "mmu": 2}, "steps": 6, "lr": 1e-3,
        "warmup": 2, "accumulate": 2, "ema": 0.9, "unimod": {"preset": "emu3-paper"}, "checkpoint": 2, "log": 1,
    }  # fmt: skip
    return TrainSettings.from_dict(known | changes)


def trainer(output: Path, **changes: Any) -> Trainer:
    model = emu3.model()
    own = settings(output, **changes)
    return Trainer(model, own, Records(records(), own.rows, own.weights, model.spec.codes, own.seed))


def losses(folder: Path) -> list[dict[str, str]]:
    with (folder / LOSSES).open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


class Stop(Exception):
    pass


def test_an_interrupted_run_goes_on_as_if_it_was_not(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole")
    whole.run()
    for at in (1, 3, 4):

        def stop(done: int, total: int, at: int = at) -> None:
            if done == at:
                raise Stop

        folder = tmp_path / str(at)
        with pytest.raises(Stop):
            trainer(folder).run(stop)
        again = trainer(folder)
        again.run()
        assert losses(folder) == losses(tmp_path / "whole")
        for ours, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
            assert torch.equal(ours, theirs)
        assert again.average is not None
        assert whole.average is not None
        assert all(torch.equal(value, whole.average[name]) for name, value in again.average.items())


def test_a_killed_run_goes_on_as_if_it_was_not(tmp_path: Path) -> None:
    """SIGKILL in the middle of writing a checkpoint, before it is complete."""
    code = (
        "import os, signal, torch\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"  # as here: sums in another order differ in the last bit
        "from pathlib import Path\n"
        "import tests.training.test_trainer as t\n"
        "replace, count = os.replace, [0]\n"
        "def killed(a, b):\n"
        "    count[0] += 1\n"
        "    if count[0] == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    replace(a, b)\n"
        "os.replace = killed\n"
        f"t.trainer(Path({str(tmp_path / 'killed')!r})).run()\n"
    )
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(root / "src")])
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=os.environ | {"PYTHONPATH": path}, check=False)
    assert done.returncode == -signal.SIGKILL
    trainer(tmp_path / "killed").run()
    trainer(tmp_path / "whole").run()
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_accumulation_and_savings_change_no_loss(tmp_path: Path) -> None:
    first = trainer(tmp_path / "a", steps=1, savings={"padding": False, "last_layer": False}).update()
    assert trainer(tmp_path / "b", steps=1).update()["loss"] == pytest.approx(first["loss"], abs=1e-5)


def test_it_learns(tmp_path: Path) -> None:
    made = trainer(tmp_path, steps=25, lr=3e-3, schedule="constant", warmup=0, accumulate=1)
    values = [made.update()["loss"] for _ in range(25)]
    assert sum(values[-5:]) < 0.8 * sum(values[:5])


def test_a_loss_that_is_no_number_stops_with_the_batch_saved(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    with torch.no_grad():
        made.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(flashu.FlashUError, match="batch is in"):
        made.update()
    assert {rows["task"] for rows in torch.load(tmp_path / BAD, weights_only=True)["rows"]} == {"t2i", "mmu"}


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, steps=2).run()
    with pytest.raises(flashu.FlashUError, match="other settings"):
        trainer(tmp_path, steps=2, lr=1e-4).resume()


def test_the_model_and_its_routers_are_saved(tmp_path: Path) -> None:
    from flashu.training.mod import Routers

    made = trainer(tmp_path, steps=1)
    made.run()
    before = [p.clone() for p in made.model.parameters()]
    made.save_model(lambda model, folder, processor: folder.mkdir(), None)
    assert all(torch.equal(a, b) for a, b in zip(before, made.model.parameters(), strict=True))
    loaded = Routers.load(tmp_path / "model", made.model.spec)
    assert all(torch.equal(loaded.weight[name], w) for name, w in made.routers.weight.items())


def test_sources(tmp_path: Path) -> None:
    made = records(6)
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "a.jsonl").write_text("\n".join(map(json.dumps, made)) + "\n")
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "0.tar", "w") as shard:
        for n, record in enumerate(made):
            data = json.dumps(record).encode()
            info = tarfile.TarInfo(f"{n}.json")
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
    assert read(tmp_path / "lines") == read(tmp_path / "shards") == made
    block = rows_of([{"task": "mmu", "ids": [1, 2, 3], "targets": [-100, 3, -100], "block": [0, 2]}, made[1]])
    assert block.explicit()[0, 0, 0].tolist()[:3] == [True, True, False]
    one = Records(made, {"t2i": 2}, seed=1)
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(one(7), one(7), strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": "1e-4"}, r"1\.0e-4"),
        ({"rows": {}}, "at least one row"),
        ({"schedule": "sine"}, "cosine, linear, constant"),
        ({"step": 3}, "unknown settings"),
        ({"steps": 0}, "at least 1"),
        ({"ema": 1}, r"\[0, 1\)"),
    ],
)
def test_bad_settings(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(flashu.FlashUError, match=message):
        settings(tmp_path, **changes)


def test_bad_data(tmp_path: Path) -> None:
    with pytest.raises(flashu.FlashUError, match="no rows of lm"):
        Records(records(), {"lm": 1})
    with pytest.raises(flashu.FlashUError, match="no training data"):
        read(tmp_path / "nowhere")
    (tmp_path / "a.jsonl").write_text('{"task": "t2i", "ids": [1, 2], "targets": [1]}\n')
    with pytest.raises(flashu.FlashUError, match="2 ids and 1 targets"):
        read(tmp_path)
    with pytest.raises(flashu.FlashUError, match="unknown savings"):
        trainer(tmp_path, savings={"paddings": False})
