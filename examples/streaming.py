"""Watch a picture form and an answer appear. Usage: python examples/streaming.py [steps]"""

import sys

import flashu

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 8

engine = flashu.load("scenes")


def watch(step, plan, latents):
    if step.index % 4 == 3:
        engine.decode(latents)[0].save(f"step-{step.index + 1}.png")
        print(f"forward {step.index + 1} of {step.total}")


image = engine.generate("a green triangle left of a red circle", steps=steps, on_step=watch).images[0]
for piece in engine.stream(image, "is the triangle left of the circle?"):
    print(piece, end="", flush=True)
print()
