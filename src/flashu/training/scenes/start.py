"""A model begun from a smaller world's."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer

from flashu.models.showo2.load import load_model, load_processor
from flashu.models.showo2.model import ShowO2


@torch.no_grad()
def start_from(folder: Path, model: ShowO2, words: Tokenizer) -> None:
    """Copies a trained model into ``model``: words by name, positions resized, the rest where shapes agree."""
    known = load_model(folder, torch.float32)
    their_words = load_processor(folder).text.tokenizer.get_vocab()
    state, theirs = model.state_dict(), known.state_dict()
    for name, value in state.items():
        if theirs[name].shape == value.shape:
            value.copy_(theirs[name])
    ours = words.get_vocab()
    shared = [word for word in ours if word in their_words]
    table, their_table = (m.showo.model.embed_tokens.weight for m in (model, known))
    table[[ours[w] for w in shared]] = their_table[[their_words[w] for w in shared]]
    side = model.config.image_latent_height
    latents = torch.zeros(1, model.config.image_latent_dim, *[side * model.config.patch_size] * 2)
    model.position_embedding.weight.copy_(known._position_table(latents))
