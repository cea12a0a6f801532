"""`python -m flashu.bench.drafts`: what a draft saves.

`answers`: an embedded model's answers with and without, timed in turns. `composed`: at the size of a real model, put
together from measured parts. No weights are needed for it: one decoder layer, the head and an EAGLE-3 draft of the
model's sizes, with random weights, are timed in turns; how many tokens are accepted is given, as `flashu train draft`
counts it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any

import torch
from torch import nn

from flashu.errors import FlashUError
from flashu.evaluation.timing import clock_of, time_in_turns
from flashu.inference.engine import Engine
from flashu.inference.results import Answer
from flashu.inference.speculate import speculation_of
from flashu.models.draft import Eagle3, Eagle3Config
from flashu.models.layers import Attention, AttentionContext, DecoderLayer, RotaryEmbedding, Slot
from flashu.models.registry import family_of, open_model, resolve
from flashu.plan import ModelSpec
from flashu.scenes.world import world_of
from flashu.training.draft.answers import about_scenes
from flashu.training.draft.measure import acceptance


@dataclass(frozen=True)
class Composed:
    """Seconds (medians) of parts, and what follows of them. ``tokens``: per forward that verifies."""

    model: str
    drafted: int
    tokens: float
    past: int
    dtype: str
    threads: int
    parts: dict[str, float]
    plain: float
    """A token without a draft."""
    speculative: float
    """A token with one."""

    @property
    def speedup(self) -> float:
        return self.plain / self.speculative


def compose(
    spec: ModelSpec,
    name: str,
    rates: list[float],
    *,
    past: int = 1024,
    vocabulary: int = 32_000,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    repeats: int = 15,
) -> Composed:
    """For chains of as many tokens as there are ``rates``: the share accepted at each position, behind accepted ones
    alone. ``past``: tokens in the cache; ``vocabulary``: tokens that can be drafted."""
    count, tokens, chain = len(rates), 1.0, 1.0
    for rate in rates:
        chain *= rate
        tokens += chain
    with torch.device(device):
        rotary = RotaryEmbedding(spec.head_dim, 1e6)
        attention = Attention(spec.hidden, spec.heads, spec.kv_heads, spec.head_dim, rotary, qkv_bias=False)
        layer = DecoderLayer(attention, spec.hidden, spec.neurons, 1e-6).to(dtype).eval()
        head = nn.Linear(spec.hidden, spec.vocabulary, bias=False).to(dtype)
        sizes = (spec.hidden, spec.heads, spec.kv_heads, spec.head_dim, spec.vocabulary)
        config = Eagle3Config(*sizes, min(vocabulary, spec.vocabulary), neurons=spec.neurons, layer_ids=(2, 3, 4))
        draft = Eagle3(config).to(dtype).eval()

        def context(size: int) -> AttentionContext:
            shape = (1, spec.kv_heads, past + 64, spec.head_dim)
            k, v = torch.zeros(2, *shape, dtype=dtype).unbind()
            at = past + torch.arange(size)[None]
            hidden = torch.arange(past + 64) > at[..., None]
            mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, -torch.inf)[:, None]
            return AttentionContext(rotary(at), mask, Slot(k, v, at))

        def x(size: int) -> torch.Tensor:
            return torch.randn(1, size, spec.hidden, dtype=dtype)

        def drafted(size: int, features: bool) -> Callable[[], Any]:
            collected, given, where = [x(size)] * 3, x(size), context(size)

            def call() -> torch.Tensor:
                read = draft.features(collected) if features else given
                return draft.logits(draft(given, read, [where])[0][:, -1:])

            return call

        wide, caught = count + 1, ceil(tokens)
        one, few = x(1), x(wide)
        near, far = context(1), context(wide)
        calls: dict[str, Callable[[], Any]] = {
            "layer, 1 token": lambda: layer(one, near),
            f"layer, {wide} tokens": lambda: layer(few, far),
            "head, 1 token": lambda: head(one),
            f"head, {wide} tokens": lambda: head(few),
            "draft, 1 token": drafted(1, False),
            f"draft, {caught} tokens of the last forward": drafted(caught, True),
        }
    with torch.inference_mode():
        timed = {name: (lambda number, call=call: call()) for name, call in calls.items()}
        spreads = time_in_turns(timed, repeats, clock_of(torch.device(device)), warm_up=2, rotate=True)
    parts = {name: spread.median for name, spread in spreads.items()}
    layer_one, layer_wide, head_one, head_wide, draft_one, draft_caught = parts.values()
    plain = spec.layers * layer_one + head_one
    forward = spec.layers * layer_wide + head_wide + draft_caught + (count - 1) * draft_one
    return Composed(name, count, tokens, past, str(dtype), torch.get_num_threads(), parts, plain, forward / tokens)


@dataclass(frozen=True)
class Timed:
    """Seconds (medians over rounds) of all ``answers``, one at a time, and what the draft did in them."""

    model: str
    draft: str
    about: str
    answers: int
    rounds: int
    threads: int
    without: float
    drafted: float
    tokens: float

    @property
    def speedup(self) -> float:
        return self.without / self.drafted


def time_answers(engine: Engine, draft: str, about: str, count: int, rounds: int, most: int = 5) -> Timed:
    """``count`` held-out "questions" or "descriptions", answered one at a time with and without a draft in turns."""
    defaults = engine.layout.defaults
    world = world_of(defaults.height, defaults.width)
    if world is None:
        raise FlashUError("only embedded models of a procedural world are asked here")
    items = about_scenes(world, 8 * count, 1, held_out=True)
    chosen = [one for one in items if one.text.startswith("describe") == (about == "descriptions")][:count]
    requests = [one.request(None) for one in chosen]
    speculation = speculation_of(draft, engine.model)
    assert speculation is not None
    quick = engine.with_recipe("exact", draft=replace(speculation, most=most))

    def respond(own: Engine) -> Callable[[int], list[Answer]]:
        return lambda _: [answer for request in requests for answer in own.respond([request])]

    clock = clock_of(engine.model.device)
    spreads = time_in_turns({"without": respond(engine), "with": respond(quick)}, rounds, clock)
    found = acceptance(respond(quick)(0))
    threads, without, drafted = torch.get_num_threads(), spreads["without"].median, spreads["with"].median
    return Timed(engine.model.name, draft, about, len(requests), rounds, threads, without, drafted, found.tokens)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flashu.bench.drafts", description=__doc__)
    parts = parser.add_subparsers(dest="what", required=True)
    answers = parts.add_parser("answers")
    answers.add_argument("--model", default="scenes", help="an embedded model")
    answers.add_argument("--draft", default="shipped", help="as of `flashu ask`")
    answers.add_argument("--about", default="descriptions", choices=("descriptions", "questions"))
    answers.add_argument("--items", type=int, default=40)
    answers.add_argument("--rounds", type=int, default=5)
    answers.add_argument("--most", type=int, default=5, help="tokens drafted at once")
    composed = parts.add_parser("composed")
    composed.add_argument("--model", required=True, help="a known name, a folder or a hub id")
    composed.add_argument("--rates", required=True, help="accepted by position, e.g. .90,.88,.85")
    composed.add_argument("--past", type=int, default=1024, help="tokens in the cache")
    composed.add_argument("--tokens", type=int, default=32_000, help="tokens that can be drafted")
    composed.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32", "float16"))
    composed.add_argument("--repeats", type=int, default=15)
    for part in (answers, composed):
        part.add_argument("--threads", type=int, help="of the CPU")
        part.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    found: Timed | Composed
    if options.what == "answers":
        model = open_model(options.model, device=options.device)
        engine = Engine(model, model.processor)
        found = time_answers(engine, options.draft, options.about, options.items, options.rounds, options.most)
    else:
        checkpoint = resolve(options.model)
        found = compose(
            family_of(checkpoint).sizes(checkpoint).spec,
            checkpoint.name,
            [float(rate) for rate in options.rates.split(",")],
            past=options.past,
            vocabulary=options.tokens,
            dtype=getattr(torch, options.dtype),
            device=options.device,
            repeats=options.repeats,
        )
    print(json.dumps(asdict(found) | {"speedup": found.speedup}, indent=2))


if __name__ == "__main__":
    main()
