"""A family that draws one token after another (codes of a 4 x 4 picture), with two experts per layer.

Text tokens use the expert "text", drawn codes "image". Layers have LayerNorm, attention and an fc1/fc2 FFN per expert.
A row is [BOS, words, BOI], then codes, an end-of-line after each row of four. A question shows codes as one
bidirectional block. An edit shows the codes of the picture first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from flashu.errors import PromptError, RecipeError
from flashu.inference.actions import Action, AnswerRequest, Append, Decode, Draw, DrawRequest
from flashu.inference.samplers.autoregressive import AutoregressiveSampler
from flashu.inference.samplers.noise import Noise
from flashu.models.defaults import GenerationDefaults
from flashu.models.ffn import FFN, FFNWeights, PlainFFN
from flashu.models.layers import AttentionContext, KeyValue, RotaryEmbedding, appended, attend, rotate, split_heads
from flashu.models.pictures import pixels
from flashu.plan import MAIN, Guidance, ModelSpec, Work
from flashu.plan.explain import Sizes
from flashu.plan.recipe import Recipe
from flashu.runtime.layout import Segment, TokenLayout

D, HEADS, NEURONS, LAYERS, SIDE, LEVELS = 32, 4, 48, 6, 4, 8
WORDS, BOS, EOS, BOI, EOL, FIRST = 40, 40, 41, 42, 43, 44
CODES = (FIRST, FIRST + LEVELS)


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.q, self.k, self.v, self.out = (nn.Linear(D, D) for _ in range(4))
        self.ffn = PlainFFN(D, NEURONS)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleDict({"text": Expert(), "image": Expert()})

    def each(self, x: Tensor, context: AttentionContext, part: Callable[[Any, Tensor, Any], Tensor]) -> Tensor:
        spans = context.spans or (("text", 0, x.shape[1]),)
        return torch.cat([part(self.experts[e], x[:, a:b], (e, a, b)) for e, a, b in spans], dim=1)

    def keys_values(self, x: Tensor, context: AttentionContext) -> KeyValue:
        k, v = (self.each(x, context, lambda e, y, _, n=name: getattr(e, n)(e.norm1(y))) for name in "kv")
        k, v = split_heads(k, D // HEADS), split_heads(v, D // HEADS)
        return appended(rotate(k, context.rope), v, context.past)

    def forward(
        self, x: Tensor, context: AttentionContext, ffn: Mapping[str, FFNWeights] | None = None, tap: Any = None
    ) -> tuple[Tensor, KeyValue]:
        k, v = self.keys_values(x, context)
        x = context.asked(x)
        context = context._replace(spans=context.asked_spans)
        q = split_heads(self.each(x, context, lambda e, y, _: e.q(e.norm1(y))), D // HEADS)
        q = rotate(q, context.asked_rope)
        for name, value in (("query", q), ("key", k), ("value", v)) if tap else ():
            tap(name, value)
        a = attend(q, k, v, context.mask)
        x = x + self.each(a, context, lambda e, y, _: e.out(y))

        def feed(expert: Any, y: Tensor, span: Any) -> Tensor:
            watch = None if tap is None else lambda name, value: tap(name, value, span)
            return expert.ffn(expert.norm2(y), (ffn or {}).get(span[0]), watch)

        return x + context.gated(self.each(x, context, feed)), (k, v)

    def normed(self, x: Tensor, spans: Any = ()) -> Tensor:
        return self.each(x, AttentionContext(None, spans=spans), lambda e, y, _: e.norm1(y))  # type: ignore[arg-type]


@dataclass
class Processor:
    """What surrounds the weights: how the model is usually run."""

    defaults: GenerationDefaults = field(
        default_factory=lambda: GenerationDefaults(SIDE * SIDE, 3.0, 1.0, SIDE, SIDE, max_new_tokens=6)
    )

    def cut(self, prompt: str) -> str:
        return prompt


class TokenModel(nn.Module):
    name, quantization, head, calibration = "", None, None, None

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(CODES[1], D)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.final = nn.LayerNorm(D)
        self.lm_head = nn.Linear(D, CODES[1])
        self.rotary = RotaryEmbedding(D // HEADS, 1e4)
        self.processor = Processor()
        self.eval().requires_grad_(False)

    spec = ModelSpec(
        "fake-tokens", LAYERS, D, HEADS, HEADS, D // HEADS, NEURONS, CODES[1], "autoregressive", ffn_matrices=2,
        experts=("text", "image"), text_expert="text", context="cached", codes=CODES, markers=0, image=Work(),
    )  # fmt: skip
    dtype = property(lambda self: self.words.weight.dtype)
    device = property(lambda self: self.words.weight.device)

    def embed(self, contents: Sequence[Tensor]) -> list[Tensor]:
        return [self.words(ids.to(self.device)) for ids in contents]

    def embed_tokens(self, ids: Tensor) -> Tensor:
        return self.words(ids)

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def rope(self, position: Tensor) -> Any:
        return self.rotary(position)

    def norm(self, x: Tensor, spans: Any = ()) -> Tensor:
        return self.final(x)

    def logits(self, hidden: Tensor, codes: tuple[int, int] | None = None) -> Tensor:
        low, high = codes or (0, CODES[1])
        return nn.functional.linear(hidden, self.lm_head.weight[low:high], self.lm_head.bias[low:high])

    def ffns(self) -> dict[tuple[int, str], FFN]:
        return {(i, n): e.ffn for i, layer in enumerate(self.layers) for n, e in layer.experts.items()}

    def projections(self, *, lm_head: bool = False) -> Iterator[nn.Module]:
        yield self.layers

    def layout(self, processor: Processor) -> TokenModelLayout:
        return TokenModelLayout(processor)


class TokenModelLayout:
    draws = sees = edits = True
    thinks = converses = False
    settings: frozenset[str] = frozenset()

    def __init__(self, processor: Processor) -> None:
        self.defaults = processor.defaults

    def draw(self, requests: Sequence[DrawRequest], recipe: Recipe) -> list[list[Action]]:
        if recipe.padded:
            raise RecipeError("this family has no padded rows")
        return [self._drawing(request) for request in requests]

    def _drawing(self, request: DrawRequest) -> list[Action]:
        shown = [code for image in request.images for code in codes_of(image)]
        main, uncond = [BOS, *shown, *ids_of(request.prompt), BOI], [BOS, *shown, BOI]
        guidance = self.defaults.guidance if request.guidance is None else request.guidance
        noise = Noise(request.seed)

        def sampler(forwards: int, solver: str) -> AutoregressiveSampler:
            forced = lambda i: [EOL] * (i % SIDE == SIDE - 1)  # noqa: E731
            return AutoregressiveSampler((SIDE * SIDE,), CODES, codes_segment, noise, LEVELS, forced)

        scales = {} if guidance in (0, 1) else {"uncond": guidance}
        contexts = [Append((MAIN,), (text_segment(main),))]
        contexts += [Append(("uncond",), (text_segment(uncond),))] if scales else []
        return [*contexts, Draw(Guidance(scales), self.defaults.steps, sampler)]

    def answer(self, requests: Sequence[AnswerRequest]) -> list[list[Action]]:
        return [
            [Append((MAIN,), question(r)), Decode(MAIN, frozenset((EOS,)), r.max_new_tokens or 6)] for r in requests
        ]

    def padded_text(self, prompt: str) -> Segment:
        raise RecipeError("this family has no padded rows")

    def pixels(self, drawn: Tensor) -> Tensor:
        return (drawn.view(-1, 1, SIDE, SIDE).float() / (LEVELS - 1) * 2 - 1).expand(-1, 3, -1, -1)

    def text(self, ids: Sequence[int]) -> str:
        return " ".join(f"w{n}" for n in ids if n < WORDS)

    def sizes(self, name: str) -> Sizes:
        return Sizes(name, TokenModel.spec, self.defaults, lambda h, w: SIDE * SIDE, lambda count: count, None)


def ids_of(text: str) -> list[int]:
    if not text.strip():
        raise PromptError("the prompt is empty")
    return [sum(map(ord, word)) % WORDS for word in text.split()]


def codes_of(image: Any) -> list[int]:
    """A picture as codes, row by row: its grey levels."""
    grey = pixels(image, SIDE, SIDE).mean(1).flatten()
    return (((grey + 1) / 2 * (LEVELS - 1)).round().long() + FIRST).tolist()


def text_segment(ids: Sequence[int]) -> Segment:
    layout = TokenLayout.causal([len(ids)], (("text", 0, len(ids)),))
    return Segment(torch.tensor(ids), layout, len(ids), tuple(ids), ids=tuple(ids))


def codes_segment(ids: Tensor) -> Segment:
    return Segment(ids, TokenLayout.causal([len(ids)], (("image", 0, len(ids)),)), len(ids))


def question(request: AnswerRequest) -> tuple[Segment, ...]:
    shown = [code for image in request.images for code in codes_of(image)]
    before, after = text_segment([BOS, *shown]), text_segment([*ids_of(request.text), BOI])
    if shown:
        block = before.layout.block(1, 1 + len(shown))
        before = Segment(before.content, block, before.advance, before.key)
    return before, after
