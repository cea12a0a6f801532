"""The most memory held during a run."""

from __future__ import annotations

from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # what Linux takes to start the peak anew
MEANING = {
    "cuda": "most memory allocated, weights included",
    "cpu": "growth of the process's peak resident memory over what it held before, weights excluded",
}


class Peak:
    """``with Peak(device) as peak: ...``; then ``peak.bytes``, None where nothing can be measured."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes: int | None = None

    def __enter__(self) -> Peak:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._before = _resident("VmRSS") if _peak_starts_anew() else None
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device)
        elif self._before is not None and (peak := _resident("VmHWM")) is not None:
            self.bytes = max(peak - self._before, 0)


def _peak_starts_anew() -> bool:
    try:
        CLEAR.write_text(RESET_PEAK)
    except OSError:  # not Linux, or not allowed
        return False
    return True


def _resident(field: str) -> int | None:
    """A field of the process's status, in bytes."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return None
