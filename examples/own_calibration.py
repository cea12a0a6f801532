"""Gather FFN statistics on your own prompts and questions, and keep them. Usage: python examples/own_calibration.py"""

import sys

import flashu

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 8

engine = flashu.load("scenes", "paper")
prompts = ["a red circle", "two blue squares"]
engine.calibrate("generation", prompts=prompts)

images = engine.generate(prompts, steps=steps).images
pairs = [(image, "how many objects are there?") for image in images]
calibration = engine.calibrate("understanding", pairs=pairs)
calibration.save("calibration.safetensors")

# One file serves every ratio, and only the model it was gathered on.
model = engine.model
again = flashu.Calibration.load("calibration.safetensors", calibration.model_hash)
harder = flashu.Engine(model, engine.processor, flashu.FlashUConfig(r_p=0.4), again)
print(harder.generate("a red circle", steps=steps).images[0].size, "gathered from", again.made_from)
