"""Groups a and b: the rows' masks, and one forward with all of its layers, by the reference and by the layers."""

from __future__ import annotations

import torch

from flashu.models.layers import AttentionContext
from flashu.models.showo import naive
from tests.models.showo.golden.recorded import IDS, close, goldens, tiny_model

MARKS = IDS["pad"], IDS["soi"], IDS["eoi"]


def test_masks_of_drawings_and_questions() -> None:
    golden = goldens()
    ids = torch.cat((golden["a.input_ids"], golden["a.uncond_input_ids"]))
    assert torch.equal(naive.drawing_mask(ids, *MARKS), golden["a.mask_allowed"].bool())
    for name in ("d0", "d1"):
        mask = naive.question_mask(golden[f"{name}.input_ids"], IDS["eoi"])
        assert torch.equal(mask, golden[f"{name}.mask_allowed"].bool())


def test_a_forward_of_the_reference() -> None:
    golden, model, outputs = goldens(), tiny_model(), []
    mask = naive.drawing_mask(golden["b.input_ids"], *MARKS)
    logits = naive.forward(model, golden["b.input_ids"], naive.additive(mask, model.dtype), outputs=outputs)
    close(logits, golden["b.logits"])
    close(torch.stack(outputs[:-1]), golden["b.layers"])
    close(outputs[-1], golden["b.final_layernorm"])


def test_a_forward_of_the_layers() -> None:
    golden, model = goldens(), tiny_model()
    x = model.embed_tokens(golden["b.input_ids"])
    at = torch.arange(x.shape[1])[None]
    context = AttentionContext(model.rope(at), naive.drawing_mask(golden["b.input_ids"], *MARKS))
    for layer, expected in zip(model.layers, golden["b.layers"], strict=True):
        x, _ = layer(x, context)
        close(x, expected)
    hidden = model.norm(x)
    close(hidden, golden["b.final_layernorm"])
    close(model.logits(hidden), golden["b.logits"])
    close(model.logits(hidden, model.config.codes), golden["b.logits"][..., slice(*model.config.codes)])
    close(model.showo.model.rotary_emb.inv_freq, golden["b.rope_inv_freq"], 0)


def test_positions_may_begin_anywhere() -> None:
    """The rotary embedding is relative, so left padding can be left out of a row."""
    golden, model = goldens(), tiny_model()
    row = golden["b.input_ids"][0]
    start = int((row != IDS["pad"]).nonzero()[0])
    ids = row[None, start:]
    mask = naive.drawing_mask(ids, *MARKS)
    logits = naive.forward(model, ids, naive.additive(mask, model.dtype))
    close(logits[0], golden["b.logits"][0, start:])
