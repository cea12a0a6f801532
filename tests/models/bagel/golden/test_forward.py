"""One forward against the original's: contexts (group a) and velocities (group b), all layers."""

from __future__ import annotations

import pytest
import torch

from flashu.models.bagel.rows import block_layout, drawn, seen, shown, words
from flashu.models.bagel.vision import patches, sincos, table_rows
from flashu.models.layers import AttentionContext
from flashu.runtime.context import Context
from flashu.runtime.layout import visible
from tests.models.bagel.golden.recorded import MARKERS, about, close, config, model, reading_order, tensors, text

ATOL = 3e-5


class Walk:
    """Segments one after another, as the original prefills them; keeps keys, values and each layer's output."""

    def __init__(self):
        self.context, self.layout, self.kv = Context(), None, None

    def add(self, segment, keep=True):
        net, own = model(), self.context.placed(segment)
        whole = own if self.layout is None else self.layout.cat(own)
        x = self.embedded = net.embed([segment.content])[0][None]
        kept, self.outputs = [], []
        for i, layer in enumerate(net.layers):
            past = None if self.kv is None else self.kv[i]
            x, kv = layer(x, AttentionContext(net.rope(own.position), visible(own, whole), past, own.spans))
            kept.append(kv)
            self.outputs.append(x[0])
        self.hidden = x[0]
        if keep:
            self.kv, self.layout = kept, whole
            self.context.append(segment)
        return self


def cached(kv, start=0):
    """[layers, tokens, kv_heads, head_dim] of keys, and of values."""
    return tuple(torch.stack([part[n][0].transpose(0, 1) for part in kv])[:, start:] for n in (0, 1))


def prompt():
    return words(text("prompt"))


def edit_segments():
    g = tensors()
    return (
        shown(config(), g["a.edit.vae_latent"][0], MARKERS),
        seen(config(), g["a.edit.vit_image"], MARKERS),
        words(text("edit_text")),
    )


def test_text_context():
    g, walk = tensors(), Walk().add(prompt())
    close(walk.embedded[0], g["a.text.packed_sequence"], ATOL)
    for mine, name in zip(cached(walk.kv), "kv", strict=True):
        close(mine, g[f"a.text.{name}"], ATOL)


def test_vit_context_and_every_layer_of_the_vit():
    g, walk = tensors(), Walk().add(seen(config(), tensors()["a.vit.image"], MARKERS))
    close(walk.embedded[0], g["a.vit.packed_sequence"], ATOL)
    for mine, name in zip(cached(walk.kv), "kv", strict=True):
        close(mine, g[f"a.vit.{name}"], ATOL)
    net = model().vit_model.vision_model
    pixels = g["a.vit.image"][None]
    assert torch.equal(patches(pixels, config().vit.patch_size)[0], g["a.vit.in.packed_vit_tokens"])
    rows, columns = (side // config().vit.patch_size for side in pixels.shape[-2:])
    places = table_rows(rows, columns, config().vit_max_num_patch_per_side)
    assert torch.equal(places, g["a.vit.in.packed_vit_position_ids"])
    x = net.embeddings.patch_embedding(patches(pixels, config().vit.patch_size))
    x = x + net.embeddings.position_embedding(places)
    close(x[0], g["a.vit.vit_embeddings"], ATOL)
    for layer, golden in zip(net.encoder.layers, g["a.vit.vit_layers"], strict=True):
        x = layer(x)
        close(x[0], golden, ATOL)
    close(net.post_layernorm(x)[0], g["a.vit.vit_out"], ATOL)
    close(model().connector(net.post_layernorm(x))[0], g["a.vit.connector_out"], ATOL)


def test_edit_contexts():
    g = tensors()
    latents, pixels, instruction = edit_segments()
    walk = Walk().add(latents)
    close(reading_order(walk.embedded[0]), g["a.edit.1vae.packed_sequence"], ATOL)
    count = latents.length
    walk.add(pixels)
    close(walk.embedded[0], g["a.edit.2vit.packed_sequence"], ATOL)

    def same(stage):
        for mine, name in zip(cached(walk.kv), "kv", strict=True):
            whole = torch.cat((reading_order(mine[:, :count].flatten(2)), mine[:, count:].flatten(2)), dim=1)
            close(whole.view_as(mine), g[f"{stage}.{name}"], ATOL)

    same("a.edit.2vit")
    walk.add(instruction)
    same("a.edit.3text")
    alone = Walk().add(instruction)
    for mine, name in zip(cached(alone.kv), "kv", strict=True):
        close(mine, g[f"a.edit.img_uncond.{name}"], ATOL)
    contexts = about()["common"]["contexts"]
    assert walk.context.position == contexts["a.edit.3text"]["ropes"][0]
    assert walk.context.length == contexts["a.edit.3text"]["kv_lens"][0]


def test_positions_of_latents():
    size = config().latent_patch_size * config().downsample
    rows, columns = (side // size for side in about()["common"]["seeds_and_hparams"].get("t2i_hw_pixels", (48, 80)))
    mine = table_rows(rows, columns, config().max_latent_size)
    assert torch.equal(mine, tensors()["a.latent_pos_embed_row_ids_example"])
    close(sincos(config().llm.hidden_size, config().max_latent_size), model().latent_pos_embed.pos_embed, 1e-6)


CASES = {
    "t2i.cond": lambda: [prompt()],
    "t2i.text_uncond": list,
    "t2i.img_uncond": lambda: [prompt()],
    "edit.cond": lambda: [*edit_segments()],
    "edit.text_uncond": lambda: [*edit_segments()][:2],
    "edit.img_uncond": lambda: [edit_segments()[2]],
}


@pytest.mark.parametrize("case", CASES)
def test_velocity(case):
    g, p, golden = tensors(), config().latent_patch_size, f"b.{case}"
    common = about()["common"]
    height, width = (side // config().downsample for side in common[f"{case.split('.')[0]}_hw_pixels"])
    x = g["b.x" if case.startswith("t2i") else "b.edit.x"]
    latents = x.unflatten(1, (p, p, -1)).unflatten(0, (height // p, width // p)).permute(4, 0, 2, 1, 3)
    latents = latents.reshape(-1, height, width)
    walk = Walk()
    for segment in CASES[case]():
        walk.add(segment)
    walk.add(drawn(block_layout(config(), height, width), latents, float(g["b.t"]), MARKERS), keep=False)
    count = len(x)
    velocity = model().velocity(walk.hidden[None, :count], height // p, width // p)
    close(patches(velocity, p)[0], g[f"{golden}.v"], 5e-5)
    if f"{golden}.layers" in g:
        close(reading_order(walk.embedded[0]), g[f"{golden}.packed_sequence"], ATOL)
        close(reading_order(torch.stack(walk.outputs)), g[f"{golden}.layers"], ATOL)
        markers = model().norm(walk.hidden[None, count:])[0]
        final = torch.cat((model().normed_latents(walk.hidden[:count]), markers))
        close(reading_order(final), g[f"{golden}.final_norm"], ATOL)
