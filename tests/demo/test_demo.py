"""The demo on the tiny model: everything is measured, written and readable."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from tests.conftest import tiny_model

import flashu
from flashu.demo import Result, compare, summary, write_all
from flashu.demo.compare import in_time, rotated
from flashu.demo.items import edits, prompts, questions
from flashu.demo.report import page
from flashu.scenes.split import is_test_scene

VOID = {"meta", "img", "br", "link"}


@pytest.fixture(scope="module")
def result() -> Result:
    model = tiny_model()
    return compare(flashu.Engine(model, model.processor), images=6, questions=6, steps=5)


class Page(HTMLParser):
    """Checks that tags nest, and collects images and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "img":
            self.images.append(values)
        self.links += [v for k, v in attrs if k in ("src", "href") and v is not None]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_every_recipe_sees_the_same_items(result: Result) -> None:
    original, exact, quality, paper = result.recipes
    assert [recipe.name for recipe in result.recipes] == ["original", "exact", "quality", "paper"]
    for recipe in (original, quality, paper):
        assert [(d.text, d.seed) for d in recipe.drawn] == [(d.text, d.seed) for d in exact.drawn]
    assert [a.text for a in paper.answered] == [a.text for a in exact.answered]
    assert {d.forwards for d in exact.drawn} == {5}
    assert {d.forwards for d in paper.drawn} == {4}
    assert all(d.passes < d.forwards for d in paper.drawn)
    flops = [recipe.numbers()["image_gflops_mean"] for recipe in result.recipes]
    assert flops == sorted(flops, reverse=True)
    assert len(set(flops)) == 4
    assert original.numbers()["answer_gflops_mean"] > exact.numbers()["answer_gflops_mean"]


def test_the_exact_recipe_draws_and_answers_as_the_original_program_does(result: Result) -> None:
    for one, other in zip(result.recipes[0].drawn, result.recipes[1].drawn, strict=True):
        assert max(abs(a - b) for a, b in zip(one.image.tobytes(), other.image.tobytes(), strict=True)) <= 1
    said = [[a.got for a in recipe.answered] for recipe in result.recipes[:2]]
    assert said[0] == said[1]


def test_files(result: Result, tmp_path: Path) -> None:
    write_all([result], tmp_path / "demo")
    assert sorted(p.name for p in (tmp_path / "demo").iterdir()) == ["contact-sheet.png", "report.html", "results.json"]
    parser = Page()
    parser.feed((tmp_path / "demo" / "report.html").read_text(encoding="utf-8"))
    assert not parser.open
    assert len(parser.images) == 2 * 6 + 6
    assert all(image["alt"] for image in parser.images)
    assert all(link.startswith("data:image/png;base64,") for link in parser.links), "the page must stand alone"
    for link in parser.links:
        Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))).verify()
    for drawn in result.base.drawn:
        assert drawn.text in parser.text
    assert "--images 6 --questions 6 --seed 0 --steps 5" in parser.text
    with Image.open(tmp_path / "demo" / "contact-sheet.png") as sheet:
        assert sheet.width > 800
    data = json.loads((tmp_path / "demo" / "results.json").read_text())["showo2"]
    paper = data["recipes"]["paper"]
    assert paper["generation_score"]["n"] == 6
    assert set(paper["against_original"]) == {"images", "answers"}
    assert len(data["items"]["paper"]["answered"]) == 6
    assert paper["recipe"]["methods"]
    assert {"hardware", "device", "cores", "threads", "torch", "flashu", "steps", "seconds"} <= set(data["about"])


def test_several_models_and_edits(result: Result, tmp_path: Path) -> None:
    """A model that edits stands beside one that does not: each picture before and after, and rows of its own."""
    asked = edits(5, 0)
    recipes = [
        replace(
            recipe,
            edited=[
                replace(drawn, group=edit.kind, text=edit.text, source=source, right=n > 0)
                for n, ((edit, source, _), drawn) in enumerate(zip(asked, recipe.drawn, strict=False))
            ],
        )
        for recipe in result.recipes
    ]
    editor = replace(result, recipes=recipes, about=result.about | {"model": "editor", "edits": 5})
    write_all([result, editor], tmp_path)
    parser = Page()
    parser.feed((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert not parser.open
    assert len(parser.images) == 2 * (2 * 6 + 6) + 3 * 5
    assert all(edit.text in parser.text for edit, _, _ in asked)
    data = json.loads((tmp_path / "results.json").read_text())
    assert data["editor"]["recipes"]["paper"]["edit_score"]["hits"] == 4
    assert set(data["editor"]["recipes"]["paper"]["against_original"]) == {"images", "answers", "edits"}
    assert "edit_score" not in data["showo2"]["recipes"]["paper"]
    console = Console(width=80, file=io.StringIO())
    console.print(summary([result, editor]))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count("edit score") == 1
    assert shown.count("image speed-up") == 2
    assert max(map(len, shown.splitlines())) <= 80


def test_answers_are_escaped(result: Result) -> None:
    fast = replace(result.fast, answered=[replace(a, got="<em>1 < 2") for a in result.fast.answered])
    html = page([replace(result, recipes=[*result.recipes[:-1], fast])])
    assert html.count("&lt;em&gt;1 &lt; 2") == 6
    assert "<em>" not in html


def test_the_table_fits_a_terminal(result: Result) -> None:
    console = Console(width=80, file=io.StringIO())
    console.print(summary([result]))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in shown
    for word in ("generation score", "answer accuracy", "decoder passes", "image speed-up", "lost"):
        assert word in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_the_items_are_of_the_test_side() -> None:
    first = prompts(24, 3)
    assert len({seed for _, seed in first}) == len(first) == 24
    assert first == prompts(24, 3)
    assert len({prompt.category for prompt, _ in first}) == 6
    asked = questions(12, 0)
    assert len({question.kind for question, _ in asked}) == 6
    assert all(is_test_scene(question.scene) for question, _ in asked)
    with pytest.raises(flashu.FlashUError, match="too few"):
        prompts(5, 0)


def test_a_slow_machine_stops_after_whole_rounds() -> None:
    assert list(in_time(range(18), 6, 0, "things", None)) == list(range(6))
    assert list(in_time(range(18), 6, float("inf"), "things", None)) == list(range(18))


def test_everyone_goes_first_in_turn() -> None:
    assert [rotated([0, 1, 2], k) for k in range(3)] == [[0, 1, 2], [1, 2, 0], [2, 0, 1]]
