"""The backbone for TorchUMM, called as its pipeline calls backbones; and by the real pipeline where it is installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

import flashu
from flashu.evaluation import torchumm
from flashu.evaluation.torchumm import FlashUBackbone
from tests.fakes.masked import seeded
from tests.fakes.tokens import SIDE, TokenModel


@pytest.fixture
def backbone(monkeypatch: pytest.MonkeyPatch) -> FlashUBackbone:
    """Over the small family that draws, sees and edits."""
    model = seeded(TokenModel)
    model.calibration = None
    monkeypatch.setattr(torchumm, "open_model", lambda *_, **__: model)
    opened = FlashUBackbone()
    opened.load({"model_path": "somewhere", "seed": 5, "understanding_cfg": {"max_new_tokens": 3}})
    return opened


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.radial_gradient("L").resize((SIDE, SIDE)).convert("RGB").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_generation_counts_the_seed_up_for_samples_of_a_prompt(backbone: FlashUBackbone, tmp_path: Path) -> None:
    """TorchUMM asks for each sample of a prompt with the same params."""
    wanted = [backbone.generation(prompt="w1", output_path=str(tmp_path / f"new/{n}.png")) for n in range(2)]
    other = backbone.generation(prompt="w2", generation_cfg={"seed": 9, "guidance": 1.0})
    assert [result["seed"] for result in (*wanted, other)] == [5, 6, 9]
    assert backbone.engine is not None
    for n, result in enumerate(wanted):
        drawn = backbone.engine.generate("w1", seed=5 + n).images[0]
        assert result["image"].tobytes() == drawn.tobytes()
        assert Image.open(tmp_path / f"new/{n}.png").tobytes() == drawn.tobytes()
    unguided = backbone.engine.generate("w2", seed=9, guidance=1.0).images[0]
    assert other["image"].tobytes() == unguided.tobytes()


@pytest.mark.parametrize("opened", [False, True])
def test_editing_takes_paths_and_pictures(backbone: FlashUBackbone, photo: Path, opened: bool) -> None:
    source: Any = Image.open(photo) if opened else str(photo)
    result = backbone.editing(prompt="make it w3", images=[source], output_path=None, editing_cfg={"seed": 1})
    assert backbone.engine is not None
    assert result["image"].tobytes() == backbone.engine.edit(photo, "make it w3", seed=1).images[0].tobytes()


def test_editing_by_params_alone(backbone: FlashUBackbone, photo: Path) -> None:
    given = backbone.editing("make it w3", [photo])
    named = backbone.editing(None, [], editing_cfg={"instruction": "make it w3", "image_path": str(photo)})
    assert given["image"].tobytes() != named["image"].tobytes()  # the same request again: the next seed
    assert (given["seed"], named["seed"]) == (5, 6)
    with pytest.raises(flashu.FlashUError, match="an instruction and an image"):
        backbone.editing("make it w3", [])


def test_understanding(backbone: FlashUBackbone, photo: Path) -> None:
    assert backbone.engine is not None
    for images in ([], [str(photo)], [str(photo), Image.open(photo)]):
        result = backbone.understanding(prompt="w1 w2", images=images, videos=[], understanding_cfg={})
        if images:
            [answer] = backbone.engine.answer([images], ["w1 w2"], max_new_tokens=3)
        else:
            answer = backbone.engine.chat("w1 w2", max_new_tokens=3)
        assert result == {"text": answer.text}


def test_the_protocols_names(backbone: FlashUBackbone, photo: Path) -> None:
    assert backbone.name == "flashu"
    first = backbone.generate(batch={"prompt": "w1"}, gen_cfg={"seed": 2})
    assert backbone.engine is not None
    assert first["image"].tobytes() == backbone.engine.generate("w1", seed=2).images[0].tobytes()
    edited = backbone.edit(batch={"prompt": "w3", "images": [photo]}, edit_cfg={"seed": 2})
    assert edited["image"].size == (SIDE, SIDE)
    with pytest.raises(flashu.FlashUError, match="no encodings"):
        backbone.encode({})


def test_what_is_unknown_is_refused(backbone: FlashUBackbone) -> None:
    with pytest.raises(flashu.FlashUError, match=r"unknown params for generation: cfg_scale; there are .*guidance"):
        backbone.generation("w1", None, {"cfg_scale": 4})
    with pytest.raises(flashu.FlashUError, match=r"unknown params for understanding: do_sample"):
        backbone.understanding("w1", [], [], {"do_sample": True})
    with pytest.raises(flashu.FlashUError, match=r"unknown backbone_cfg presets: flashu has model_path, preset"):
        FlashUBackbone().load({"presets": "paper"})
    with pytest.raises(flashu.FlashUError, match="nothing to answer"):
        backbone.understanding(None, [])


def test_registered_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[tuple[str, str], Any] = {}
    registry, core, umm = ModuleType("umm.core.registry"), ModuleType("umm.core"), ModuleType("umm")
    registry.register = lambda kind, name, factory: kept.update({(kind, name): factory})  # type: ignore[attr-defined]
    core.registry = registry  # type: ignore[attr-defined]
    for module in (umm, core, registry):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    torchumm.register()
    assert kept == {("backbone", "flashu"): FlashUBackbone}
    monkeypatch.setitem(sys.modules, "umm.core", None)
    with pytest.raises(flashu.FlashUError, match="TorchUMM is not here"):
        torchumm.register()


@pytest.mark.slow
def test_the_real_pipeline(tmp_path: Path, photo: Path) -> None:
    """TorchUMM's command line over its own configuration, on the embedded model."""
    pytest.importorskip("umm.inference")
    draw = {
        "task": "generation",
        "prompt": "a red circle",
        "output_path": str(tmp_path / "a.png"),
        "params": {"steps": 2},
    }
    see = {"task": "understanding", "prompt": "how many circles are there?", "images": [str(photo)]}
    config = {"backbone": "flashu", "backbone_cfg": {"model_path": "scenes", "device": "cpu"}, "requests": [draw, see]}
    (tmp_path / "infer.json").write_text(
        json.dumps({"inference": config | {"output_json": str(tmp_path / "out.json")}})
    )
    assert torchumm.main(["infer", "--config", str(tmp_path / "infer.json")]) == 0
    engine = flashu.load("scenes", device="cpu")
    drawn = engine.generate("a red circle", steps=2).images[0]
    assert Image.open(tmp_path / "a.png").tobytes() == drawn.tobytes()
    first, second = json.loads((tmp_path / "out.json").read_text())
    assert first["image"] == "<PIL.Image>"
    assert second == {"text": engine.answer(photo, "how many circles are there?").text}
