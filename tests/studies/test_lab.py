"""Every lab item on a random model of ten layers with hardly anything to measure; what it computes, by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from tests.conftest import IDS, TINY, Pixels, words
from tests.fakes.masked import MaskedModel, seeded
from tests.fakes.tokens import TokenModel
from torch.nn import functional as F
from typer.testing import CliRunner

import flashu
from flashu.cli.lab import NAMES
from flashu.cli.main import app
from flashu.errors import FlashUError
from flashu.evaluation.ledger import Ledger
from flashu.evaluation.score_table import ScoreTable
from flashu.evaluation.statistics import Difference, ItemScore, Spread
from flashu.inference.calibrate import samples
from flashu.inference.calibrate.calibration import Calibration
from flashu.models.defaults import GenerationDefaults
from flashu.models.registry import open_model
from flashu.models.showo2.processor import Processor
from flashu.models.showo2.text import ChatTemplate, Text
from flashu.plan import TASKS
from flashu.plan.presets import paper
from flashu.plan.recipe import exact
from flashu.runtime.layout import TokenLayout
from flashu.studies.frontier import frontier
from flashu.studies.lab import cases, figures, pareto, specialization
from flashu.studies.lab.cases import Case
from flashu.studies.lab.compare import OVER_ORIGINAL, SPEEDUP, Outcome, compare
from flashu.studies.lab.inner import LayerSimilarity, SecondMoments, answering, observe, original
from flashu.studies.lab.items import ITEMS, identity_of
from flashu.studies.lab.lab import Lab, Size
from flashu.studies.lab.report import report
from flashu.studies.lab.result import Result, Row, better, holds, loss_within, scored

SIZE = Size("tiny", prompts=1, images=1, dense=2, questions=6, repeats=1, seeds=1, samples=2, points=2, batch=4)


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


@pytest.mark.parametrize("name", ITEMS)
def test_every_item_measures_and_paints(lab: Lab, name: str, tmp_path: Path) -> None:
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


def result(rows: list[Row], about: dict[str, Any] | None = None, paint: Any = None) -> Result:
    return Result("Plain", rows, [], about or {}, paint or (lambda figure, _: figure.subplots().plot([0, 1])))


def test_a_result_is_of_one_calibration(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished item is measured again when the calibration's content changed, and not when only its object did."""
    measured: list[str] = []

    def cost(run: Lab) -> Result:
        measured.append(run.size.name)
        return result([{"a": 1}], run.about())

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


def test_an_identity_is_of_sizes_seed_and_weights(lab: Lab) -> None:
    other = flashu.Engine(flashu.ShowO2(lab.engine.model.config).eval(), lab.engine.processor)
    labs = [
        Lab(lab.engine, replace(SIZE, repeats=2)),
        Lab(lab.engine, SIZE, seed=1),
        Lab(other, SIZE),
    ]
    assert identity_of(Lab(lab.engine, replace(SIZE))) == identity_of(lab)
    assert len({identity_of(each) for each in [lab, *labs]}) == 4


def interrupted(figure: Figure, _: Result) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "broken",
    [result([{"a": 1}, {"a": 2}], paint=interrupted), result([{"a": 1}], {"a": math.nan})],
    ids=["figure", "json"],
)
def test_an_interrupted_save_leaves_what_was_there(broken: Result, tmp_path: Path) -> None:
    result([{"a": 0}]).save(tmp_path, "cost")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"cost.csv", "cost.json", "cost.png"}
    with pytest.raises((KeyboardInterrupt, ValueError)):
        broken.save(tmp_path, "cost")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_results_are_never_written_in_place(tmp_path: Path) -> None:
    """Who has a file open, such as a page that shows the figure, keeps the whole old one."""
    result([{"a": 0}]).save(tmp_path, "cost")
    opened = {path.name: path.open("rb") for path in tmp_path.iterdir()}
    before = {name: (tmp_path / name).read_bytes() for name in opened}
    result([{"b": 1}], {"n": 1}).save(tmp_path, "cost")
    for name, file in opened.items():
        with file:
            assert file.read() == before[name]


def test_a_report_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FlashUError, match="no results yet"):
        report(tmp_path, NAMES)


def test_neuron_errors_are_those_of_zeroing_each_one(engine: flashu.Engine) -> None:
    """Eq. 1 in closed form against brute force: every neuron zeroed in turn, the layer's output compared."""
    held: dict[int, list[torch.Tensor]] = {}
    moments = SecondMoments()

    def observer(layer: int, expert: str, name: str, value: torch.Tensor, layout: TokenLayout) -> None:
        moments(layer, expert, name, value, layout)
        if name == "ffn" and layer == 3:
            held.setdefault(layer, []).append(value[layout.valid])

    observe(engine, "understanding", 2, observer)
    found = moments.errors(engine.model)[3]
    ffn = list(engine.model.ffns().values())[3]
    active, down = torch.cat(held[3]), ffn.weights().output.weight.detach()
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


def test_vanilla_equals_itself(lab: Lab) -> None:
    first, again = compare(lab, lab.geneval, [Case("vanilla", exact()), Case("again", exact())])
    assert first.change is None
    assert again.fidelity is not None
    assert (again.changed.value, again.changed.p, again.flops_ratio) == (0, 1, 1)
    assert (again.fidelity.psnr, again.fidelity.latent) == (None, 0)
    assert again.fidelity.ssim == pytest.approx(1)


def outcome(label: str, speedup: float, value: float) -> Outcome:
    items = [ItemScore(k, float(k < 100 * value)) for k in range(100)]
    times = {SPEEDUP: Spread.of([speedup]), OVER_ORIGINAL: Spread.of([2 * speedup])}
    return Outcome(Case(label, exact()), ScoreTable({"all": items}, ("all",)), times=times)


def test_the_frontier_and_what_is_beaten() -> None:
    found = [outcome("vanilla", 1, 0.9), outcome("good", 3, 0.9), outcome("bad", 2, 0.5), outcome("fast", 4, 0.6)]
    assert frontier([(o.speedup, o.scores.overall.value) for o in found]) == [False, True, False, True]
    assert frontier([(1, 1), (1, 1), (0, 1)]) == [True, True, False]
    assert [pareto.beaten_by(o, found) for o in found] == [None, None, "fast", None]


def test_times_are_cells_where_they_were_taken() -> None:
    row = outcome("FlashU", 4, 0.9).row()
    assert (row["speed-up"], row["over original"], row["over original low"], row["all n"]) == (4, 8, 8, 100)
    assert not {"seconds", "speed-up, 64 tokens"} & row.keys()


def test_answers_of_a_length_that_is_asked_for(lab: Lab) -> None:
    """However soon a model stops: the timed engines and the original program give exactly so many tokens."""
    asked, first = samples.questions(1)[0], lab.engine.processor.text
    (token,) = lab.engine.answer(*asked, max_new_tokens=1).tokens
    stops = replace(first, ids=replace(first.ids, eos=token))
    engine = flashu.Engine(lab.engine.model, replace(lab.engine.processor, text=stops))
    whole: Any = answering(engine, 5)(*asked)
    tokens: Any = answering(original(engine), 5)(*asked)
    assert tokens[0].tolist() == whole.tokens
    assert len(whole.tokens) == 5
    for stopping in (engine, original(engine)):
        stopped: Any = answering(stopping, None)(*asked)
        assert stopped.tokens == []


def test_timings_are_taken_once(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def pair() -> dict[str, tuple[flashu.Engine, int | None]]:
        return {name: (lab.engine_of(recipe), 3) for name, recipe in (("vanilla", exact()), ("FlashU", paper()))}

    first = lab.times(pair(), "generation")
    assert [len(spread.values) for spread in first.values()] == [SIZE.repeats] * 2
    monkeypatch.setattr(flashu.Engine, "generate", None)
    assert lab.times(pair(), "generation") == first


def test_every_kind_of_baseline_has_its_colour() -> None:
    model = open_model("scenes")
    scenes = Lab(flashu.Engine(model, model.processor, calibration=model.calibration))
    assert {c.kind for c in cases.generation(scenes)} == set(figures.KINDS)
    assert {c.kind for c in cases.understanding(scenes)} <= set(figures.KINDS)


def test_presets_tuned_on_other_models_are_no_baselines(lab: Lab) -> None:
    assert cases.tuned(lab) == []


def test_what_a_model_lacks_is_left_out(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of FlashU the method, of the baselines the case."""
    spec = replace(lab.engine.model.spec, head_blocks=0, drawing="autoregressive")
    monkeypatch.setattr(type(lab.engine.model), "spec", spec)
    assert "head_cache" not in {method.name for method in cases.flashu(lab).recipe.methods}
    kinds = {case.kind for case in cases.generation(lab)}
    assert kinds & {"cache", "better solver"} == set()
    assert {"vanilla", "FlashU", "pruning", "guidance"} <= kinds


def test_claims_are_judged_by_intervals() -> None:
    def change(low: float, high: float) -> Difference:
        return Difference((low + high) / 2, low, high, 0, 0, 0.01)

    assert loss_within(change(-0.01, 0.01), -0.02) == "yes"
    assert loss_within(change(-0.05, -0.03), -0.02) == "no"
    assert loss_within(change(-0.05, 0.01), -0.02) == "unclear"
    assert [better(change(*ends)) for ends in ((0.01, 0.05), (-0.05, -0.01), (-0.05, 0.01))] == ["yes", "no", "unclear"]
    assert [holds(True), holds(False), holds(False, True), holds(False, False)] == ["yes", "no", "no", "unclear"]


def test_a_layer_that_only_scales_has_similarity_one() -> None:
    observer, layout = LayerSimilarity("understanding"), TokenLayout.causal([3]).padded(4)
    x = torch.randn(1, 4, 8)
    observer(0, "ffn", "input", x, layout)
    observer(0, "ffn", "output", 2 * x, layout)
    found = {r["token"]: (r["similarity"], r["n"]) for r in observer.rows()}
    assert found["text"] == (pytest.approx(1), 3)
    assert found["last"] == (pytest.approx(1), 1)
    assert scored("a", ScoreTable({"a": [ItemScore(0, 1.0)]}, ("a",)).overall)["a"] == 1


def test_kinds_of_tokens_by_hand() -> None:
    """Two words, an image of three tokens between two markers, one word; then a token being decoded."""
    observer = LayerSimilarity("understanding")
    layout = TokenLayout.causal([8]).block(2, 7, slice(3, 6)).shifted(0, 5)
    x = torch.randn(1, 8, 8)
    for forward, of in enumerate((layout, TokenLayout.causal([1]))):
        observer.at(forward)
        observer(0, "ffn", "input", x[:, : of.shape[1]], of)
        observer(0, "ffn", "output", x[:, : of.shape[1]], of)
    counts = {(row["forward"], row["token"]): row["n"] for row in observer.rows()}
    assert counts == {(0, "text"): 3, (0, "image"): 3, (0, "marker"): 2, (0, "last"): 1, (1, "new"): 1}


def test_every_forward_is_announced_before_it(engine: flashu.Engine) -> None:
    steps = engine.layout.defaults.steps
    seen: list[int] = []
    observe(engine, "generation", 2, lambda *_: None, seen.append)
    assert sorted(set(seen)) == list(range(steps + 1))


@pytest.mark.parametrize("kind", [TokenModel, MaskedModel])
def test_inner_values_of_any_family(kind: type[TokenModel]) -> None:
    model = seeded(kind)
    engine = flashu.Engine(model, model.processor)  # type: ignore[arg-type]
    for task in TASKS:
        similarity, moments = LayerSimilarity(task), SecondMoments()
        observe(engine, task, 2, similarity, similarity.at)
        observe(engine, task, 2, moments)
        assert {row["token"] for row in similarity.rows()} >= {"image", "text"}
        assert len({row["forward"] for row in similarity.rows()}) > 1
        errors = moments.errors(engine.model)
        seen = [task == "generation" or expert != "image" for _, expert in model.ffns()]
        assert [bool((error >= 0).all()) for error in errors] == seen
