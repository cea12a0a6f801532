"""The official checkpoints' sizes, without their weights; whether they fit is said before anything is fetched."""

from __future__ import annotations

import pytest
import torch

import flashu
from flashu.models import fit
from flashu.models.registry import family, open_model, resolve

OFFICIAL = {
    "ByteDance-Seed/BAGEL-7B-MoT": 14.61,
    "BAAI/Emu3-Gen": 8.49,
    "showlab/show-o-512x512": 1.45,
    "showlab/show-o2-1.5B": 2.83,
}
"""Names and billions of weights, without autoencoders."""


@pytest.mark.parametrize("name", OFFICIAL)
def test_what_does_not_fit_is_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = resolve(name)
    assert known.family is not None
    weights = family(known.family).sizes(known).weights
    assert weights is not None
    counts = weights(None)
    assert counts.total / 1e9 == pytest.approx(OFFICIAL[name], abs=0.006)
    assert counts.projections > counts.total / 2
    assert counts.staying < counts.total / 10
    monkeypatch.setattr(fit, "free_bytes", lambda device: int(1.3 * counts.total))
    needed = f"{2 * counts.total / 1e9:.1f}"
    with pytest.raises(flashu.FlashUError, match=rf"{name} needs {needed} GB of main .*quantize='int8-weight'"):
        flashu.load(name, dtype=torch.bfloat16, device="cpu")


def test_a_part_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "free_bytes", lambda device: 17e9)
    with pytest.raises(flashu.FlashUError, match=r"parts='understanding' \(16\.\d GB of main memory\)"):
        open_model("ByteDance-Seed/BAGEL-7B-MoT", dtype=torch.bfloat16, device="cpu", parts="all")


def test_a_familys_own_loader_says_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "free_bytes", lambda device: 1e6)
    with pytest.raises(flashu.FlashUError, match=r"scenes needs 0\.012 GB of main memory"):
        flashu.ShowO2.from_pretrained("scenes")
