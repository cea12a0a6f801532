"""All cases, or a part: `python -m tests.robustness [--most 250] [--groups pictures commands] [--seed 0]`.

Prints a table of what was tried, by class; exit code 1 if there is a defect. Memory is limited to `GIGABYTES` more than
the models take.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

from flashu import Engine
from flashu.models.registry import open_model
from tests.robustness import checkpoints, commands, drafts, pictures, recipes, requests
from tests.robustness.cases import Case, run, table

GIGABYTES = 12
MODELS = ("scenes", "scenes-bagel", "scenes-showo", "scenes-emu3")
GROUPS = ("checkpoints", "pictures", "requests", "recipes", "drafts", "commands")


def every(folder: Path, seed: int) -> dict[str, list[Case]]:
    """All cases by the module that makes them, each module's in an order of its own."""
    engines = {}
    for name in MODELS:
        model = open_model(name, device="cpu")
        engines[name] = Engine(model, model.processor, "exact")
    return {
        "checkpoints": checkpoints.cases(folder / "checkpoints", seed),
        "pictures": pictures.cases(folder, seed),
        "requests": requests.cases(seed, engines),
        "recipes": recipes.cases(folder, seed, engines["scenes"]),
        "drafts": drafts.cases(folder, seed, engines["scenes"]),
        "commands": commands.cases(folder / "commands", seed),
    }


def limit_memory() -> None:
    """No more than `GIGABYTES` beyond what is in use."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + GIGABYTES * 2**30, resource.RLIM_INFINITY))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=None, help="cases of each module at most")
    parser.add_argument("--groups", nargs="*", choices=GROUPS, default=GROUPS)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("flashu").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        made = every(Path(folder), given.seed)
        if Path("/proc/self/statm").exists():
            limit_memory()
        chosen = itertools.chain.from_iterable(made[group][: given.most] for group in given.groups)
        began = time.monotonic()
        counts, defects = run(chosen, lambda line: print("DEFECT", line, file=sys.stderr, flush=True))
    print(table(counts))
    print(f"{counts.total()} cases in {time.monotonic() - began:.0f} s, {len(defects)} defects")
    return 1 if defects else 0


if __name__ == "__main__":
    sys.exit(main())
