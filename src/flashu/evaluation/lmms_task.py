"""A small local task for lmms-eval: questions about held-out scenes, right answers known by construction.

It tries the harness, the plugin and a preset in a minute, before the large benchmarks are fetched. `write_task` writes
the folder for ``--include_path``; the other functions are what its YAML names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from flashu.errors import FlashUError
from flashu.evaluation.scenes_questions import read
from flashu.scenes.benchmark import QUESTION_KINDS, questions
from flashu.scenes.world import render

TASK = "scenes_questions"
METRIC = "  - {{metric: {name}, aggregation: mean, higher_is_better: true}}\n"
YAML = """task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function flashu.evaluation.lmms_task.pictures
doc_to_text: !function flashu.evaluation.lmms_task.question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 32, do_sample: false}}
process_results: !function flashu.evaluation.lmms_task.scores
metric_list:
{metrics}metadata: {{version: 1.0}}
"""


def write_task(folder: Path, count: int = 10, seed: int = 0) -> Path:
    """Write the task's YAML, its questions (``count`` of each kind) and their pictures; returns the YAML."""
    if count < 1:
        raise FlashUError(f"a task needs at least one question of each kind, not {count}")
    items = [item for kind in QUESTION_KINDS for item in questions(kind, count, seed)]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    entries = []
    for n, (item, pixels) in enumerate(zip(items, render(item.scene for item in items), strict=True)):
        picture = (folder / "images" / f"{n:04d}.png").resolve()
        Image.fromarray(pixels).save(picture)
        entry = {"picture": str(picture), "question": item.text, "answer": item.verdict, "kind": item.kind}
        entries.append(json.dumps(entry) + "\n")
    data = (folder / "questions.jsonl").resolve()
    data.write_text("".join(entries), encoding="utf-8")
    file = folder / f"{TASK}.yaml"
    metrics = "".join(METRIC.format(name=name) for name in ("accuracy", *QUESTION_KINDS))
    # A JSON string is one in YAML, too, whatever is in the path.
    file.write_text(YAML.format(task=TASK, data=json.dumps(str(data)), metrics=metrics), encoding="utf-8")
    return file


def pictures(doc: dict[str, Any]) -> list[Image.Image]:
    """What a question is about."""
    return [Image.open(doc["picture"]).convert("RGB")]


def question(doc: dict[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
    return doc["question"]


def scores(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1.0 if the answer's verdict is right, under "accuracy" and under the question's kind."""
    right = float(read(results[0]) == doc["answer"])
    return {"accuracy": right, doc["kind"]: right}
