"""The model at the real sizes has exactly the original's keys, shapes and non-persistent buffers."""

import json
from pathlib import Path

import pytest
import torch

from flashu.models.showo2.load import fill_buffers
from flashu.models.showo2.model import ShowO2
from flashu.models.showo2.official import official_config

GOLDEN = Path(__file__).parent / "golden"
SIZES = {"1.5b": "Qwen/Qwen2.5-1.5B-Instruct", "7b": "Qwen/Qwen2.5-7B-Instruct"}


def unfolded(folded):
    return {name.replace("*", str(i)): (shape, dtype) for name, (n, shape, dtype) in folded.items() for i in range(n)}


def described(tensors):
    return {name: (list(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors}


@pytest.fixture(scope="module", params=SIZES)
def built(request):
    manifest = json.loads((GOLDEN / f"showo2_{request.param}_manifest.json").read_text())
    arguments = {"llm_model_path": SIZES[request.param], "llm_vocab_size": None, "load_from_showo": True}
    with torch.device("meta"):
        model = ShowO2(official_config(manifest["showo_config"] | arguments))
    return manifest, model


def test_keys_and_shapes(built):
    manifest, model = built
    expected = unfolded(manifest["state_dict"])
    assert described(model.state_dict().items()) == expected
    assert len(expected) == manifest["num_state_dict_keys"]
    assert sum(p.numel() for p in model.parameters()) == manifest["total_unique_params"]


def test_buffers_are_those_of_the_original_and_are_computed(built):
    manifest, model = built
    persistent = model.state_dict().keys()
    buffers = [(n, b) for n, b in model.named_buffers(remove_duplicate=False) if n not in persistent]
    assert described(buffers) == unfolded(manifest["non_persistent_buffers"])
    fill_buffers(model)
    assert not any(b.is_meta for b in model.buffers())
    width = manifest["llm_config"]["hidden_size"] // manifest["llm_config"]["num_attention_heads"]
    expected = 1e6 ** -(torch.arange(0, width, 2) / width)
    torch.testing.assert_close(model.showo.model.layers[27].self_attn.rotary_emb.inv_freq, expected)
    assert model.image_position_ids.tolist() == [list(range(729))]


def test_the_head_of_the_7b_is_tied_only_where_it_should_be(built):
    manifest, model = built
    assert (model.showo.lm_head.weight is model.showo.model.embed_tokens.weight) == manifest["lm_head_tied"]


def test_position_ids_are_of_the_grid() -> None:
    """Not of the table: the checkpoints for larger pictures keep the table of the smaller ones."""
    data = {"llm_model_path": "Qwen2.5-1.5B-Instruct", "image_latent_height": 32, "image_latent_width": 32}
    with torch.device("meta"):
        model = ShowO2(official_config(data))
    assert model.image_position_ids.shape == (1, 1024)
    assert len(model.position_embedding.weight) == 729
