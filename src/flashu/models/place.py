"""Where a model is put and in what precision, as users say it."""

from __future__ import annotations

from typing import Any

import torch

from flashu.errors import FlashUError

SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
DTYPES = tuple(SHORT.values())


def find_dtype(given: torch.dtype | str | None) -> torch.dtype | None:
    """A dtype, or the one of a name (bf16, fp16 and fp32 included); None for None. `FlashUError` for others."""
    if given is None:
        return None
    name = str(given).removeprefix("torch.")
    full = SHORT.get(name, name)
    if full not in DTYPES:
        raise FlashUError(f"there is no dtype {given!r}: give {', '.join((*DTYPES, *SHORT))}")
    return getattr(torch, full)


def find_device(given: torch.device | str | int | None = None) -> torch.device:
    """The device of a name; None or "auto": CUDA where there is one. `FlashUError` unless tensors can live there."""
    if given is None or given == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wanted: Any = given
    try:
        found = torch.device(wanted)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:  # no such kind; torch built without it; no such number
        raise FlashUError(f"there is no device {given!r} here: give auto, cpu, or cuda where torch sees one") from error
    return found
