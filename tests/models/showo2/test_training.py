"""The shipped scenes models and their trainer's parts: the files belong together, and the model can draw and answer
what it never trained on."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from flashu.models.registry import ASSETS
from flashu.models.showo2 import naive
from flashu.models.showo2.load import load_model, load_processor
from flashu.models.showo2.training import ScenesShowO2, config_of, processor_of
from flashu.models.small_autoencoder import SmallAutoencoder
from flashu.models.training import IGNORED, pack
from flashu.scenes.captions import longest
from flashu.scenes.tokenizer import ANSWER, BOI, BOS, EOS, build
from flashu.scenes.world import HARD, SCENES, WORLDS
from flashu.training.scenes.data import Batcher, build_pool
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
    network = ScenesShowO2.load(ASSETS / "scenes", SCENES)
    text = [network.tokenizer.get_vocab()["red"]] * longest(SCENES)
    (first, image), (second, _) = network.drawing(text), network.drawing(text[::-1])
    tokens = pack([first, second])
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.2, 0.7])
    with torch.inference_mode():
        states = network.forward(tokens, image, latents, t)
        velocity = network.velocity(states, tokens, image)
        places = torch.tensor([[[image.start, SCENES.tokens + 1]]] * 2)
        mask = naive.omni_mask(tokens.ids.shape[1], places)
        logits, expected = naive.forward(network.module, tokens.ids, latents, t, mask, places)
        assert torch.allclose(velocity, expected, atol=1e-4)
        assert torch.allclose(network.module.logits(states.hidden), logits, atol=1e-3)


def test_rows():
    """To draw: padding, bos, text, boi, then the image, at one place in all rows; to ask: the image first."""
    network = ScenesShowO2.load(ASSETS / "scenes", SCENES)
    pool = build_pool(SmallAutoencoder(), 40)
    batcher = Batcher(pool, network.tokenizer, 0)
    rows = network.rows(batcher.drawings(8), pool)
    assert rows.drawn
    assert (rows.tokens.ids[:, rows.image.start - 1] == network.id[BOI]).all()
    for ids, position, mask in zip(rows.tokens.ids, rows.tokens.position, rows.tokens.mask[:, 0], strict=True):
        start = ids.tolist().index(network.id[BOS])
        assert position[start:].tolist() == list(range(len(ids) - start))
        assert not mask[start:, :start].any()
        assert mask[rows.image, start:].all()
        assert not mask[start : rows.image.start, rows.image].any()
    rows = network.rows(batcher.askings(4), pool)
    header = rows.image.stop + 1
    for ids, position, mask, targets in zip(
        rows.tokens.ids, rows.tokens.position, rows.tokens.mask[:, 0], rows.tokens.targets, strict=True
    ):
        starts = [header] + [i + 1 for i, v in enumerate(ids.tolist()) if v == network.id[EOS]]
        for start, end in pairwise(starts):
            assert position[start:end].tolist() == list(range(header, header + end - start))
            assert mask[start:end, :header].all()
            assert not mask[start:end, header:start].any()
            marker = start + ids[start:end].tolist().index(network.id[ANSWER])
            assert torch.equal(targets[marker : end - 1], ids[marker + 1 : end])
            assert (targets[start:marker] == IGNORED).all()
            assert targets[end - 1] == IGNORED


def test_it_draws_and_answers():
    table = score(ASSETS / "scenes", ("draw", "answer"), SCENES, n=2, seed=5)
    assert table["generation"] >= 0.75
    assert table["understanding"] >= 0.85


def test_a_model_starts_from_a_smaller_worlds():
    """Words by name, positions resized, layers as they were."""
    words, known = build(HARD), load_model(ASSETS / "scenes", torch.float32)
    model = ScenesShowO2.create(HARD, 0, start=ASSETS / "scenes").module
    old, new = build(), model.showo.model.embed_tokens.weight
    for word in ("circle", "left", "##d", "<answer>"):
        assert torch.equal(new[words.token_to_id(word)], known.showo.model.embed_tokens.weight[old.token_to_id(word)])
    assert torch.equal(model.layers[3].mlp.up_proj.weight, known.layers[3].mlp.up_proj.weight)
    table, small = model.position_embedding.weight.unflatten(0, (8, 8)), known.position_embedding.weight
    assert F.cosine_similarity(table[7, 7], small[15], dim=0) > 0.9
    assert F.cosine_similarity(table[0, 7], small[3], dim=0) > 0.9
