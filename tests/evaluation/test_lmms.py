"""The plugin alone, and in the real lmms-eval: as a process of its own, launched twice over, under official tasks."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import flashu
from flashu.evaluation import lmms_task
from tests.conftest import tiny_model

OFFICIAL = ["mme", "gqa", "mmbench_en_dev", "mmmu_val", "mmstar", "ai2d"]
RAISE = (sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1")
RAISE += ("--mixed_precision", "no", "--dynamo_backend", "no", "-m")


class Harness:
    """lmms-eval's base class, as much of it as the plugin uses."""

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}
        self.cache_hook = SimpleNamespace(add_partial=lambda *_: None)


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The plugin's module over a stand-in for lmms-eval, whether that is installed or not."""
    names: dict[str, dict[str, Any]] = {
        "lmms_eval.api.instance": {"Instance": SimpleNamespace},
        "lmms_eval.api.model": {"lmms": Harness},
        "lmms_eval.models.registry_v2": {"ModelManifest": SimpleNamespace},
    }
    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.models", *names):
        module = ModuleType(name)
        vars(module).update(names.get(name, {}))
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "flashu.evaluation.lmms", raising=False)
    yield importlib.import_module("flashu.evaluation.lmms")
    del sys.modules["flashu.evaluation.lmms"], flashu.evaluation.lmms  # type: ignore[attr-defined]


def test_a_preset_tuned_on_another_model_is_refused(plugin: Any) -> None:
    assert plugin.FlashU("scenes", preset="balanced", device="cpu").engine.recipe.name == "scenes-balanced"
    with pytest.raises(flashu.RecipeError, match=r"'scenes-balanced' was tuned on the weights .* use a general preset"):
        plugin.FlashU("scenes-hard", preset="balanced", device="cpu")


def test_unknown_arguments_are_refused(plugin: Any) -> None:
    with pytest.raises(flashu.FlashUError, match="presets"):
        plugin.FlashU("scenes", presets="paper")


def test_requests_are_answered_in_their_order(plugin: Any, tmp_path: Path) -> None:
    lmms_task.write_task(tmp_path, count=1)
    docs = entries(tmp_path)
    model = plugin.FlashU("scenes", device="cpu", batch_size=2)
    model.task_dict = {"task": {"test": docs}}
    settings: list[dict[str, Any]] = [{"max_new_tokens": 32}, {"max_new_tokens": 2, "until": ["so"]}]
    requests = [
        SimpleNamespace(args=(lmms_task.question(doc), settings[n % 2], lmms_task.pictures, n, "task", "test"))
        for n, doc in enumerate(docs)
    ]
    engine = flashu.load("scenes")
    for doc, said, asked in zip(docs, model.generate_until(requests), requests, strict=True):
        limit = asked.args[1]["max_new_tokens"]
        answer = engine.answer(lmms_task.pictures(doc)[0], lmms_task.question(doc), max_new_tokens=limit).text
        assert said == (answer if limit == 32 else answer.split("so")[0]).strip()


def test_pictures_stand_where_the_messages_put_them(plugin: Any) -> None:
    """Before, between and after the text; texts of several messages are lines."""
    model = plugin.FlashUChat("scenes", device="cpu", batch_size=2)
    red, blue = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    image = lambda url: {"type": "image", "url": url}  # noqa: E731
    text = lambda words: {"type": "text", "text": words}  # noqa: E731
    docs = [
        [{"role": "user", "content": [image(red), image(blue), text("which colour is the circle?")]}],
        [{"role": "user", "content": [text("is"), image(red), text("the same as"), image(blue)]}],
        [{"role": "system", "content": "one word"}, {"role": "user", "content": [text("which colour?"), image(red)]}],
        [{"role": "user", "content": [text("how many circles are there?")]}],
    ]
    model.task_dict = {"task": {"test": docs}}
    asked = {"max_new_tokens": 3}
    requests = [SimpleNamespace(args=("", lambda doc: doc, asked, n, "task", "test")) for n in range(len(docs))]
    said = model.generate_until(requests)
    engine = model.engine
    expected = [
        engine.answer([[red, blue]], ["which colour is the circle?"], max_new_tokens=3)[0],
        engine.answer([[red, blue]], ["is<image>the same as<image>"], max_new_tokens=3)[0],
        engine.answer([[red]], ["one word\nwhich colour?<image>"], max_new_tokens=3)[0],
        engine.chat("how many circles are there?", max_new_tokens=3),
    ]
    assert said == [answer.text.strip() for answer in expected]


def test_the_manifest_offers_both_kinds(plugin: Any) -> None:
    manifest = plugin.manifest()
    assert plugin.FlashU.is_simple
    assert not plugin.FlashUChat.is_simple
    for path in (manifest.simple_class_path, manifest.chat_class_path):
        assert hasattr(plugin, path.rpartition(".")[2])


def entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]


def test_the_task_has_right_answers(tmp_path: Path) -> None:
    """The embedded model is known to answer held-out questions rightly; silence is always wrong."""
    lmms_task.write_task(tmp_path, count=1)
    docs = entries(tmp_path)
    assert len(docs) == 6
    engine = flashu.load("scenes")
    said = engine.answer([lmms_task.pictures(doc)[0] for doc in docs], [lmms_task.question(doc) for doc in docs])
    scores = [lmms_task.scores(doc, [answer.text]) for doc, answer in zip(docs, said, strict=True)]
    assert sum(score["accuracy"] for score in scores) >= 5
    assert all(score.keys() == {"accuracy", doc["kind"]} for score, doc in zip(scores, docs, strict=True))
    assert not any(lmms_task.scores(doc, [""])["accuracy"] for doc in docs)
    with pytest.raises(flashu.FlashUError, match="at least one"):
        lmms_task.write_task(tmp_path, count=0)


def test_the_task_names_functions_that_are_there(tmp_path: Path) -> None:
    file = lmms_task.write_task(tmp_path / 'a "folder"', count=1)
    lines = dict(line.split(": ", 1) for line in file.read_text().splitlines() if ": " in line and line[0] != " ")
    named = {key: value.removeprefix("!function ") for key, value in lines.items() if value.startswith("!function ")}
    assert set(named) == {"doc_to_visual", "doc_to_text", "process_results"}
    for name in named.values():
        module, _, function = name.rpartition(".")
        assert callable(getattr(importlib.import_module(module), function))
    [data] = re.findall(r"data_files: {test: (.*)}}", lines["dataset_kwargs"])
    assert Path(json.loads(data)).is_file()


def harness(folder: Path, preset: str, *launcher: str) -> tuple[str, dict[str, float]]:
    """What lmms-eval prints for the task in ``folder``, and the values it writes."""
    out = folder / preset
    settings = ["--model", "flashu", "--model_args", f"pretrained=scenes,preset={preset}", "--batch_size", "1"]
    task = ["--include_path", str(folder), "--tasks", lmms_task.TASK, "--output_path", str(out)]
    command = [*(launcher or (sys.executable, "-m")), "lmms_eval", *settings, *task]
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    [written] = out.rglob("*_results.json")
    values = json.loads(written.read_text())["results"][lmms_task.TASK]
    return done.stdout, {name.removesuffix(",none"): v for name, v in values.items() if isinstance(v, float | int)}


@pytest.mark.slow
def test_the_harness_prints_its_table(tmp_path: Path) -> None:
    """In one process and in two; a lossy preset scores as its own answers do."""
    pytest.importorskip("lmms_eval.models.registry_v2")
    lmms_task.write_task(tmp_path, count=4)
    printed, exact = harness(tmp_path, "exact")
    assert f"|{lmms_task.TASK}|" in printed
    assert exact["accuracy"] >= 0.9
    _, paper = harness(tmp_path, "paper", *RAISE)
    docs = entries(tmp_path)
    engine = flashu.load("scenes", "paper")
    said = [engine.answer(lmms_task.pictures(d)[0], lmms_task.question(d), max_new_tokens=32).text for d in docs]
    right = [lmms_task.scores(doc, [text])["accuracy"] for doc, text in zip(docs, said, strict=True)]
    assert paper["accuracy"] == pytest.approx(sum(right) / len(right))
    assert paper["accuracy"] < exact["accuracy"]


# -- the official tasks, over rows of their own form -----------------------------------------------------------------
PICTURE = Image.new("RGB", (40, 24), "red")
CHOICES = {letter: f"option {letter}" for letter in "ABCD"}
MMBENCH = {"hint": "nan", "category": "identity", "L2-category": "attribute", "source": "made up", "split": "dev"}
ROWS: dict[str, list[dict[str, Any]]] = {
    "mme": [
        {"question_id": "1", "image": PICTURE, "question": q, "answer": a, "category": "existence"}
        for q, a in (("Is there a bus? Please answer yes or no.", "Yes"), ("Is there a dog?", "No"))
    ],
    "gqa": [{"id": "1", "imageId": "n1", "question": "What colour is it?", "answer": "red"}],
    "mmbench_en_dev": [{"index": 1, "image": PICTURE, "question": "Who?", "answer": "A", **CHOICES, **MMBENCH}],
    "mmmu_val": [
        {
            "id": "validation_Art_1",
            "question": "Compare <image 1> and <image 2>.",
            "options": "['one', 'two']",
            "answer": "A",
            "question_type": "multiple-choice",
            "image_1": PICTURE,
            "image_2": PICTURE,
        }
    ],
    "mmstar": [
        {
            "index": 0,
            "image": PICTURE,
            "question": "What?\nOptions: A: one, B: two",
            "answer": "A",
            "category": "math",
            "l2_category": "geometry",
        }
    ],
    "ai2d": [{"image": PICTURE, "question": "Which?", "options": ["one", "two"], "answer": "1"}],
}
SPLITS = {"mme": "test", "gqa": "testdev", "mmbench_en_dev": "dev", "mmmu_val": "validation", "ai2d": "test"}
PLACES = {"MME": "mme", "GQA": "gqa", "MMBench": "mmbench_en_dev", "MMMU": "mmmu_val", "MMStar": "mmstar"}


@pytest.mark.slow
def test_the_official_tasks_ask_and_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their own prompts, pictures and scoring; only the rows are made up, because the real ones are downloads. The
    answer is given, so that the scores are known."""
    pytest.importorskip("lmms_eval.models.registry_v2")
    import datasets
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    def made_up(path: str, name: str | None = None, split: str | None = None, **_: Any) -> Any:
        if name == "testdev_balanced_images":
            return datasets.Dataset.from_list([{"id": "n1", "image": PICTURE}])
        task = PLACES.get(path.rsplit("/", 1)[-1], "ai2d")
        return datasets.DatasetDict({SPLITS.get(task, "val"): datasets.Dataset.from_list(ROWS[task])})

    model = tiny_model()
    asked: list[tuple[Any, str]] = []

    def answered(self: flashu.Engine, requests: list[Any], **settings: Any) -> list[Any]:
        asked.extend((picture, request.text) for request in requests for picture in request.images)
        return respond(self, [replace(request, max_new_tokens=2) for request in requests], **settings)

    respond = flashu.Engine.respond
    monkeypatch.setattr(datasets, "load_dataset", made_up)
    monkeypatch.setattr("flashu.evaluation.lmms.open_model", lambda *_, **__: model)
    monkeypatch.setattr(flashu.Engine, "respond", answered)
    monkeypatch.setattr("flashu.evaluation.lmms.cut", lambda *_: "A")
    monkeypatch.setenv("OPENAI_API_KEY", "none: every answer is a letter, which needs no judge")
    monkeypatch.chdir(tmp_path)
    results = simple_evaluate(
        model="flashu",
        model_args=f"pretrained={tmp_path},preset=quality",
        tasks=OFFICIAL,
        task_manager=TaskManager(),
        batch_size=1,
        device="cpu",
    )["results"]
    assert len(asked) == 8  # one question shows two pictures
    words = "\n".join(question for _, question in asked)
    assert "Answer the question using a single word or phrase." in words
    assert "Answer with the option's letter from the given choices directly." in words
    assert {image.size for image, _ in asked} == {(40, 24)}
    assert results["mmstar"]["average,none"] == results["mmmu_val"]["mmmu_acc,none"] == 1
    assert results["mmbench_en_dev"]["gpt_eval_score,none"] == 100
    assert results["gqa"]["exact_match,none"] == results["mme"]["mme_perception_score,none"] == 0
    assert results["ai2d"]["exact_match,flexible-extract"] == 0
