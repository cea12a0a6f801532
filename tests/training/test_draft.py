"""Drafts trained on a model's own answers: what is learnt, where gradients go, what is kept and read again."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import tiny_model
from tests.fakes.masked import seeded
from tests.fakes.tokens import TokenModel
from tests.inference.test_speculate import PICTURES, QUESTIONS
from typer.testing import CliRunner

import flashu
from flashu import CheckpointError, Engine, FlashUError
from flashu.cli.main import app
from flashu.inference.speculate import SelfDrafter, Speculation, load_drafter
from flashu.models.draft import Eagle3, Eagle3Config, MetaConfig, MetaQueries, frequent, head_of
from flashu.models.layers import AttentionContext
from flashu.models.speculators import load_network, save_network
from flashu.scenes.world import SCENES
from flashu.training.draft.answers import Asked, about_scenes, listed, own_answers
from flashu.training.draft.measure import acceptance, measured, shorter
from flashu.training.draft.taught import taught
from flashu.training.draft.train import DraftTrainer, Settings, new_network, train
from flashu.training.draft.unroll import unrolled

MODELS = {"tokens": lambda: seeded(TokenModel), "showo2": tiny_model}
KINDS: dict[str, dict[str, Any]] = {
    "eagle3": {"layers": 2},
    "meta_queries": {"normed": True, "layers": 1},
}
ASKED = [Asked(text, (picture,)) for text, picture in zip(QUESTIONS * 3, PICTURES * 3, strict=True)]
LIMIT = 8
SETTINGS = Settings(steps=6, batch=4, lr=1e-3, warmup=2, unroll=3, save_every=3, limit=LIMIT)


def engine_of(name: str) -> Engine:
    model: Any = MODELS[name]()
    return Engine(model, model.processor)


def said(engine: Engine) -> list[list[int]]:
    return [answer.tokens for answer in engine.respond([one.request(LIMIT) for one in ASKED])]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_the_unrolled_loss_is_of_what_inference_computes(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step j at a position, computed for all positions at once: the network run from there, token by token."""
    engine = engine_of(name)
    model, answers = engine.model, said(engine)
    network = new_network(engine, kind, **KINDS[kind])
    rows = taught(engine, network.collect, ASKED[:2], answers[:2], LIMIT)
    given: list[torch.Tensor] = []
    plain = type(network).logits
    monkeypatch.setattr(type(network), "logits", lambda self, hidden: given.append(hidden) or plain(self, hidden))
    steps = 3
    with torch.no_grad():
        unrolled(network, model, rows, steps)
    for step in range(steps):
        want = []
        for row, (first, length) in enumerate(zip(rows.first.tolist(), rows.length.tolist(), strict=True)):
            for slot in range(first - 1 + step, length - 2):
                want.append(walked(network, rows, row, slot - step, step))
        torch.testing.assert_close(given[step], torch.stack(want), rtol=0, atol=1e-4)


@torch.no_grad()
def walked(network: Any, rows: Any, row: int, anchor: int, steps: int) -> torch.Tensor:
    """The network's output after features up to token ``anchor`` and ``steps`` tokens more, with a plain cache."""
    x = rows.x[row : row + 1, 1:]
    features = network.features([part[row : row + 1, : anchor + 1] for part in rows.collected])
    mask = torch.ones(anchor + 1, anchor + 1, dtype=torch.bool).tril()[None, None]
    context = AttentionContext(network.rope(torch.arange(anchor + 1)[None]), mask)
    hidden, kvs = network(x[:, : anchor + 1], features, [context] * len(network.kv_shape()))
    for step in range(1, steps + 1):
        at = anchor + step
        rope = network.rope(torch.tensor([[at]]))
        contexts = [AttentionContext(rope, None, kv) for kv in kvs]
        hidden, more = network.extrapolated(x[:, at : at + 1], hidden[:, -1:], contexts)
        kvs = [kv if new is None else new for kv, new in zip(kvs, more, strict=True)]
    return hidden[0, -1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_gradients_go_to_the_draft_alone(name: str, kind: str) -> None:
    engine = engine_of(name)
    before = {key: value.clone() for key, value in engine.model.state_dict().items()}
    network = new_network(engine, kind, **KINDS[kind])
    trainer = DraftTrainer(engine, network, ASKED, said(engine), SETTINGS)
    rows = taught(engine, network.collect, ASKED[:4], trainer.answers[:4], LIMIT)
    found = unrolled(network, engine.model, rows, 2)
    found.loss.backward()
    assert {key for key, p in network.named_parameters() if p.grad is None} <= unused(network)
    assert all(p.grad is None for p in engine.model.parameters())
    losses = [trainer.update()["loss"] for _ in range(6)]
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, before[key]) for key, value in engine.model.state_dict().items())


def unused(network: Any) -> set[str]:
    """Experts that text does not use, in layers copied from a model that has several."""
    return {key for key, _ in network.named_parameters() if ".experts.image." in key}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_low_precision_trains_a_draft_of_high(kind: str) -> None:
    engine = engine_of("showo2")
    engine.model.to(torch.bfloat16)
    network = new_network(engine, kind, **KINDS[kind])
    trainer = DraftTrainer(engine, network, ASKED[:4], said(engine)[:4], SETTINGS)
    assert math.isfinite(trainer.update()["loss"])
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert {p.dtype for p in engine.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("zero_init", [True, False])
def test_an_untrained_draft_imitates_the_models_last_layers(zero_init: bool) -> None:
    """With its additions at nought, its logits after token s are those of the model after token s."""
    engine = engine_of("showo2")
    network = new_network(engine, "meta_queries", layers=2, normed=False, zero_init=zero_init)
    rows = taught(engine, network.collect, ASKED[:1], said(engine)[:1], LIMIT)
    count = rows.x.shape[1] - 1
    mask = torch.ones(count, count, dtype=torch.bool).tril()[None, None]
    context = AttentionContext(network.rope(torch.arange(count)[None]), mask)
    features = network.features([part[:, :-1] for part in rows.collected])
    hidden, _ = network(rows.x[:, 1:], features, [context] * len(network.kv_shape()))
    # Behind the image: in it, tokens see each other both ways.
    mine, models = network.logits(hidden)[0, -4:], engine.model.logits(rows.hidden[:, :-1])[0, -4:]
    assert ((mine - models).abs().max() < 2) == zero_init


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    engine = engine_of("tokens")
    answers, ends = said(engine), []
    for stops in ((), (3,)):
        folder = tmp_path / f"run{len(stops)}"
        folder.mkdir()
        for _ in (*stops, None):
            network = new_network(engine, "eagle3")
            trainer = DraftTrainer(engine, network, ASKED, answers, SETTINGS)
            if stops and not (folder / "state.pt").exists():
                for _ in range(3):
                    trainer.update()
                trainer.save(folder / "state.pt")
                continue
            logged: list[dict[str, Any]] = []
            train(trainer, folder, logged.append)
        ends.append(network.state_dict())
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())
    entry = json.loads((tmp_path / "run0" / "log.jsonl").read_text().splitlines()[-1])
    assert entry["step"] == 6
    assert len(entry["accepted"]) == 3
    assert entry["tokens"] >= 1
    with pytest.raises(FlashUError, match="other settings"):
        DraftTrainer(engine, network, ASKED, answers, Settings(steps=7)).load(tmp_path / "run0" / "state.pt")


def test_every_question_comes_once_before_any_comes_again() -> None:
    engine = engine_of("tokens")
    trainer = DraftTrainer(engine, new_network(engine, "eagle3"), ASKED, [[1]] * len(ASKED), SETTINGS)
    epochs = [n for step in range(6) for n in trainer.members(step)]
    assert sorted(epochs[:12]) == sorted(epochs[12:]) == list(range(12))
    assert epochs[:12] != epochs[12:]


def test_a_diverging_loss_stops_and_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of("tokens")
    network = new_network(engine, "eagle3")
    trainer = DraftTrainer(engine, network, ASKED, said(engine), SETTINGS)
    train(DraftTrainer(engine, network, ASKED, trainer.answers, Settings(**vars(SETTINGS))), tmp_path)
    (tmp_path / "state.pt").rename(tmp_path / "good.pt")
    with torch.no_grad():
        network.fc.weight.fill_(math.nan)
    with pytest.raises(FlashUError, match="not finite at update 0: lower the rate"):
        train(trainer, tmp_path)
    assert not (tmp_path / "state.pt").exists()
    with pytest.raises(FlashUError, match="nothing to learn from"):
        DraftTrainer(engine, network, [], [], SETTINGS)


# -- answers and measurements --------------------------------------------------------------------------------------
def test_own_answers_are_given_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, file = engine_of("tokens"), tmp_path / "answers.jsonl"
    want = said(engine)
    assert own_answers(engine, ASKED, file, batch=5, limit=LIMIT) == want
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:7]) + lines[7][:3])  # stopped while writing
    counts: list[int] = []
    assert own_answers(engine, ASKED, file, batch=5, limit=LIMIT, on_batch=counts.append) == want
    assert sum(counts) == len(ASKED) - 6
    monkeypatch.setattr(Engine, "respond", lambda *_: pytest.fail("all answers are there"))
    assert own_answers(engine, ASKED, file, limit=LIMIT) == want
    with pytest.raises(FlashUError, match="other questions"):
        own_answers(engine, ASKED[1:], file, limit=LIMIT)


def test_questions_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_text('{"question": "what?", "images": ["a.png"]}\n\n{"question": "who?"}\n')
    asked = listed(file)
    assert [(one.text, one.images) for one in asked] == [("what?", (str(tmp_path / "a.png"),)), ("who?", ())]
    for text in ("", "[1]\n", '{"images": []}\n', "what?\n"):
        file.write_text(text)
        with pytest.raises(FlashUError, match=r"asked\.jsonl"):
            listed(file)


def test_questions_about_scenes() -> None:
    asked, unseen = about_scenes(SCENES, 12, 0), about_scenes(SCENES, 12, 0, held_out=True)
    assert len(asked) == len(unseen) == 12
    assert [one.text for one in asked] == [one.text for one in about_scenes(SCENES, 12, 0)]
    assert [one.text for one in asked] != [one.text for one in unseen]


def test_acceptance_counts() -> None:
    engine = engine_of("tokens")
    own = SelfDrafter.skipping(engine.model, [1])
    object.__setattr__(own, "layers", flashu.plan.LayerPlan())  # the whole model: all it proposes is right
    found = measured(engine, Speculation(own, 3, adapt=False), ASKED, limit=LIMIT)
    assert found.rates == [1.0] * 3
    assert found.answers == len(ASKED)
    total = sum(len(answer) - 1 + (len(answer) < LIMIT) for answer in said(engine))
    assert found.given == total
    low, high = found.interval()
    assert low <= found.tokens <= high
    assert acceptance([]).tokens == 0


def test_layers_to_leave_out() -> None:
    engine = engine_of("tokens")
    skip = shorter(engine, ASKED[:2], most=2, limit=6)
    assert 0 < len(skip) < engine.model.spec.layers


# -- folders -------------------------------------------------------------------------------------------------------
def networks(engine: Engine) -> dict[str, Any]:
    model, some = engine.model, frequent(said(engine), engine.model.spec.vocabulary, 20)
    torch.manual_seed(0)
    return {
        "eagle3": Eagle3(Eagle3Config.of(model)).start(model),
        "eagle3 of few tokens": Eagle3(Eagle3Config.of(model, 20, layers=2, norm_output=True), some).start(model),
        "meta": MetaQueries(MetaConfig.of(model), model),
        "meta of few tokens": MetaQueries(MetaConfig.of(model, 20, zero_init=False, queries=0), model, some),
    }


@pytest.mark.parametrize("name", MODELS)
def test_what_is_saved_is_read_again(name: str, tmp_path: Path) -> None:
    engine = engine_of(name)
    for number, (kind, network) in enumerate(networks(engine).items()):
        folder = tmp_path / str(number)
        save_network(folder, network, engine.model, 4)
        again = load_network(folder, engine.model)
        assert again.config == network.config, kind
        for key, value in network.state_dict().items():
            assert torch.equal(again.state_dict()[key], value), (kind, key)
        drafting = engine.with_recipe("exact", draft=folder)
        assert drafting.chat("w1 w2").tokens == engine.chat("w1 w2").tokens


def test_a_head_is_read_off_any_model() -> None:
    model = seeded(TokenModel)
    torch.testing.assert_close(head_of(model), model.lm_head.weight, rtol=0, atol=1e-5)


def test_the_layout_of_safeailab(tmp_path: Path) -> None:
    """One flat config, the layer named midlayer, pickled weights, no embeddings."""
    engine = engine_of("showo2")
    network = Eagle3(Eagle3Config.of(engine.model, 20, fc_norm=False, layer_ids=(2, 3, 3)), list(range(10, 30))).start(
        engine.model
    )
    c = network.config
    config = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "hidden_size": c.hidden,
        "intermediate_size": c.neurons,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "num_hidden_layers": 1,
        "vocab_size": c.vocabulary,
        "draft_vocab_size": 20,
        "rms_norm_eps": c.eps,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    state = {n.replace("layers.0.", "midlayer."): v for n, v in network.state_dict().items() if n != "target_ids"}
    state["d2t"] = torch.full((20,), 10)
    state["t2d"] = torch.zeros(c.vocabulary, dtype=torch.bool)
    torch.save(state, tmp_path / "pytorch_model.bin")
    again = load_network(tmp_path, engine.model)
    assert again.target_ids.tolist() == list(range(10, 30))  # type: ignore[union-attr]
    assert torch.equal(again.layers[0].self_attn.q_proj.weight, network.layers[0].self_attn.q_proj.weight)  # type: ignore[union-attr]
    assert again.collect == (1, 2, 2)


def test_folders_that_do_not_fit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine, other = engine_of("showo2"), engine_of("tokens")
    network = networks(engine)["eagle3"]
    save_network(tmp_path / "draft", network, engine.model, 4)
    with pytest.raises(CheckpointError, match="for another model: its hidden size is 64, the model's 32"):
        load_drafter(tmp_path / "draft", other.model)
    config = json.loads((tmp_path / "draft" / "config.json").read_text())

    def changed(**settings: Any) -> Path:
        (tmp_path / "draft" / "config.json").write_text(json.dumps(config | settings))
        return tmp_path / "draft"

    with pytest.raises(CheckpointError, match="kind 'dflash' are not known"):
        load_drafter(changed(speculators_model_type="dflash"), engine.model)
    with pytest.raises(CheckpointError, match="holds no draft"):
        load_drafter(changed(speculators_model_type=None, architectures=[]), engine.model)
    with pytest.raises(CheckpointError, match="d2t does not name 7 of"):
        load_drafter(changed(draft_vocab_size=7), engine.model)
    weights = load_file(changed() / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "fc.weight"}, tmp_path / "draft" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"fc\.weight"):
        load_drafter(tmp_path / "draft", engine.model)
    save_file(weights, tmp_path / "draft" / "model.safetensors")
    with torch.no_grad():
        next(iter(engine.model.parameters())).mul_(2)
    engine.model.fingerprint = None  # type: ignore[attr-defined]
    with caplog.at_level("WARNING", logger="flashu"):
        load_drafter(tmp_path / "draft", engine.model)
    assert "trained for other weights" in caplog.text


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_speculators_package_opens_the_folder(tmp_path: Path) -> None:
    """The real package, in an environment of its own (FLASHU_SPECULATORS: its Python): the same tokens."""
    python = os.environ.get("FLASHU_SPECULATORS")
    if not python:
        pytest.skip("FLASHU_SPECULATORS names no Python with the speculators package")
    engine = engine_of("showo2")
    llm, c = engine.model.showo, engine.model.config.llm  # type: ignore[attr-defined]
    # The package wants the model drafted for as transformers knows it.
    target = {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "vocab_size": c.vocab_size,
    }
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "config.json").write_text(json.dumps(target))
    embedded = {"model.embed_tokens.weight": llm.model.embed_tokens.weight, "model.norm.weight": llm.model.norm.weight}
    save_file(embedded | {"lm_head.weight": llm.lm_head.weight.clone()}, tmp_path / "target" / "model.safetensors")
    for number, (kind, network) in enumerate(networks(engine).items()):
        if not kind.startswith("eagle3"):
            continue
        folder = tmp_path / str(number)
        save_network(folder, network, engine.model, 4, str(tmp_path / "target"))
        ids, length = torch.tensor([[3, 9, 20, 7, 1]]), 5
        collected = [torch.randn(1, length, network.config.hidden) for _ in network.collect]
        mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        context = AttentionContext(network.rope(torch.arange(length)[None]), mask)
        with torch.no_grad():
            x = engine.model.embed_tokens(ids)
            hidden, _ = network(x, network.features(collected), [context] * len(network.layers))
            want = network.logits(hidden).argmax(-1)
        torch.save({"ids": ids, "hidden": torch.cat(collected, -1), "want": want}, tmp_path / "case.pt")
        code = f"""
import torch
from speculators import SpeculatorModel, SpeculatorModelConfig
config = SpeculatorModelConfig.from_pretrained({str(folder)!r})
config.transformer_layer_config._attn_implementation = "eager"
model = SpeculatorModel.from_pretrained({str(folder)!r}, config=config).float()
case = torch.load({str(tmp_path / "case.pt")!r})
with torch.no_grad():
    drafted = model(case["hidden"], case["ids"], torch.zeros_like(case["ids"]), ttt_steps=1)
assert torch.equal(drafted[0], case["want"]), (drafted, case["want"])
assert model.config.speculators_config.proposal_methods[0].speculative_tokens == 4
"""
        env = os.environ | {"HF_HUB_OFFLINE": "1", "TORCHDYNAMO_DISABLE": "1"}
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr[-3000:]


# -- the command ---------------------------------------------------------------------------------------------------
def test_the_command_trains_and_the_draft_answers(tmp_path: Path) -> None:
    picture = PICTURES[0]
    picture.save(tmp_path / "a.png")
    data = tmp_path / "asked.jsonl"
    data.write_text(
        "".join(
            json.dumps({"question": q, "images": ["a.png"]}) + "\n"
            for q in ("is there a red circle?", "how many circles are there?", "what colour is the star?")
        )
    )
    for kind in ("eagle3", "meta_queries", "ngrams", "self"):
        words = ["train", "draft", "--model", "scenes", "--data", str(data), "-o", str(tmp_path / kind)]
        few = ["--steps", "2", "--batch", "2", "--unroll", "2", "--max-new-tokens", "6", "--kind", kind, "--json"]
        done = CliRunner().invoke(app, words + few, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["answers"] == 1
        asked = ["ask", str(tmp_path / "a.png"), "is there a red circle?", "--draft", str(tmp_path / kind), "--json"]
        answer = json.loads(CliRunner().invoke(app, asked, catch_exceptions=False).stdout)["answers"][0]
        plain = json.loads(CliRunner().invoke(app, [*asked[:3], "--json"], catch_exceptions=False).stdout)["answers"][0]
        assert answer["answer"] == plain["answer"]
        assert answer["tokens"] <= answer["forwards"] + answer["accepted"]
