"""The same model with diffusers' and transformers' words. Usage: python examples/pipeline.py [steps]"""

import sys

import torch

import flashu

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 8

pipe = flashu.Pipeline.from_pretrained("scenes", recipe="quality")
image = pipe(
    "a red circle above a blue square",
    num_inference_steps=steps,
    guidance_scale=2.0,
    generator=torch.Generator().manual_seed(0),
).images[0]

processor = flashu.ChatProcessor.from_pretrained("scenes")
model = flashu.ChatModel(pipe.engine)
inputs = processor(images=image, text="how many circles are there?", return_tensors="pt")
ids = model.generate(**inputs, max_new_tokens=8)
print(processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :])[0])
