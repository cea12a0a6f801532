"""The trainer of the scenes models, whatever the family."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from flashu.models.registry import family_of, resolve
from flashu.models.small_autoencoder import SmallAutoencoder
from flashu.scenes.world import SCENES
from flashu.training.scenes.data import Batcher, build_pool
from flashu.training.scenes.trainer import Probes, Settings, Trainer


def test_neighbour_targets() -> None:
    cells = torch.zeros(1, 16, 2, dtype=torch.long)
    cells[0, 6] = 1  # row 1, column 2
    probes = Probes(4)
    expected = torch.tensor([[c > 2, c < 2, r > 1, r < 1] for r in range(4) for c in range(4)])
    logits = torch.where(expected, 20.0, -20.0)
    torch.nn.init.eye_(probes.around.weight)
    assert probes.neighbours(logits[None], cells) < 1e-6


def test_a_trainer_resumes_where_it_was(tmp_path: Path) -> None:
    pool = build_pool(SmallAutoencoder(), 40, tmp_path / "pool.pt")
    create = family_of(resolve("scenes")).trainer
    assert create is not None

    def trainer(seed: int) -> Trainer:
        network = create(SCENES, seed)
        batcher = Batcher(pool, network.tokenizer, 0)
        return Trainer(Settings(10, {"draw": 4, "answer": 2}), batcher, network, "cpu", compile_layers=False)

    first, second = trainer(0), trainer(1)
    first.train_step()
    saved = copy.deepcopy(first.state_dict())
    losses = [{k: v.item() for k, v in first.train_step().items()}]
    torch.manual_seed(7)
    second.load_state_dict(saved)
    assert second.step == 1
    losses.append({k: v.item() for k, v in second.train_step().items()})
    assert losses[0] == losses[1]
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(first.model.parameters(), second.model.parameters(), strict=True)
    )
    assert losses[0].keys() == {"flow", "answer", "board", "around", "seen"}
