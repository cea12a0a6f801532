"""The authors' question, text and mixed scripts on a patched instance: the same tokens, over a growing cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.dropin.original import Original, dense
from tests.dropin.test_drawing import SEEING
from torch import Tensor

import flashu
from flashu.dropin.masks import tokens_of
from flashu.dropin.talking import drawn_token

Goldens = dict[str, Tensor]


class Words:
    """The two members of a tokenizer that the loops use."""

    eos_token_id = 251

    @staticmethod
    def decode(tokens: list[int], skip_special_tokens: bool) -> str:
        assert not skip_special_tokens
        return " ".join(str(token) for token in tokens)


def question(goldens: Goldens, group: str) -> dict[str, Any]:
    x = goldens[f"{group}.input_embeds"].clone()
    return {"input_embeds": x, "attention_mask": dense(x[..., 0], goldens[f"{group}.modality_positions"])}


@pytest.mark.parametrize("group", ["d0", "d1"])
def test_questions(group: str, goldens: Goldens, original: Original) -> None:
    wanted = goldens[f"{group}.tokens"]
    asked = question(goldens, group) | {"max_new_tokens": 12, "top_k": 1}
    assert torch.stack(original.mmu_generate(**asked)).equal(wanted)
    flashu.apply_flashu_patch(original, "exact")
    said = original.mmu_generate(**asked, eos_token=None)
    assert torch.stack(said).equal(wanted)
    assert all(token.shape == () and not token.is_inference() for token in said)
    stopped = original.mmu_generate(**asked, eos_token=int(wanted[4]))
    assert torch.stack(stopped).equal(wanted[: wanted.tolist().index(int(wanted[4])) + 1])
    assert original.mmu_generate(**asked | {"max_new_tokens": 0}) == []


def test_sampling_goes_on_with_the_same_generator(goldens: Goldens, original: Original) -> None:
    asked = question(goldens, "d0") | {"max_new_tokens": 8, "top_k": 5, "temperature": 0.7}
    torch.manual_seed(3)
    wanted, after = original.mmu_generate(**asked), torch.rand(1)
    flashu.apply_flashu_patch(original, "exact")
    torch.manual_seed(3)
    assert torch.stack(original.mmu_generate(**asked)).equal(torch.stack(wanted))
    assert torch.rand(1).equal(after)


def test_top_p_keeps_the_fewest_tokens() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = {int(drawn_token(logits, temperature=1.0, top_k=None, top_p=0.6)) for _ in range(200)}
    assert kept == {0, 1}


def test_text_alone(original: Original) -> None:
    given = {"tokenizer": Words, "max_new_tokens": 6, "top_k": 1, "boi_token": None, "device": "cpu"}
    theirs, ours = [250, 3, 9, 27], [250, 3, 9, 27]
    wanted = original.lm_generate(input_ids=theirs, **given)
    flashu.apply_flashu_patch(original, "exact")
    said = original.lm_generate(input_ids=ours, **given)
    assert wanted.startswith(said)  # the stand-in does not stop
    assert ours[:4] == theirs[:4]
    assert " ".join(map(str, ours[4:])) == said
    boi = int(said.split()[1])
    again = original.lm_generate(input_ids=[250, 3, 9, 27], **given | {"boi_token": boi})
    assert again.split() == said.split()[: said.split().index(str(boi)) + 1]


@pytest.mark.parametrize("idle", [False, True])
def test_mixed_rows(idle: bool, goldens: Goldens, original: Original) -> None:
    """Two images in a row; an idle slot writes its time token over position 0, as the original does."""
    ids, where = goldens["b_two_images.in.text_tokens"], goldens["b_two_images.in.modality_positions"].clone()
    if idle:
        where[0, 1] = 0
    given = {
        "image_latents": goldens["b_two_images.in.latents"],
        "t": goldens["b_two_images.in.t"],
        "modality_positions": where,
        "attention_mask": dense(ids, where),
        "tokenizer": Words,
        "max_new_tokens": 6,
        "top_k": 1,
    }
    wanted = original.mm_generate(input_ids=ids[0].tolist(), **given)
    flashu.apply_flashu_patch(original, "exact")
    assert original.mm_generate(input_ids=ids[0].tolist(), **given) == wanted


def test_flashu_calibrates_on_the_first_question(goldens: Goldens, original: Original) -> None:
    handle = flashu.apply_flashu_patch(original, flashu.FlashUConfig(understanding=SEEING))
    asked = question(goldens, "d0") | {"max_new_tokens": 12, "top_k": 1}
    words = {"tokenizer": Words, "max_new_tokens": 4, "top_k": 1}
    exact = original.lm_generate(input_ids=[250, 3, 9], **words)  # nothing is known yet: the full model
    assert handle.calibration is None
    first = torch.stack(original.mmu_generate(**asked))
    assert handle.calibration is not None
    assert handle.calibration.correlation is not None
    assert torch.stack(original.mmu_generate(**asked)).equal(first)
    assert len(original.lm_generate(input_ids=[250, 3, 9], **words).split()) <= len(exact.split()) + 4


def test_the_block_can_be_put_where_training_has_it(goldens: Goldens, original: Original) -> None:
    asked = question(goldens, "d1") | {"max_new_tokens": 12, "top_k": 1}
    where = goldens["d1.modality_positions"].clone()
    where[..., 0] -= 1
    right = original.mmu_generate(**asked | {"attention_mask": dense(asked["input_embeds"][..., 0], where)})
    flashu.apply_flashu_patch(original, "exact", understanding_block="training")
    assert torch.stack(original.mmu_generate(**asked)).equal(torch.stack(right))


def test_masks_are_read_back(goldens: Goldens) -> None:
    for group in ("d0", "d1"):
        given = goldens[f"{group}.mask_allowed"].bool()
        start, count = goldens[f"{group}.modality_positions"][0, 0].tolist()
        tokens = tokens_of(given, late=True)
        assert tokens is not None
        assert tokens.block[0].nonzero().flatten().tolist() == list(range(start, start + count))
        assert tokens.visual[0].nonzero().flatten().tolist() == list(range(start, start + count - 1))
    odd = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    odd[..., 4, 1] = False
    assert tokens_of(odd, late=True) is None
    assert tokens_of(torch.ones(2, 1, 6, 6), late=True) is None


def test_rows_that_are_not_causal_are_left_to_the_original(goldens: Goldens, original: Original) -> None:
    asked = question(goldens, "d0") | {"max_new_tokens": 3, "top_k": 1}
    asked["attention_mask"][..., 9, 2] = torch.finfo(torch.float32).min
    wanted = original.mmu_generate(**asked)
    flashu.apply_flashu_patch(original, "exact")
    assert torch.stack(original.mmu_generate(**asked)).equal(torch.stack(wanted))
