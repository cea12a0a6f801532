"""The bytes that a forward must read at least: every weight it multiplies by once, and the cache."""

from __future__ import annotations

from flashu.bench.steps import ORIGINAL, ORIGINAL_TOKEN, PROMPT, REUSE, REUSE_AND_PROBE, StepKind
from flashu.plan import ModelSpec, Task, Work
from flashu.plan.cost import alignment, keep_count


def weights(work: Work) -> int:
    """Numbers that a part multiplies by: each one costs a token one multiply-add."""
    return work.per_token + work.once


class Reads:
    """``itemsize``: bytes of a number; ``projection``: of a weight of the decoder and the head, which may be quantized.
    ``cached``: tokens before those of a "token" forward, over all rows of a batch. Norms, biases and tables count for
    nothing, and of several experts one."""

    def __init__(self, spec: ModelSpec, task: Task, itemsize: float, projection: float, cached: int) -> None:
        self.spec, self.projection = spec, projection
        drawing = task == "generation"
        low, high = (spec.codes if drawing else None) or (0, spec.vocabulary)
        logits, output = itemsize * spec.hidden * (high - low), projection * weights(spec.output)
        image, head = itemsize * weights(spec.image), projection * weights(spec.head)
        result = logits if spec.drawing != "flow" else head + output
        cache = itemsize * cached * spec.layers * 2 * spec.kv_heads * spec.head_dim
        self.beside = {
            "block": image + result,
            REUSE_AND_PROBE: image + output,
            PROMPT: head,
            "prefill": logits + (0 if drawing else image),
            "token": logits + cache,
            ORIGINAL_TOKEN: itemsize * weights(spec.logits) + cache,
            ORIGINAL: itemsize * weights(spec.logits) + (image + head + output if drawing else 0),
        }
        """By step, besides what the decoder reads."""
        self.output = output

    def of(self, kind: StepKind) -> float:
        """Bytes one forward of a kind reads; 0 for what is no forward."""
        if kind.step == REUSE:
            return self.output
        if kind.step not in self.beside:
            return 0
        spec = self.spec
        neurons = keep_count(spec.neurons, kind.pruned, alignment(spec.neurons)) if kind.pruned else spec.neurons
        each = self.projection * (weights(spec.attention) + weights(spec.ffn(neurons)))
        return (spec.layers - kind.skipped) * each + self.beside[kind.step]
