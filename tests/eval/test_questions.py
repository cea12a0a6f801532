"""What surrounds a harness' questions, and the lmms-eval plugin where that package is installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from flashu.eval.questions import beside, cut, grouped


def test_requests_with_equal_settings_go_together() -> None:
    settings = [{"until": "a", "n": 1}, {"n": 2}, {"n": 1, "until": "a"}, {"n": 1, "until": "a"}]
    assert list(grouped(settings, 2)) == [([0, 2], settings[0]), ([3], settings[0]), ([1], settings[1])]


def test_answers_end_at_the_first_stop_word() -> None:
    assert cut(" yes\n\nno", "\n\n") == "yes"
    assert cut("a b c", ["c", "b", ""]) == "a"
    assert cut(" a ", None) == "a"


def test_images_stand_side_by_side() -> None:
    red, blue = Image.new("RGB", (10, 20), "red"), Image.new("L", (20, 10))
    assert beside([red]).tobytes() == red.tobytes()
    both = beside([red, blue])
    assert both.size == (50, 20)
    assert both.getpixel((0, 0)) == (255, 0, 0)
    assert both.getpixel((49, 19)) == (0, 0, 0)


TASK = """task: scenes_tiny
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function scenes_functions.visual
doc_to_text: !function scenes_functions.text
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 4
  until: ["\\n"]
process_results: !function scenes_functions.score
metric_list:
  - metric: accuracy
    aggregation: mean
    higher_is_better: true
metadata:
  version: 0.0
"""
FUNCTIONS = """from PIL import Image


def visual(doc):
    return [Image.open(doc["image"])]


def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def score(doc, results):
    return {"accuracy": float(results[0] == doc["answer"])}
"""


@pytest.mark.slow
def test_the_harness_runs_a_local_task(tmp_path: Path) -> None:
    pytest.importorskip("lmms_eval.models.registry_v2")
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.models import get_model
    from lmms_eval.tasks import TaskManager

    assert get_model("flashu").__name__ == "FlashU"
    entries = []
    for n, colour in enumerate(("red", "blue", "green", "yellow")):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{n}.png")
        entries.append({"image": str(tmp_path / f"{n}.png"), "question": "is there a circle ?", "answer": "yes"})
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (tmp_path / "scenes_tiny.yaml").write_text(TASK.format(data=data))
    (tmp_path / "scenes_functions.py").write_text(FUNCTIONS)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    results = simple_evaluate(
        model="flashu",
        model_args="pretrained=scenes,preset=exact",
        tasks=["scenes_tiny"],
        task_manager=manager,
        batch_size=2,
        device="cpu",
    )
    assert 0 <= results["results"]["scenes_tiny"]["accuracy,none"] <= 1
