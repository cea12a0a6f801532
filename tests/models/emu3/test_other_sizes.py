"""Another size in every respect, against transformers' class with random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import flashu
from flashu.models.emu3.load import built_vq
from flashu.models.emu3.official import VISION, official_vq, vq_weights
from tests.models.emu3.test_dropin import allowed_in

transformers = pytest.importorskip("transformers")
MARKS = ("<|endoftext|>", "<image>", "<|extra_200|>", "<|extra_201|>", "<|extra_203|>", "<|extra_204|>")
MARKS += ("<|image token|>", "<|image start|>", "<|image end|>")
WORDS, CODES = 50, 40


@pytest.fixture(scope="module")
def original() -> Any:
    words = {name: WORDS + n for n, name in enumerate(MARKS)}
    words |= {f"<|visual token {n:06d}|>": WORDS + len(MARKS) + n for n in range(CODES)}
    text = {
        "vocab_size": len(words) + WORDS + 3,
        "hidden_size": 96,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "pad_token_id": words["<|endoftext|>"],
        "bos_token_id": words["<|extra_203|>"],
        "eos_token_id": words["<|extra_204|>"],
        "rope_parameters": {"rope_theta": 5e4, "rope_type": "default"},
    }
    vision = {
        "codebook_size": CODES,
        "temporal_downsample_factor": 2,
        "base_channels": 32,
        "channel_multiplier": [1, 2],
        "num_res_blocks": 2,
        "attn_resolutions": [1],
        "hidden_size": 64,
        "num_attention_heads": 2,
    }
    torch.manual_seed(0)
    config = transformers.Emu3Config(text_config=text, vq_config=vision, vocabulary_map=words)
    made = transformers.Emu3ForConditionalGeneration(config).eval()
    with torch.no_grad():  # large enough that every part counts
        for parameter in made.model.text_model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
        vq = made.model.vqmodel  # codes are where its pictures are
        seen = vq.encoder(torch.rand(4, 2, 3, 8, 8) * 2 - 1).transpose(1, 2)
        vq.quantize.embedding.weight.copy_(vq.quant_conv(seen).transpose(0, 1).flatten(1).T[:CODES])
    made.generation_config.pad_token_id = text["pad_token_id"]
    return made


def test_image_tokenizer(original: Any) -> None:
    theirs = original.model.vqmodel
    state = {VISION + name: value for name, value in theirs.state_dict().items()}
    ours = built_vq(official_vq(original.config.vq_config.to_dict()), vq_weights(state), "here")
    pixels = torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(1)) * 2 - 1
    codes = torch.stack(theirs.encode(pixels, torch.tensor([[12, 20]] * 2), return_dict=True).image_tokens)
    assert ours.factor == 2
    assert torch.equal(ours.encode(pixels), codes)
    assert len(codes.unique()) > 3
    torch.testing.assert_close(ours.decode(codes), theirs.decode(codes), rtol=0, atol=1e-4)
    video = torch.rand(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1
    torch.testing.assert_close(
        ours.decode_video(ours.encode_video(video)), theirs.decode(ours.encode_video(video)), rtol=0, atol=1e-4
    )


def test_generate(original: Any) -> None:
    words, ids = (
        original.config.vocabulary_map,
        torch.randint(0, WORDS, (2, 7), generator=torch.Generator().manual_seed(3)),
    )
    ids[:, -1] = words["<|image token|>"]
    mask = torch.ones_like(ids)
    ids[1, :2], mask[1, :2] = words["<|endoftext|>"], 0
    call = {
        "input_ids": ids,
        "attention_mask": mask,
        "prefix_allowed_tokens_fn": allowed_in(words, CODES, 3, 4),
        "negative_prompt_ids": ids.flip(1)[:, 1:],
        "guidance_scale": 4.5,
        "max_new_tokens": 60,
        "do_sample": True,
        "top_k": 9,
    }
    torch.manual_seed(4)
    want = original.generate(**call)
    behind = flashu.apply_flashu_patch(original, "exact")
    torch.manual_seed(4)
    assert torch.equal(original.generate(**call), want)
    assert len(behind.trace) == 3 * 4
    flashu.remove_flashu_patch(original)
