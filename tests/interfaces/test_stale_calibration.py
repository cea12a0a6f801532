"""A calibration of other weights: never written beside a model, and no reason not to open one."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch

import flashu
from flashu.inference.calibrate.calibration import CALIBRATION
from flashu.models.registry import open_model


def test_saving_changed_weights_leaves_no_calibration_behind(tmp_path: Path) -> None:
    model = open_model("scenes")
    model.save_pretrained(tmp_path)
    assert (tmp_path / CALIBRATION).is_file()
    assert open_model(tmp_path).calibration is not None
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(1)
    model.save_pretrained(tmp_path)
    assert not (tmp_path / CALIBRATION).exists()
    assert open_model(tmp_path).calibration is None


def test_one_of_other_weights_is_said_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = open_model("scenes")
    known = tmp_path / "known"
    model.save_pretrained(known)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(1)
    changed = tmp_path / "changed"
    model.save_pretrained(changed)
    shutil.copy(known / CALIBRATION, changed)
    with caplog.at_level(logging.WARNING, logger="flashu"):
        engine = flashu.load(str(changed))
    assert engine.calibration is None
    assert "flashu calibrate" in caplog.text
