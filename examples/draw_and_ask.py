"""Draw two pictures, save them, and ask about one. Usage: python examples/draw_and_ask.py [steps]"""

import sys

import flashu

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 8

engine = flashu.load("scenes", "paper")  # or an official checkpoint's folder or hub id
drawn = engine.generate(["a red circle above a blue square", "three green triangles"], seed=1, steps=steps)
for prompt, image in zip(drawn.prompts, drawn.images, strict=True):
    name = prompt.replace(" ", "-") + ".png"
    image.save(name)
    print(f"{name}: {prompt}")

questions = ["how many circles are there?", "what shape is the blue object?"]
for question, answer in zip(questions, engine.answer(drawn.images[0], questions), strict=True):
    print(question, "->", answer.text)
