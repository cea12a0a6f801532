"""The command line: what it prints, writes and returns."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tests.conftest import tiny_model
from typer.testing import CliRunner

import flashu
from flashu.cli import main, output
from flashu.cli.main import app
from flashu.models.registry import families

runner = CliRunner()


@pytest.fixture
def tiny_loaded(monkeypatch: pytest.MonkeyPatch) -> flashu.ShowO2:
    """Every command that loads a model gets the tiny one."""
    model = tiny_model()
    monkeypatch.setattr("flashu.models.registry.open_model", lambda *args, **kwargs: model)
    return model


def failed(*words: str, code: int) -> str:
    """Runs a command that must fail with ``code`` and one line on stderr; returns the line."""
    result = runner.invoke(app, list(words))
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("flashu: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_help_opens_without_torch() -> None:
    code = (
        "import sys\n"
        "from flashu.cli.main import app\n"
        "try:\n    app(['generate', '--help'])\n"
        "except SystemExit as done:\n    assert done.code == 0\n"
        "slow = {'torch', 'transformers', 'diffusers', 'safetensors'} & sys.modules.keys()\n"
        "assert not slow, slow\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "PROMPT" in done.stdout


def test_the_command_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "flashu"]
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout == f"flashu {flashu.__version__}\n"
    wrong = subprocess.run([*command, "generate", "a", "--preset", "nope"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 1
    assert wrong.stdout == ""
    assert "Traceback" not in wrong.stderr
    assert wrong.stderr.count("\n") == 1


def test_nothing_asked_shows_the_help() -> None:
    result = runner.invoke(app, [])
    assert result.exit_code == 0
    for command in ("generate", "ask", "demo", "calibrate", "plan", "models"):
        assert command in result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["generate"], "Missing argument"),
        (["generate", "a", "--steps", "many"], "--steps"),
        (["generate", "a", "--steps", "0"], "--steps"),
        (["plan", "--task", "dancing"], "--task"),
        (["ask", "nowhere.png", "what?"], "nowhere.png"),
        (["paint"], "paint"),
    ],
)
def test_wrong_usage_is_one_sentence(words: list[str], said: str) -> None:
    line = failed(*words, code=2)
    assert said in line
    assert "--help" in line


def test_unusable_values_are_one_sentence(tiny_loaded: flashu.ShowO2, tmp_path: Path) -> None:
    assert "exact, paper, fast" in failed("generate", "a", "--preset", "nope", code=1)
    assert "empty" in failed("generate", " ", "-o", str(tmp_path / "a.png"), code=1)
    assert "multiples of 16" in failed("generate", "w1", "--height", "50", code=1)
    assert ".png" in failed("generate", "w1", "-o", "picture.gif", code=1)
    text = tmp_path / "notes.png"
    text.write_text("not an image")
    assert "not an image" in failed("ask", str(text), "what?", code=1)
    assert "written" in failed("generate", "w1", "--steps", "1", "-o", str(text / "a.png"), code=1)


def test_an_unknown_model_names_the_nearest() -> None:
    assert "did you mean 'scenes'" in failed("generate", "a", "--model", "scene", code=1)


def test_generate_writes_images(tiny_loaded: flashu.ShowO2, tmp_path: Path) -> None:
    words = [
        "generate",
        "w1 w2",
        "w3",
        "-n",
        "2",
        "--steps",
        "2",
        "--seed",
        "7",
        "-o",
        str(tmp_path / "new" / "out.png"),
    ]
    result = runner.invoke(app, [*words, "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [entry["seed"] for entry in report["images"]] == [7, 8, 9, 10]
    assert [entry["prompt"] for entry in report["images"]] == ["w1 w2", "w1 w2", "w3", "w3"]
    assert (report["forwards"], report["decoder_passes"]) == (2, 2)
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == ["out-0.png", "out-1.png", "out-2.png", "out-3.png"]
    with Image.open(tmp_path / "new" / "out-2.png") as image:
        assert image.size == (64, 64)
        assert json.loads(image.info["flashu"])["seed"] == 9  # type: ignore[attr-defined]


def test_memory_can_be_saved(tmp_path: Path) -> None:
    words = ["generate", "a red circle", "--steps", "2", "--preset", "paper", "-o", str(tmp_path / "a.png"), "--json"]
    drawn = []
    for more in ([], ["--offload"]):
        assert runner.invoke(app, [*words, *more]).exit_code == 0
        drawn.append(Image.open(tmp_path / "a.png").tobytes())
    assert drawn[0] == drawn[1]
    pruned = runner.invoke(app, [*words, "--in-place"])
    narrow = runner.invoke(app, [*words, "--quantize", "int8-weight"])
    assert [json.loads(r.stdout)["quantization"] for r in (pruned, narrow)] == [None, "int8-weight"]
    assert "leave in_place out" in failed(*words, "--in-place", "--quantize", "int8-weight", code=1)


def test_images_do_not_depend_on_the_batch(tiny_loaded: flashu.ShowO2, tmp_path: Path) -> None:
    for size in ("1", "3"):
        words = ["generate", "w1 w2", "-n", "3", "--steps", "2", "--batch-size", size, "-o", str(tmp_path / size)]
        assert runner.invoke(app, words).exit_code == 0
    for name in ("0.png", "1.png", "2.png"):
        one, other = (Image.open(tmp_path / size / name).tobytes() for size in ("1", "3"))
        assert max(abs(a - b) for a, b in zip(one, other, strict=True)) <= 1


def test_an_interruption_keeps_what_is_finished(
    tiny_loaded: flashu.ShowO2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    real = flashu.Engine.generate

    def stopped(self: flashu.Engine, *args: object, **settings: object) -> flashu.Generation:
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(args)
        return real(self, *args, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(flashu.Engine, "generate", stopped)
    result = runner.invoke(app, ["generate", "w1", "-n", "4", "--steps", "1", "-o", str(tmp_path / "a.png"), "--json"])
    assert result.exit_code == 130
    assert result.stdout == ""
    assert "2 of 4" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-0.png", "a-1.png"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def broken(part: Path) -> None:
        part.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(flashu.FlashUError, match="No space left"):
        output.write(target, broken)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert target.read_text() == "old"


def test_ask(tiny_loaded: flashu.ShowO2, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (64, 64), "red").save(picture)
    words = ["ask", str(picture), "w1 w2", "w3", "--max-new-tokens", "3"]
    plain = runner.invoke(app, words)
    assert plain.exit_code == 0, plain.output
    report = json.loads(runner.invoke(app, [*words, "--json"]).stdout)
    assert [entry["question"] for entry in report["answers"]] == ["w1 w2", "w3"]
    assert plain.stdout.splitlines() == [entry["answer"] for entry in report["answers"]]


def test_ask_about_a_video(tiny_loaded: flashu.ShowO2, tmp_path: Path) -> None:
    """A folder of frames and the same frames as one animated image."""
    first, *rest = (Image.new("RGB", (64, 64), color) for color in ("red", "green", "blue"))
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest)
    (tmp_path / "frames").mkdir()
    for n, frame in enumerate((first, *rest)):
        frame.save(tmp_path / "frames" / f"{n}.png")
    said = []
    for name in ("a.gif", "frames"):
        words = ["ask", str(tmp_path / name), "w1 w2", "--frames", "4", "--max-new-tokens", "3"]
        result = runner.invoke(app, words)
        assert result.exit_code == 0, result.output
        said.append(result.stdout)
    assert said[0] == said[1]
    (tmp_path / "empty").mkdir()
    assert "no image in this folder" in failed("ask", str(tmp_path / "empty"), "w1", code=1)


def test_calibrate_writes_a_file_that_generate_reads(tiny_loaded: flashu.ShowO2, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    (tmp_path / "samples.jsonl").write_text('{"image": "a.png", "question": "w1 w2"}\n')
    (tmp_path / "prompts.txt").write_text("w5 w6\n\n")
    made = tmp_path / "made.safetensors"
    words = ["calibrate", "-o", str(made), "--samples", str(tmp_path / "samples.jsonl")]
    result = runner.invoke(app, [*words, "--prompts", str(tmp_path / "prompts.txt"), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["masks"] == {"generation": [6, 96], "understanding": [6, 96]}
    assert len(report["correlation"]) == 6
    assert report["made_from"]["generation"]["prompts"] == ["w5 w6"]
    recipe = tmp_path / "recipe.json"
    flashu.FlashUConfig(understanding=flashu.UnderstandingConfig(r_LS=0)).recipe().save(recipe)
    words = ["generate", "w1", "--preset", str(recipe), "--steps", "4", "--calibration", str(made)]
    assert runner.invoke(app, [*words, "-o", str(tmp_path / "b.png")]).exit_code == 0
    (tmp_path / "samples.jsonl").write_text('{"image": "a.png"}\n')
    assert "line 1" in failed("calibrate", "-o", str(made), "--samples", str(tmp_path / "samples.jsonl"), code=1)


@pytest.mark.parametrize(
    ("model", "layers", "image_tokens"),
    [("showlab/show-o2-1.5B", 28, 729), ("showlab/show-o2-1.5B-HQ", 28, 1024), ("showlab/show-o2-7B", 28, 729)],
)
def test_plan_of_real_sizes_needs_no_weights(model: str, layers: int, image_tokens: int) -> None:
    result = runner.invoke(app, ["plan", "--model", model, "--json"])
    assert result.exit_code == 0, result.output
    plans = json.loads(result.stdout)
    drawing = plans["generation"]
    assert drawing["num_layers"] == layers
    assert max(row["tokens"] for row in drawing["rows"]) == image_tokens + 1
    assert drawing["totals"]["forwards"] == round(0.7 * drawing["exact"]["forwards"])
    assert drawing["flops_ratio"] > 2
    assert plans["understanding"]["rows"][0]["kind"] == "prefill"


def test_a_tuned_preset_is_for_its_own_weights() -> None:
    """Those of the other embedded model are looked at, those of a model elsewhere are not fetched for it."""
    tuned = ["--preset", "balanced", "--json"]
    planned = runner.invoke(app, ["plan", "--model", "scenes", *tuned])
    assert planned.exit_code == 0, planned.output
    assert json.loads(planned.stdout)["generation"]["recipe"] == "scenes-balanced"
    for words in (["plan"], ["generate", "a red circle"], ["ask", str(Path(__file__)), "what?"]):
        assert "was tuned on the weights" in failed(*words, "--model", "scenes-hard", *tuned, code=1)
    assert "these are not known here" in failed("plan", "--model", "showlab/show-o2-7B", *tuned, code=1)


def test_a_wrong_preset_shows_before_weights_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def opened(*args: object, **settings: object) -> None:
        raise AssertionError("a model is opened although the preset is unusable")

    monkeypatch.setattr("flashu.models.registry.open_model", opened)
    (tmp_path / "recipe.json").write_text('{"recipe": {"methods": [{"method": "magic"}]}}')
    for preset, said in (("nope", "no preset 'nope'"), (str(tmp_path / "recipe.json"), "unknown method 'magic'")):
        assert said in failed("generate", "a", "--preset", preset, code=1)
        assert said in failed("plan", "--preset", preset, code=1)


def test_plan_is_printed() -> None:
    result = runner.invoke(app, ["plan", "--model", "showlab/show-o2-7B", "--task", "generation", "--preset", "exact"])
    assert result.exit_code == 0, result.output
    assert "50 forwards, 50 through the decoder" in result.stdout


def test_models() -> None:
    report = json.loads(runner.invoke(app, ["models", "--json"]).stdout)
    assert [entry["name"] for entry in report["models"]][:2] == ["scenes", "scenes-hard"]
    assert [entry["here"] for entry in report["models"]][:2] == [True, True]
    shown = runner.invoke(app, ["models"], env={"COLUMNS": "200"})
    assert "in the package" in shown.stdout
    for family in families():
        assert family.title in shown.stdout
        assert set(family.random_sizes) <= set(report["random"])


def test_complaints_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.complain("several\n  lines", 1) == 1
    assert capsys.readouterr().err == "flashu: several lines\n"
