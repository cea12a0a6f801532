"""Running out of memory, said so that a user knows what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from flashu.errors import FlashUError

CPU_ALLOCATOR = "can't allocate memory"  # the CPU allocator's error has no class of its own


@contextmanager
def enough_memory(what: str, advice: str) -> Iterator[None]:
    """Turn out-of-memory errors of the block into one `FlashUError`: not enough memory to ``what``: ``advice``."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise FlashUError(f"not enough memory to {what}: {advice}") from error
    except RuntimeError as error:
        if CPU_ALLOCATOR not in str(error):
            raise
        raise FlashUError(f"not enough memory to {what}: {advice}") from error
