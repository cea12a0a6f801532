"""Instances of the classes that others train: transformers' Emu3 of the recorded weights, and a stand-in of the
original Show-o class around transformers' Phi."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.models.emu3.golden import recorded as emu3
from tests.models.showo.golden import recorded as showo
from tests.training.unimod import parts
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


def transformers_emu3() -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = emu3.sizes()
    text = dict(sizes["text_config"]) | {"rope_parameters": {"rope_theta": sizes["rope_theta"], "rope_type": "default"}}
    special = sizes["special_ids"]
    words = dict(sizes["vocabulary_map_non_visual"])
    codes = special["visual_last"] - special["visual_first"] + 1
    words |= {f"<|visual token {code:06d}|>": special["visual_first"] + code for code in range(codes)}
    config = transformers.Emu3Config(
        text_config=text, vq_config=sizes["vq_config"], vocabulary_map=words, image_token_id=special["image"]
    )
    config._attn_implementation = "sdpa"
    made = transformers.Emu3ForConditionalGeneration(config)
    missing = made.load_state_dict(emu3.weights(), strict=False)
    assert not missing.unexpected_keys
    assert not [name for name in missing.missing_keys if "inv_freq" not in name]
    return made.eval()


class ShowOStandIn(nn.Module):
    """The original class's names, signature and loss rules."""

    def __init__(self) -> None:
        super().__init__()
        transformers = pytest.importorskip("transformers")
        phi = {k: v for k, v in showo.SIZES["phi_config"].items() if k not in ("rope_theta", "partial_rotary_factor")}
        rope = {name: showo.SIZES["phi_config"][name] for name in ("rope_theta", "partial_rotary_factor")}
        config = transformers.PhiConfig(
            **phi, rope_parameters=rope | {"rope_type": "default"}, pad_token_id=None, bos_token_id=None,
            eos_token_id=None,
        )  # fmt: skip
        config._attn_implementation = "sdpa"
        self.showo = transformers.PhiForCausalLM(config)
        self.output_size = config.vocab_size
        sizes = showo.SIZES
        self.config = SimpleNamespace(llm_vocab_size=sizes["llm_vocab_size"], codebook_size=sizes["codebook_size"])

    def forward(
        self,
        input_ids: Tensor,
        input_embeddings: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        label_smoothing: float = 0.0,
        batch_size_t2i: int = 0,
        batch_size_lm: int = 0,
        batch_size_mmu: int = 0,
        max_seq_length: int = 128,
        **more: Any,
    ) -> Any:
        logits = self.showo(input_ids=input_ids, attention_mask=attention_mask).logits.float()
        if labels is None:
            return logits

        def loss(given: Tensor, wanted: Tensor) -> Tensor:
            return cross_entropy(given.flatten(0, 1), wanted.flatten(), ignore_index=-100)

        a, b, t = batch_size_t2i, batch_size_t2i + batch_size_lm, max_seq_length + 1
        return (
            logits,
            loss(logits[:a, t:], labels[:a, t:]),
            loss(logits[a:b, :-1], labels[a:b, 1:]),
            loss(logits[-batch_size_mmu:, :-1], labels[-batch_size_mmu:, 1:]),
        )


def original_showo() -> ShowOStandIn:
    from safetensors.torch import load_file

    made = ShowOStandIn()
    missing = made.load_state_dict(load_file(showo.HERE / f"{showo.NAME}.safetensors"), strict=False)
    assert not missing.unexpected_keys
    assert not [name for name in missing.missing_keys if "inv_freq" not in name]
    return made.eval()


def showo_call() -> dict[str, Any]:
    g = showo.goldens()
    mask = torch.zeros(g["e.mask_allowed"].shape).masked_fill(g["e.mask_allowed"] == 0, torch.finfo(torch.float32).min)
    return {
        "input_ids": g["e.input_ids"], "attention_mask": mask, "labels": g["e.labels"],
        "max_seq_length": showo.SIZES["max_seq_length_text"],
    } | {f"batch_size_{task}": part.stop - part.start for task, part in parts("showo").items()}  # fmt: skip


def emu3_call() -> dict[str, Any]:
    g = emu3.goldens()
    return {
        "input_ids": g["train.input_ids"], "attention_mask": g["train.attention_mask"], "labels": g["train.labels"]
    }  # fmt: skip
