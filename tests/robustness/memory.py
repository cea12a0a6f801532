"""Memory over many requests: `python -m tests.robustness.memory [--requests 1000]`.

Draws, asks and streams by turns with one engine of the embedded model, with other recipes and prompts, and prints
what the process holds. Exit code 1 if it holds more than `MORE` megabytes more at the end than after a tenth.
"""

from __future__ import annotations

import argparse
import gc
import logging
import resource
import sys
from pathlib import Path

import torch

from flashu import Engine
from flashu.models.registry import open_model

MORE = 40
PRESETS = ("exact", "paper", "fast", "quality")
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple")


def held() -> float:
    """Megabytes that the process holds now."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def request(engine: Engine, n: int) -> None:
    used = engine if n % 2 else engine.with_recipe(PRESETS[n // 2 % len(PRESETS)])
    prompt = f"a {COLOURS[n % 5]} {SHAPES[n % 4]}" + " above a blue square" * (n % 3 == 0)
    drawn = used.generate(prompt, seed=n, steps=2 + n % 3, images_per_prompt=1 + n % 2)
    used.answer(drawn.images[0], "how many circles are there?", max_new_tokens=2 + n % 5)
    if n % 10 == 0:
        list(used.stream(drawn.images[0], "what colour is it?", max_new_tokens=4))
        stream = used.stream(drawn.images[0], "what colour is it?", max_new_tokens=8)
        next(stream, None)  # left in the middle
        del stream


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    count = parser.parse_args().requests
    torch.set_num_threads(1)
    logging.getLogger("flashu").setLevel(logging.ERROR)
    model = open_model("scenes", device="cpu")
    engine = Engine(model, model.processor, "exact", model.calibration)
    seen = {}
    for n in range(1, count + 1):
        request(engine, n)
        if n % max(count // 10, 1) == 0:
            seen[n] = held()
            print(f"{n:6d} requests: {seen[n]:8.1f} MB", flush=True)
    first, *_, last = seen.values()
    print(f"{last - first:+.1f} MB from request {next(iter(seen))} to {count}")
    return 1 if last - first > MORE else 0


if __name__ == "__main__":
    sys.exit(main())
