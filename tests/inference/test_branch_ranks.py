"""Guidance branches on two processes: the images of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import flashu
from flashu.errors import FlashUError
from flashu.inference.parallel import BranchParallelEngine

PROMPTS = ["a red circle above a blue square", "two green triangles"]
CASES = [("scenes", "paper"), ("scenes-bagel", "exact")]


def double(model: str, recipe: str) -> flashu.Engine:
    """In double precision nothing but a mistake makes a difference; in fp32 other batches round otherwise (2e-5)."""
    engine = flashu.load(model, recipe, device="cpu")
    engine.model.double()
    return engine


def drawn(engine: flashu.Engine) -> torch.Tensor:
    made = engine.generate(PROMPTS, seed=3, steps=6, decode=False)
    assert isinstance(made.latents, torch.Tensor)
    return made.latents


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    rows = []
    for model, recipe in CASES:
        engine = BranchParallelEngine.over(double(model, recipe))
        made = engine.generate(PROMPTS, seed=3, steps=6, decode=False)
        rows.append(made.latents)
    torch.save(rows, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_draw_what_one_process_draws(tmp_path: Path) -> None:
    mp.spawn(one_rank, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for (model, recipe), a, b in zip(CASES, first, second, strict=True):
        assert torch.equal(a, b)
        alone = drawn(double(model, recipe))
        torch.testing.assert_close(a, alone, rtol=0, atol=1e-6)


def test_without_ranks_the_error_says_what_to_do() -> None:
    with pytest.raises(FlashUError, match="torchrun"):
        BranchParallelEngine.over(flashu.load("scenes"))
