"""The shipped scenes model: its files belong together, and it can draw and see what it never trained on."""

from __future__ import annotations

import torch

from flashu.models.showo2.load import load_model, load_processor
from flashu.scenes.autoencoder import Autoencoder
from flashu.scenes.tokenizer import build
from flashu.scenes.train.data import Batcher, Pool, build_pool
from flashu.scenes.train.evaluate import score
from flashu.scenes.train.export import ASSETS, processor
from flashu.scenes.train.unified import Probes, Settings, Trainer, scenes_config

FOLDER = ASSETS / "scenes"


def test_files_are_small_and_complete():
    names = {"config.json", "tokenizer.json", "model.safetensors", "autoencoder.safetensors"}
    sizes = {p.name: p.stat().st_size for p in FOLDER.iterdir() if p.name in names}
    assert sizes.keys() == names
    assert sum(sizes.values()) < 16e6


def test_shipped_words_are_the_ones_the_program_builds():
    shipped, built = load_processor(FOLDER), build()
    assert shipped.text.tokenizer.get_vocab() == built.get_vocab()
    made = processor(shipped.vae.module).text
    assert (shipped.text.ids, shipped.text.chat, shipped.text.max_text) == (made.ids, made.chat, made.max_text)
    assert load_model(FOLDER).config == scenes_config(built.get_vocab_size())


def test_it_draws_and_answers():
    model, words = load_model(FOLDER, torch.float32), build()
    table = score(model, Batcher(_no_scenes(), words, 0), load_processor(FOLDER).vae.module, n=2, seed=5)
    assert table["generation"] >= 0.75
    assert table["understanding"] >= 0.85


def _no_scenes() -> Pool:
    return Pool([], torch.zeros(0), torch.zeros(0), {})


def test_neighbour_targets():
    squares = torch.zeros(1, 16, 2, dtype=torch.long)
    squares[0, 6] = 1  # row 1, column 2
    probes = Probes(4)
    expected = torch.tensor([[c > 2, c < 2, r > 1, r < 1] for r in range(4) for c in range(4)])
    logits = torch.where(expected, 20.0, -20.0)
    torch.nn.init.eye_(probes.around.weight)
    assert probes.neighbours(logits[None], squares) < 1e-6


def test_a_trainer_resumes_where_it_was(tmp_path):
    pool = build_pool(Autoencoder(), 40, tmp_path / "pool.pt")
    settings = Settings(10, generation=4, understanding=2)
    first = Trainer(settings, Batcher(pool, build(), 0), "cpu", compile_layers=False)
    first.train_step()
    second = Trainer(settings, Batcher(pool, build(), 0), "cpu", compile_layers=False)
    second.load_state_dict(first.state_dict())
    assert second.step == 1
    losses = []
    for trainer in (first, second):
        trainer.batcher.reseed(7)
        torch.manual_seed(7)
        losses.append({k: v.item() for k, v in trainer.train_step().items()})
    assert losses[0] == losses[1]
