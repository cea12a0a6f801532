"""The shipped scenes models and their trainer's parts: the files belong together, and the model can draw and answer
what it never trained on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from flashu.models.registry import ASSETS
from flashu.models.showo2 import naive
from flashu.models.showo2.load import load_model, load_processor
from flashu.models.showo2.training import ScenesShowO2, config_of, processor_of
from flashu.scenes.tokenizer import build
from flashu.scenes.world import HARD, SCENES, WORLDS
from flashu.training.scenes.data import Batcher, Pool, Rows, generation_rows
from flashu.training.scenes.evaluate import score


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
    made = processor_of(shipped.vae.module, world)
    assert (shipped.text.ids, shipped.text.chat) == (made.text.ids, made.text.chat)
    assert (shipped.text.max_text, shipped.defaults) == (made.text.max_text, made.defaults)
    assert load_model(ASSETS / world.name).config == config_of(built.get_vocab_size(), world)


def test_a_forward_of_training_is_the_original_programs():
    """Rows of full length: no padding, which the original would see."""
    network, rows = ScenesShowO2.load(ASSETS / "scenes", SCENES), Rows(SCENES)
    words = build().get_vocab()
    text = [words["red"]] * (rows.prefix - 2)
    ids, pos, mask = generation_rows([text, text[::-1]], words, rows)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.2, 0.7])
    with torch.inference_mode():
        states = network.forward(ids, pos, mask, rows.image_drawn, latents, t)
        velocity = network.velocity(states, pos, mask, rows.image_drawn, (8, 8))
        places = torch.tensor([[[rows.prefix, SCENES.tokens + 1]]] * 2)
        logits, expected = naive.forward(network.module, ids, latents, t, naive.omni_mask(ids.shape[1], places), places)
        assert torch.allclose(velocity, expected, atol=1e-4)
        assert torch.allclose(network.logits(states.hidden), logits, atol=1e-3)


def test_it_draws_and_answers():
    network, vae = ScenesShowO2.load(ASSETS / "scenes", SCENES), load_processor(ASSETS / "scenes").vae
    nothing = Pool([], torch.zeros(0), torch.zeros(0), {})
    table = score(network, Batcher(nothing, build(), 0), vae.module, n=2, seed=5)
    assert table["generation"] >= 0.75
    assert table["understanding"] >= 0.85


def test_a_model_starts_from_a_smaller_worlds():
    """Words by name, positions resized, layers as they were."""
    words, known = build(HARD), load_model(ASSETS / "scenes", torch.float32)
    model = ScenesShowO2.create(HARD, words, 0, start=ASSETS / "scenes").module
    old, new = build(), model.showo.model.embed_tokens.weight
    for word in ("circle", "left", "##d", "<answer>"):
        assert torch.equal(new[words.token_to_id(word)], known.showo.model.embed_tokens.weight[old.token_to_id(word)])
    assert torch.equal(model.layers[3].mlp.up_proj.weight, known.layers[3].mlp.up_proj.weight)
    table, small = model.position_embedding.weight.unflatten(0, (8, 8)), known.position_embedding.weight
    assert F.cosine_similarity(table[7, 7], small[15], dim=0) > 0.9
    assert F.cosine_similarity(table[0, 7], small[3], dim=0) > 0.9
