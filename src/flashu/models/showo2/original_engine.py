"""The original program as an engine: one request at a time, with all the work its code does."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

import torch

from flashu.inference import requests
from flashu.inference.engine import Answer, Engine, Generation
from flashu.inference.loops import original
from flashu.inference.run import Record
from flashu.inference.samplers import flow
from flashu.models.products import plain_products
from flashu.models.showo2.processor import Picture
from flashu.plan import Plan, Step
from flashu.runtime.tokens import visible

NAME = "original"


class Original(Engine):
    """`generate` and `answer` of one item at a time by the original's loops (`loops.original`)."""

    def generate(self, prompts: Any, *, seed: Any = 0, steps: int | None = None, **_: Any) -> Generation:
        """One image of one prompt. Takes as many forwards as `Engine.generate`, so that both draw the same image."""
        model, processor, defaults = self.model, self.processor, self.processor.defaults
        forwards = steps or defaults.steps
        size = requests.latent_size(model, processor, defaults.height, defaults.width)
        count = size[0] * size[1] // model.config.patch_size**2
        rows = [processor.text.prompt(prompts), processor.text.null_prompt()]
        length = processor.text.max_text + count + 5
        ids = torch.tensor([processor.text.padded_row(row, count, length) for row in rows], device=model.device)
        blocks = torch.tensor([[[len(row), count + 1]] for row in rows], device=model.device)
        z = flow.noise((model.config.image_latent_dim, *size), seed)[None].to(model.device)
        latents = original.draw(model, ids, blocks, z, flow.grid(forwards, defaults.shift), defaults.guidance)
        plan = Plan(guidance=defaults.guidance)
        trace = [Record(Step("generation", "denoise", i, forwards), plan, 2, length, 0) for i in range(forwards)]
        return Generation(self.decode(latents), latents, [prompts], [seed], trace)

    @plain_products()
    def answer(  # type: ignore[override]
        self, images: Picture, questions: str, *, max_new_tokens: int | None = None, **_: Any
    ) -> Answer:
        """One greedy answer to one question about one image."""
        model, processor = self.model, self.processor
        parts = [processor.text.question(questions)]
        latents = requests.encoded(model, processor, [processor.pixels(images)])
        x, tokens = requests.question_rows(model, latents, parts, [0])
        mask = visible(tokens, tokens)
        assert mask is not None
        budget = max_new_tokens or processor.defaults.max_new_tokens
        loop = (int(token) for token in original.answer(model, x, mask.to(model.device), budget))
        said = list(takewhile(lambda token: token != processor.text.ids.eos, loop))
        steps = [
            Step("understanding", "decode" if i else "prefill", i, budget) for i in range(min(len(said) + 1, budget))
        ]
        trace = [Record(step, Plan(), 1, x.shape[1] + step.index, 0) for step in steps]
        return Answer(processor.text.decode(said), said, trace)
