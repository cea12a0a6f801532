"""`python -m flashu.bench.session`: what each of ten turns of a conversation computes."""

from __future__ import annotations

import argparse
import time

import torch

from flashu.inference.engine import Engine
from flashu.inference.run import StepTrace
from flashu.models.registry import open_model

TURNS = (
    ("draw", "a red circle"), ("ask", "what colour is the circle?"), ("edit", "make the circle blue"),
    ("ask", "what colour is the circle?"), ("edit", "make the circle green"), ("ask", "how many shapes are there?"),
    ("edit", "make the circle red"), ("ask", "what colour is the circle?"), ("edit", "make the circle yellow"),
    ("ask", "how many shapes are there?"),
)  # fmt: skip


def measured(model: str, steps: int | None) -> list[tuple[str, int, int, int, float]]:
    """Of each turn: what it is, its forwards, rows x tokens that went through the first layer, the tokens that stood
    before it (which a fresh request computes again), seconds."""
    opened = open_model(model)
    engine = Engine(opened, opened.processor)
    walked: list[int] = []
    first = next(iter(engine.model.layers))
    hook = first.register_forward_pre_hook(lambda _, given: walked.append(given[0].shape[0] * given[0].shape[1]))
    rows = []
    with engine.session() as session:
        for kind, text in TURNS:
            walked.clear()
            before, begun = session.tokens, time.perf_counter()
            trace: list[StepTrace]
            if kind == "ask":
                trace = session.ask(text, max_new_tokens=16).trace
            else:
                trace = getattr(session, kind)(text, seed=1, steps=steps).trace
            rows.append((kind, len(trace), sum(walked), before, time.perf_counter() - begun))
    hook.remove()
    return rows


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", required=True)
    options.add_argument("--steps", type=int, default=None)
    options.add_argument("--threads", type=int, default=1)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    print("| turn | forwards | tokens computed | tokens before it | seconds |\n|---|---|---|---|---|")
    for kind, forwards, walked, before, seconds in measured(chosen.model, chosen.steps):
        print(f"| {kind} | {forwards} | {walked} | {before} | {seconds:.2f} |")


if __name__ == "__main__":
    main()
