"""A speed-up put together from measured parts."""

from __future__ import annotations

import json

import pytest
import torch

from flashu.bench import drafts
from flashu.plan import ModelSpec

SPEC = ModelSpec("any", 4, 32, 4, 2, 8, 48, 100, "flow")


def test_composed_of_parts() -> None:
    found = drafts.compose(SPEC, "any", [0.5, 0.5], past=8, vocabulary=20, dtype=torch.float32, repeats=2)
    assert found.tokens == 1.75
    assert found.drafted == 2
    layer, wide, head, wide_head, draft, caught = found.parts.values()
    assert found.plain == pytest.approx(4 * layer + head)
    assert found.speculative == pytest.approx((4 * wide + wide_head + caught + draft) / 1.75)
    assert found.speedup == pytest.approx(found.plain / found.speculative)


@pytest.mark.parametrize(
    "words",
    [
        ["composed", "--rates", ".9,.8", "--repeats", "1", "--dtype", "float32"],
        ["answers", "--items", "2", "--rounds", "1"],
    ],
)
def test_the_command(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["drafts", *words, "--model", "scenes"])
    drafts.main()
    printed = json.loads(capsys.readouterr().out)
    assert printed["model"] == "scenes"
    assert printed["speedup"] > 0
    assert printed["tokens"] > 1
