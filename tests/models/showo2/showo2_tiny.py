"""A Show-o2 small enough for unit tests, and a byte-level tokenizer with Qwen2.5's special tokens."""

from __future__ import annotations

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from flashu.models.showo2.config import HeadConfig, LLMConfig, ShowO2Config, VisionConfig
from flashu.models.showo2.model import ShowO2

QWEN_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
VOCABULARY = 256 + len(QWEN_TOKENS) + 4


def config(tied: bool = True) -> ShowO2Config:
    return ShowO2Config(
        llm=LLMConfig(VOCABULARY, 32, 48, 3, 4, 2, tied),
        vision=VisionConfig(16, 24, 2, 2, 16),
        head=HeadConfig(24, 32, 2, 3, 1, 8),
        image_latent_dim=4,
        image_latent_height=4,
        image_latent_width=4,
    )


def model(tied: bool = True, seed: int = 0) -> ShowO2:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ShowO2(config(tied)).eval()


def tokenizer() -> Tokenizer:
    """Byte by byte, as Qwen2.5's would be without its merges; Show-o2's four tokens are not in it yet."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    bare.normalizer = normalizers.NFC()
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    bare.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in QWEN_TOKENS])
    return bare
