"""`flashu ask`: questions about an image or a video."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from flashu.cli import options as opt
from flashu.cli.opened import open_engine
from flashu.cli.terminal import emit


def ask(
    image: Annotated[
        Path, typer.Argument(exists=True, show_default=False, help="An image; or a video: a folder of frames, a GIF.")
    ],
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION...", show_default=False, help="What to ask.")],
    model: opt.Model = "scenes",
    frames: Annotated[int, typer.Option(min=1, help="Frames shown of a video, evenly spaced.")] = 32,
    preset: opt.Preset = "exact",
    max_new_tokens: opt.Tokens = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time.")] = 0.0,
    seed: opt.Seed = 0,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    calibration: opt.CalibrationFile = None,
    in_place: opt.InPlace = False,
    offload: opt.Offload = False,
    quantize: opt.Quantize = None,
    pack: opt.Pack = False,
    as_json: opt.AsJson = False,
) -> None:
    """Answer questions about an image or video, one line each; written as it is found if the output is a terminal."""
    engine = open_engine(
        model, preset, dtype, device, calibration, in_place=in_place, offload=offload, quantize=quantize, pack=pack
    )
    from flashu.models.showo2.video import Video, is_video

    shown = Video.open(image, frames) if is_video(image) else str(image)
    began = time.perf_counter()
    answers = []
    for number, question in enumerate(questions):
        settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed + number}
        if as_json or not sys.stdout.isatty():
            found = engine.answer(shown, question, **settings)
            answers.append({"question": question, "answer": found.text, "tokens": len(found.tokens)})
            if not as_json:
                print(found.text, flush=True)
            continue
        for piece in engine.stream(shown, question, **settings):
            print(piece, end="", flush=True)
        print()
    if as_json:
        about = {"model": model, "recipe": engine.recipe.name, "image": str(image)}
        emit(about | {"seconds": time.perf_counter() - began, "answers": answers})
