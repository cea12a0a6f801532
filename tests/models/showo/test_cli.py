"""The command line on a folder of this family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from flashu.cli.main import app
from flashu.models.defaults import GenerationDefaults
from flashu.models.showo.codecs import CellCodes
from flashu.models.showo.load import save_model
from flashu.models.showo.processor import Processor
from flashu.models.small_vq import SmallVQ
from tests.models.showo.golden.recorded import SIZES, processor, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("showo")
    torch.manual_seed(0)
    codec = SmallVQ(SIZES["codebook_size"]).eval()
    codec.codebook.normal_()
    side = 16 * round(SIZES["num_vq_tokens"] ** 0.5)
    save_model(
        tiny_model(),
        path,
        Processor(processor().text, CellCodes(codec), GenerationDefaults(3, 2.0, 1.0, side, side, 4)),
    )
    return path


def run(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, [*words])
    assert result.exit_code == code, result.output
    return result.output


def test_draw_a_part_and_ask(folder: Path, tmp_path: Path) -> None:
    first, second, mask = (tmp_path / name for name in ("a.png", "b.png", "mask.png"))
    run("generate", "w1 w2", "--model", str(folder), "-o", str(first))
    Image.new("L", Image.open(first).size, 255).save(mask)
    run("generate", "w3", "--model", str(folder), "--image", str(first), "--mask", str(mask), "-o", str(second))
    assert Image.open(second).size == Image.open(first).size
    said = run("generate", "w3", "--model", str(folder), "--image", str(first), code=1)
    assert "give both image and mask" in " ".join(said.split())
    assert run("ask", str(first), "w4 w5", "--model", str(folder))
    assert "12 forwards" in run(
        "plan", "--model", str(folder), "--task", "generation", "--steps", "12", "--preset", "exact"
    )
