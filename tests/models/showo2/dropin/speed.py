"""The stand-in of the original class with the weights of scenes, timed:
`python -m tests.models.showo2.dropin.speed [rounds]`."""

from __future__ import annotations

import sys

import torch
from tests.models.showo2.dropin.original import Original

import flashu
from flashu.bench.dropin import time_drop_in


def scenes() -> Original:
    """At the size and with the weights of scenes."""
    model = flashu.ShowO2.from_pretrained("scenes", autoencoder=None)
    module = Original(model.config).eval()
    module.load_state_dict(model.state_dict())
    return module


if __name__ == "__main__":
    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    for task in ("t2i", "mmu"):
        print(task)
        for timing in time_drop_in(scenes(), task, repeats=rounds, padding=64):
            print(" ", timing)
