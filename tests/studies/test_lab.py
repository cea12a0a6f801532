"""Every lab item on a random model of ten layers with hardly anything to measure; what it computes, by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from matplotlib.figure import Figure
from tests.conftest import IDS, TINY, Pixels, words
from torch.nn import functional as F
from typer.testing import CliRunner

import flashu
from flashu.cli.lab import NAMES
from flashu.cli.main import app
from flashu.errors import FlashUError
from flashu.evaluation.ledger import Ledger
from flashu.evaluation.score_table import ScoreTable
from flashu.evaluation.statistics import Difference, ItemScore
from flashu.inference.calibrate import samples
from flashu.inference.calibrate.calibration import Calibration
from flashu.models.showo2.original_engine import Original
from flashu.models.showo2.processor import GenerationDefaults, Processor
from flashu.models.showo2.text import ChatTemplate, Text
from flashu.plan.recipe import exact, paper
from flashu.studies.lab import pareto, specialization
from flashu.studies.lab import rivals as opponents
from flashu.studies.lab.components import parts, stopwatch
from flashu.studies.lab.contest import Contender, Place, drawing
from flashu.studies.lab.items import ITEMS
from flashu.studies.lab.lab import Lab, Pace, Size, endless, timing
from flashu.studies.lab.report import report
from flashu.studies.lab.result import Result, loss_within, scored
from flashu.studies.lab.similarity import Alike
from flashu.studies.lab.workload import watch

SIZE = Size("tiny", prompts=1, images=1, dense=2, questions=6, repeats=1, arms=1, samples=2, points=2, batch=4)


@pytest.fixture(scope="module")
def engine() -> flashu.Engine:
    torch.manual_seed(0)
    config = replace(TINY, llm=replace(TINY.llm, num_hidden_layers=10))
    model = flashu.ShowO2(config).eval()  # weights that want gradients, as loaded ones do
    text = Text(words(), IDS, ChatTemplate("", "", "w235"), max_text=24)
    return flashu.Engine(model, Processor(text, Pixels(), GenerationDefaults(7, 2.0, 3.0, 64, 64, max_new_tokens=2)))


@pytest.fixture(scope="module")
def lab(engine: flashu.Engine, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    torch.set_num_threads(1)
    return Lab(engine, SIZE, Ledger(tmp_path_factory.mktemp("lab") / "ledger.jsonl"))


@pytest.fixture(scope="module")
def results(lab: Lab) -> dict[str, Result]:
    return {}


@pytest.mark.parametrize("name", ITEMS)
def test_every_item_measures_and_paints(lab: Lab, name: str, results: dict[str, Result], tmp_path: Path) -> None:
    result = ITEMS[name](lab)
    result.save(tmp_path, name)
    assert (tmp_path / f"{name}.png").stat().st_size > 5000
    told = json.loads((tmp_path / f"{name}.json").read_text())
    assert told["rows"]
    assert told["claims"]
    assert {c["holds"] for c in told["claims"]} <= {"yes", "no", "unclear"}
    assert len((tmp_path / f"{name}.csv").read_text().splitlines()) == len(told["rows"]) + 1
    page = report(tmp_path, NAMES)
    assert result.title.split(":")[0] in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_the_command_knows_the_items() -> None:
    assert set(NAMES) == set(ITEMS)


def test_the_command(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = CliRunner()
    wrong = run.invoke(app, ["lab", "table9"])
    assert (wrong.exit_code, "the lab has no 'table9'" in wrong.stderr) == (1, True)
    monkeypatch.setattr("flashu.cli.lab.open_engine", lambda *_: lab.engine)
    monkeypatch.setattr("flashu.studies.lab.lab.REDUCED", SIZE)
    done = run.invoke(app, ["lab", "components", "-o", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.stderr
    assert [Path(f).name for f in json.loads(done.stdout)["files"]] == [
        "components.csv",
        "components.json",
        "components.png",
    ]
    about = json.loads((tmp_path / "components.json").read_text())["about"]
    assert about["seconds"] > 0
    assert run.invoke(app, ["lab", "report", "-o", str(tmp_path)]).exit_code == 0
    assert "Figure 11" in (tmp_path / "report.html").read_text()


class Plain(Result):
    title: ClassVar[str] = "Plain"

    def paint(self, figure: Figure) -> None:
        figure.subplots().plot([0, 1])


def test_a_result_is_of_one_calibration(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished item is measured again when the calibration's content changed, and not when only its object did."""
    measured: list[str] = []

    def cost(run: Lab) -> Result:
        measured.append(run.model)
        return Plain(({"a": 1},), (), run.about())

    monkeypatch.setattr("flashu.cli.lab.NAMES", ("cost",))
    monkeypatch.setitem(ITEMS, "cost", cost)
    monkeypatch.setattr("flashu.studies.lab.lab.REDUCED", SIZE)

    def run(calibration: Calibration | None) -> int:
        engine = flashu.Engine(lab.engine.model, lab.engine.processor, calibration=calibration)
        monkeypatch.setattr("flashu.cli.lab.open_engine", lambda *_: engine)
        done = CliRunner().invoke(app, ["lab", "all", "-o", str(tmp_path)])
        assert done.exit_code == 0, done.stderr
        return len(measured)

    known = lab.calibration
    flipped = known.with_scores("generation", known.scores["generation"].flip(1), {})
    assert [run(c) for c in (known, replace(known), flipped, flipped, None)] == [1, 1, 2, 2, 3]


def test_a_report_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FlashUError, match="no results yet"):
        report(tmp_path, NAMES)


def test_neuron_errors_are_those_of_zeroing_each_one(engine: flashu.Engine) -> None:
    """Eq. 1 in closed form against brute force: every neuron zeroed in turn, the layer's output compared."""
    held: dict[int, list[torch.Tensor]] = {}
    moments = specialization.Moments(engine.model.num_layers)

    def observe(layer, name, value, tokens) -> None:
        moments(layer, name, value, tokens)
        if name == "ffn" and layer == 3:
            held.setdefault(layer, []).append(value[tokens.valid])

    watch(engine, "understanding", 2, observe)
    found = specialization.reconstruction_error(engine.model, moments.second())[3]
    active, down = torch.cat(held[3]), engine.model.layers[3].mlp.down_proj.weight.detach()  # type: ignore[union-attr]
    whole = F.linear(active, down)
    for j in range(0, active.shape[1], 7):
        without = active.clone()
        without[:, j] = 0
        error = (whole - F.linear(without, down)).square().sum(-1).mean()
        assert float(found[j]) == pytest.approx(float(error), rel=1e-4)


def test_roles_by_hand() -> None:
    generation = torch.tensor([[9.0, 8, 1, 2, 3, 0, 0, 0, 0, 0]])
    understanding = torch.tensor([[9.0, 0, 8, 2, 3, 0, 0, 0, 0, 0]])
    found = [specialization.ROLES[k] for k in specialization.roles(generation, understanding)[0].tolist()]
    assert found[:3] == ["shared", "generation only", "understanding only"]
    assert set(found[3:]) == {"neither"}


def test_vanilla_is_its_own_equal(lab: Lab) -> None:
    places = drawing(lab, lab.geneval, [Contender("vanilla", exact()), Contender("again", exact())])
    assert places[0].change is None
    change, fidelity = places[1].change, places[1].fidelity
    assert change is not None
    assert fidelity is not None
    assert (change.value, change.p, fidelity.psnr, fidelity.latent) == (0, 1, None, 0)
    assert fidelity.ssim == pytest.approx(1)


def place(label: str, speedup: float, value: float) -> Place:
    marks = [ItemScore(k, float(k < 100 * value)) for k in range(100)]
    pace = Pace(timing([1 / speedup]), timing([1.0]), timing([2.0]))
    return Place(label, ScoreTable({"all": marks}, ("all",)), None, None, pace)


def test_the_frontier_and_who_is_beaten() -> None:
    field = [place("vanilla", 1, 0.9), place("good", 3, 0.9), place("bad", 2, 0.5), place("fast", 4, 0.6)]
    assert [p.label for p in pareto.frontier(field)] == ["good", "fast"]
    assert pareto.beaten_by(field[2], field) == "fast"
    assert pareto.beaten_by(field[0], field) is None
    assert pareto.beaten_by(field[3], field) is None


def test_a_pace_is_told_over_both_baselines() -> None:
    row = place("FlashU", 4, 0.9).row()
    assert (row["speed-up"], row["over original"], row["all n"]) == (4, 8, 100)
    assert "speed-up, 64 tokens" not in row


def test_answers_of_a_length_that_is_asked_for(lab: Lab) -> None:
    """However soon a model stops: the timed engines and the original program give exactly so many tokens."""
    first = lab.engine.processor.text
    for engine in (lab.engine, Original(lab.engine.model, lab.engine.processor)):
        given = engine.answer(*samples.questions(1)[0], max_new_tokens=1)
        stops = replace(first, ids=replace(first.ids, eos=given.tokens[0]))
        stopping = engine.of(engine.model, replace(engine.processor, text=stops), engine.fitted)
        assert stopping.answer(*samples.questions(1)[0], max_new_tokens=5).tokens == []
        longer = engine.of(engine.model, endless(stopping.processor), engine.fitted)
        assert len(longer.answer(*samples.questions(1)[0], max_new_tokens=5).tokens) == 5


def test_timings_are_taken_once(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def pair() -> dict[str, tuple[flashu.Engine, int | None]]:
        return {name: (lab.engine_of(recipe), 3) for name, recipe in (("vanilla", exact()), ("FlashU", paper()))}

    first = lab.paces(pair(), "generation")
    assert first[0].faster.turns == (1,)
    monkeypatch.setattr(flashu.Engine, "generate", None)
    assert lab.paces(pair(), "generation") == first


def test_numbers_along_an_edge_keep_apart() -> None:
    assert pareto.spread([0.1, 0.5], 0.1) == [0.1, 0.5]
    found = pareto.spread([0.5, 0.5, 0.52, 0.99, 1.0], 0.05)
    assert all(b - a > 0.049 for a, b in pairwise(found))
    assert max(found) <= 1


def test_every_opponent_has_its_kind(lab: Lab) -> None:
    kinds = {c.label: pareto.kind_of(c.label) for c in opponents.generation(lab)}
    assert set(kinds.values()) == set(pareto.KINDS)
    assert [kinds[k] for k in ("UniPC, 10 forwards", "reuse, every 2 (FORA)", "FFN pruning, own mask")] == [
        "better solver",
        "cache",
        "pruning",
    ]


def test_claims_are_judged_by_intervals() -> None:
    def change(low: float, high: float) -> Difference:
        return Difference((low + high) / 2, low, high, 0, 0, 0.01)

    assert loss_within(change(-0.01, 0.01), -0.02) == "yes"
    assert loss_within(change(-0.05, -0.03), -0.02) == "no"
    assert loss_within(change(-0.05, 0.01), -0.02) == "unclear"


def test_the_stopwatch_leaves_the_model_as_it_was(engine: flashu.Engine) -> None:
    with stopwatch(engine.model) as spent:
        engine.generate("w1", steps=2)
    assert all(seconds > 0 for seconds in spent.values())
    for modules in parts(engine.model).values():
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)
    assert timing([3.0, 1.0, 2.0]).seconds == 2
    assert timing([1.0, 4.0, 1.0]).speedup(timing([2.0, 8.0, 3.0])).turns == (2, 2, 3)


def test_a_layer_that_does_nothing_is_alike() -> None:
    alike = Alike("understanding")
    from flashu.runtime.tokens import Tokens

    x = torch.randn(1, 4, 8)
    alike(0, "input", x, Tokens.text([3], 4))
    alike(0, "output", 2 * x, Tokens.text([3], 4))
    found = {r["token"]: (r["similarity"], r["n"]) for r in alike.rows()}
    assert found["text"] == (pytest.approx(1), 3)
    assert found["last"] == (pytest.approx(1), 1)
    assert scored("a", ScoreTable({"a": [ItemScore(0, 1.0)]}, ("a",)).overall)["a"] == 1
