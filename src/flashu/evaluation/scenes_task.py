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


def write_task(folder: Path, count: int = 10, seed: int = 0) -> Path:
    """Write the task's YAML, its questions (``count`` of each kind) and their pictures; returns the YAML."""
    if count < 1:
        raise FlashUError(f"a task needs at least one question of each kind, not {count}")
    asked = [question for kind in QUESTION_KINDS for question in questions(kind, count, seed)]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    entries = []
    for n, (question, pixels) in enumerate(zip(asked, render(q.scene for q in asked), strict=True)):
        picture = (folder / "images" / f"{n:04d}.png").resolve()
        Image.fromarray(pixels).save(picture)
        entry = {"picture": str(picture), "question": question.text, "answer": question.verdict, "kind": question.kind}
        entries.append(json.dumps(entry) + "\n")
    data = (folder / "questions.jsonl").resolve()
    data.write_text("".join(entries), encoding="utf-8")
    file = folder / f"{TASK}.yaml"
    file.write_text(_yaml(data), encoding="utf-8")
    return file


def pictures(doc: dict[str, Any]) -> list[Image.Image]:
    """What a question is about."""
    return [Image.open(doc["picture"]).convert("RGB")]


def words(doc: dict[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
    """The question."""
    return doc["question"]


def marks(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1.0 if the answer's verdict is right, under "accuracy" and under the question's kind."""
    right = float(read(results[0]) == doc["answer"])
    return {"accuracy": right, doc["kind"]: right}


def _yaml(data: Path) -> str:
    here = "flashu.evaluation.scenes_task"
    lines = [
        f"task: {TASK}",
        "dataset_path: json",
        # A JSON string is one in YAML, too, whatever is in the path.
        f"dataset_kwargs: {{data_files: {{test: {json.dumps(str(data))}}}}}",
        "test_split: test",
        "output_type: generate_until",
        f"doc_to_visual: !function {here}.pictures",
        f"doc_to_text: !function {here}.words",
        "doc_to_target: answer",
        "generation_kwargs: {max_new_tokens: 32, do_sample: false}",
        f"process_results: !function {here}.marks",
        "metric_list:",
        *(
            f"  - {{metric: {name}, aggregation: mean, higher_is_better: true}}"
            for name in ("accuracy", *QUESTION_KINDS)
        ),
        "metadata: {version: 1.0}",
    ]
    return "\n".join(lines) + "\n"
