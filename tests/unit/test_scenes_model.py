"""The shipped scenes model: its files belong together, and it can draw and see what it never trained on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from flashu.models.showo2.load import load_model, load_processor
from flashu.models.showo2.model import ShowO2
from flashu.scenes.autoencoder import Autoencoder
from flashu.scenes.tokenizer import build
from flashu.scenes.world import HARD, WORLDS
from flashu.training.scenes.data import Batcher, Pool, build_pool
from flashu.training.scenes.evaluate import score
from flashu.training.scenes.export import ASSETS, processor
from flashu.training.scenes.start import start_from
from flashu.training.scenes.unified import Probes, Settings, Trainer, scenes_config


@pytest.mark.parametrize("world", WORLDS)
def test_files_are_small_and_complete(world):
    names = {"config.json", "tokenizer.json", "model.safetensors", "autoencoder.safetensors"}
    sizes = {p.name: p.stat().st_size for p in (ASSETS / world).iterdir() if p.name in names}
    assert sizes.keys() == names
    assert sum(sizes.values()) < 12e6


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_shipped_words_are_the_ones_the_program_builds(world):
    shipped, built = load_processor(ASSETS / world.name), build(world)
    assert shipped.text.tokenizer.get_vocab() == built.get_vocab()
    made = processor(shipped.vae.module, world)
    assert (shipped.text.ids, shipped.text.chat) == (made.text.ids, made.text.chat)
    assert (shipped.text.max_text, shipped.defaults) == (made.text.max_text, made.defaults)
    assert load_model(ASSETS / world.name).config == scenes_config(built.get_vocab_size(), world)


def test_it_draws_and_answers():
    model, words, vae = load_model(ASSETS / "scenes", torch.float32), build(), load_processor(ASSETS / "scenes").vae
    table = score(model, Batcher(_no_scenes(), words, 0), vae.module, n=2, seed=5)
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


def test_a_model_starts_from_a_smaller_worlds():
    """Words by name, positions resized, rooms as they were."""
    words, known = build(HARD), load_model(ASSETS / "scenes", torch.float32)
    model = ShowO2(scenes_config(words.get_vocab_size(), HARD))
    start_from(ASSETS / "scenes", model, words)
    old, new = build(), model.showo.model.embed_tokens.weight
    for word in ("circle", "left", "##d", "<answer>"):
        assert torch.equal(new[words.token_to_id(word)], known.showo.model.embed_tokens.weight[old.token_to_id(word)])
    assert torch.equal(model.layers[3].mlp.up_proj.weight, known.layers[3].mlp.up_proj.weight)
    table, small = model.position_embedding.weight.unflatten(0, (8, 8)), known.position_embedding.weight
    assert F.cosine_similarity(table[7, 7], small[15], dim=0) > 0.9
    assert F.cosine_similarity(table[0, 7], small[3], dim=0) > 0.9
