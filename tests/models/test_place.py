"""Devices and dtypes as users say them."""

from __future__ import annotations

import pytest
import torch

import flashu
from flashu.models.place import find_device, find_dtype


@pytest.mark.parametrize("given", ["bf16", "bfloat16", "torch.bfloat16", torch.bfloat16])
def test_dtypes_by_any_name(given: str | torch.dtype) -> None:
    assert find_dtype(given) is torch.bfloat16


@pytest.mark.parametrize("given", ["float99", "int8", torch.int8, 16])
def test_other_dtypes_are_refused(given: object) -> None:
    with pytest.raises(flashu.FlashUError, match="float32, bfloat16, float16"):
        flashu.load("scenes", dtype=given)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["nope", "cuda:99", 99, "cpu:x", 2.5])
def test_devices_that_are_not_there_are_refused(given: object) -> None:
    with pytest.raises(flashu.FlashUError, match="give auto, cpu, or cuda"):
        flashu.load("scenes", device=given)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [None, "auto"])
def test_a_gpu_is_used_where_there_is_one(given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_device(given).type == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert find_device(given).type == "cuda"


def test_transformers_name_of_a_dtype() -> None:
    engine = flashu.load("scenes", torch_dtype="bfloat16")
    assert engine.model.dtype == torch.bfloat16
    assert str(engine) == "<Engine scenes (showo2, bfloat16, cpu) recipe 'exact'>"
