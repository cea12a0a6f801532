"""The authors' question, text and mixed scripts on a patched instance: the same tokens, over a growing cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import GOLDEN
from tests.models.showo2.dropin.original import Original, dense
from tests.models.showo2.dropin.test_drawing import SEEING
from torch import Tensor

import flashu
from flashu.models.adopt import sampled_token
from flashu.models.showo2.dropin.masks import as_in_training, layout_of, with_images_marked
from flashu.plan.methods import TokenPrune

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


def sees(length: int, start: int, stop: int) -> list[int]:
    """The last token that each token sees, in a causal row with one block."""
    return [stop - 1 if start <= n < stop else n for n in range(length)]


@pytest.mark.parametrize("group", ["d0", "d1"])
def test_questions(group: str, goldens: Goldens, original: Original) -> None:
    wanted = goldens[f"{group}.tokens"]
    asked = question(goldens, group) | {"max_new_tokens": 12, "top_k": 1}
    assert torch.stack(original.mmu_generate(**asked)).equal(wanted)
    flashu.apply_flashu_patch(original, "exact")
    tokens = original.mmu_generate(**asked, eos_token=None)
    assert torch.stack(tokens).equal(wanted)
    assert all(token.shape == () and not token.is_inference() for token in tokens)
    stopped = original.mmu_generate(**asked, eos_token=int(wanted[4]))
    assert torch.stack(stopped).equal(wanted[: wanted.tolist().index(int(wanted[4])) + 1])
    assert original.mmu_generate(**asked | {"max_new_tokens": 0}) == []


@pytest.mark.parametrize("group", ["v0", "v1"])
@pytest.mark.parametrize("block", ["script", "training"])
def test_questions_about_videos(group: str, block: Any, original: Original) -> None:
    """The same tokens; pruning takes its share of all frames, and nothing of the words that the block may reach."""
    rows = load_file(str(GOLDEN / "showo2_tiny_rows.safetensors"))
    asked = question(rows, group) | {"max_new_tokens": 12, "top_k": 1}
    visual = 4 * len(rows[f"{group}.latents"])
    flashu.apply_flashu_patch(original, "exact", understanding_block=block)
    tokens = torch.stack(original.mmu_generate(**asked))
    if block == "script":
        assert tokens.equal(rows[f"{group}.tokens"])
    flashu.remove_flashu_patch(original)
    pruned = flashu.Recipe((TokenPrune(ratio=0.5),), name="pruned")
    handle = flashu.apply_flashu_patch(original, pruned, understanding_block=block)
    original.mmu_generate(**asked | {"max_new_tokens": 1})  # calibrates
    kept: list[Tensor] = []
    handle.model.layers[2].register_forward_hook(lambda _m, args, _o: kept.append(args[0]))
    original.mmu_generate(**asked | {"max_new_tokens": 1})
    assert kept[0].shape[1] == asked["input_embeds"].shape[1] - visual // 2
    late = layout_of(asked["attention_mask"], late=True)
    assert late is not None
    apart = with_images_marked(late, asked["input_embeds"], original.showo.model.embed_tokens.weight)
    first = int(rows[f"{group}.modality_positions"][0, 0, 0])
    assert apart.visual[0].nonzero().flatten().tolist() == list(range(first, first + visual))
    assert as_in_training(apart).sees[0].tolist() == sees(len(apart.sees[0]), first - 1, first + visual)
    foreign = asked["input_embeds"] + 1  # no look-up: the mask has the last word
    assert with_images_marked(late, foreign, original.showo.model.embed_tokens.weight) is late


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
    kept = {int(sampled_token(logits, temperature=1.0, top_k=None, top_p=0.6)) for _ in range(200)}
    assert kept == {0, 1}


def test_text_alone(original: Original) -> None:
    given = {"tokenizer": Words, "max_new_tokens": 6, "top_k": 1, "boi_token": None, "device": "cpu"}
    theirs, ours = [250, 3, 9, 27], [250, 3, 9, 27]
    wanted = original.lm_generate(input_ids=theirs, **given)
    flashu.apply_flashu_patch(original, "exact")
    text = original.lm_generate(input_ids=ours, **given)
    assert wanted.startswith(text)  # the stand-in does not stop
    assert ours[:4] == theirs[:4]
    assert " ".join(map(str, ours[4:])) == text
    boi = int(text.split()[1])
    again = original.lm_generate(input_ids=[250, 3, 9, 27], **given | {"boi_token": boi})
    assert again.split() == text.split()[: text.split().index(str(boi)) + 1]


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
        layout = layout_of(given, late=True)
        assert layout is not None
        assert layout.sees[0].tolist() == sees(given.shape[-1], start, start + count)
        assert layout.visual[0].nonzero().flatten().tolist() == list(range(start, start + count - 1))
    odd = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    odd[..., 4, 1] = False
    assert layout_of(odd, late=True) is None
    assert layout_of(torch.ones(2, 1, 6, 6), late=True) is None


def test_rows_that_are_not_causal_are_left_to_the_original(goldens: Goldens, original: Original) -> None:
    asked = question(goldens, "d0") | {"max_new_tokens": 3, "top_k": 1}
    asked["attention_mask"][..., 9, 2] = torch.finfo(torch.float32).min
    wanted = original.mmu_generate(**asked)
    flashu.apply_flashu_patch(original, "exact")
    assert torch.stack(original.mmu_generate(**asked)).equal(torch.stack(wanted))
