"""Group e: a training batch of rows to draw, of text and to answer; its losses and gradients by the layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from flashu.models.layers import AttentionContext
from flashu.models.showo import naive
from flashu.models.showo.training import hidden_codes
from tests.models.showo.golden.recorded import ABOUT, IDS, SIZES, close, goldens, tiny_model

SETTINGS = ABOUT["seeds_and_hparams"]["train"]
COUNTS = tuple(ABOUT["e_batch"][name] for name in ("t2i", "lm", "mmu"))
START, CODES = SIZES["text_block_length"], SIZES["num_vq_tokens"]


def test_which_codes_are_hidden() -> None:
    golden = goldens()
    image = golden["e.input_ids"][: COUNTS[0], START + 1 : -1]
    torch.manual_seed(SETTINGS["global_seed"])
    hidden = hidden_codes(COUNTS[0], CODES)
    assert torch.equal(hidden, image == SIZES["mask_token_id"])
    assert torch.equal(image[~hidden], golden["e.image_codes_plus_offset"][~hidden])


def test_losses_and_gradients() -> None:
    golden, model = goldens(), tiny_model().requires_grad_(True)
    ids, labels = golden["e.input_ids"], golden["e.labels"]
    drawn, text, asked = ids.split(COUNTS)
    masks = [
        naive.drawing_mask(drawn, IDS["pad"], IDS["soi"], IDS["eoi"]),
        torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril().expand(len(text), 1, -1, -1),
        naive.question_mask(asked, IDS["eoi"]),
    ]
    mask = torch.cat(masks)
    assert torch.equal(mask, golden["e.mask_allowed"].bool())
    x = model.embed_tokens(ids)
    context = AttentionContext(model.rope(torch.arange(ids.shape[1])[None]), mask)
    for layer in model.layers:
        x, _ = layer(x, context)
    logits = model.logits(model.norm(x))
    close(logits, golden["e.logits"])
    losses = naive.training_losses(logits, labels, COUNTS, START)
    weights = torch.tensor([SETTINGS["coeff"][name] for name in ("t2i", "lm", "mmu")])
    close(torch.cat((losses, (weights * losses).sum()[None])), golden["e.losses"])
    each = F.cross_entropy(logits[: COUNTS[0], START:].mT, labels[: COUNTS[0], START:], reduction="none")
    close(each, golden["e.ce_t2i_tokens"])
    (weights * losses).sum().backward()
    parameters = dict(model.named_parameters())
    norms = torch.stack([parameters[name].grad.norm() for name in ABOUT["e_param_names"]])  # type: ignore[union-attr]
    torch.testing.assert_close(norms, golden["e.grad_norms"], rtol=1e-3, atol=1e-7)


def test_a_task_without_rows_loses_nothing() -> None:
    """The original takes the whole batch for the rows that answer where there are none, and gives nan for text."""
    golden = goldens()
    logits, labels = (golden[f"e.{name}"][: COUNTS[0]] for name in ("logits", "labels"))
    losses = naive.training_losses(logits, labels, (COUNTS[0], 0, 0), START)
    close(losses[0], golden["e.losses"][0])
    assert losses[1:].tolist() == [0, 0]
