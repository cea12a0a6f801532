"""FLOPs of the original program's requests."""

from __future__ import annotations

from flashu.bench.flops import original_forward, original_token
from flashu.inference import requests
from flashu.inference.engine import Answer, Engine, Generation
from flashu.plan import cost


def drawing_flops(engine: Engine, made: Generation, prompt: str, steps: int | None) -> int:
    """FLOPs of an image: every forward over both padded rows."""
    config = engine.model.config
    count = made.latents[0, 0].numel() // config.patch_size**2
    record = made.trace[0]
    return len(made.trace) * original_forward(config, record.rows, record.tokens, count)


def answer_flops(engine: Engine, given: Answer, question: str) -> int:
    """FLOPs of an answer: the whole row again for every token."""
    config, defaults = engine.model.config, engine.processor.defaults
    rows, columns = requests.latent_size(engine.model, engine.processor, defaults.height, defaults.width)
    seen = cost.semantic_path(config, rows * columns // config.patch_size**2)
    return seen + sum(original_token(config, 1, record.tokens) for record in given.trace)
