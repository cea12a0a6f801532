"""Compose a recipe, look at what it will compute, keep it as a file. Usage: python examples/recipe_file.py [steps]"""

import sys

import flashu
from flashu.plan.methods import FewerSteps, FFNPrune, HeadCache

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 8

mine = flashu.Recipe(
    (
        FFNPrune("generation", ratio=0.10, tau=0.3),
        FFNPrune("understanding", ratio=0.10, tau=0.3),
        HeadCache(interval=2, tau=0.4),
        FewerSteps(steps=0.8),
    ),
    name="mine",
)
mine.save("mine.json")

engine = flashu.load("scenes", "mine.json")
plan = engine.explain("generation", steps=steps)  # before anything runs
print(f"{plan.totals.forwards} forwards, of which {plan.totals.decoder_passes} compute the decoder")
drawn = engine.generate("a blue circle", steps=steps)
print("reused:", [forward.step.index for forward in drawn.trace if forward.plan.features == "reuse"])
print("on the command line: flashu generate 'a blue circle' --preset mine.json")
