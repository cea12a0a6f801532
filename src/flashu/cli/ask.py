"""`flashu ask`: questions about an image or a video."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from flashu.cli import options as opt
from flashu.cli.opened import open_engine
from flashu.cli.output import emit


@opt.offers(opt.EngineOptions)
def ask(
    image: Annotated[
        Path, typer.Argument(exists=True, show_default=False, help="An image; or a video: a folder of frames, a GIF.")
    ],
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION...", show_default=False, help="What to ask.")],
    options: opt.EngineOptions,
    frames: Annotated[int, opt.number("frames", "Frames shown of a video, evenly spaced.")] = 32,
    max_new_tokens: opt.MaxNewTokens = None,
    temperature: Annotated[float, opt.number("temperature", "0 takes the likeliest token each time.")] = 0.0,
    seed: Annotated[int, opt.number("torch seed", "Seed of the first answer; the others count up from it.")] = 0,
    draft: Annotated[
        str | None,
        typer.Option(help='What drafts tokens: a folder, "shipped", "lookup", or "self:4-7" (layers left out).'),
    ] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Answer questions about an image or video, one line each; written as it is found if the output is a terminal."""
    engine = open_engine(options, draft)
    from flashu.models.video import Video, is_video

    shown = Video.open(image, frames) if is_video(image) else str(image)
    began = time.perf_counter()
    answers = []
    for number, question in enumerate(questions):
        settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed + number}
        if as_json:
            found = engine.answer(shown, question, **settings)
            accepted = sum(trace.accepted for trace in found.trace)
            counts = {"tokens": len(found.tokens), "forwards": len(found.trace), "accepted": accepted}
            answers.append({"question": question, "answer": found.text} | counts)
        elif sys.stdout.isatty():
            for text in engine.stream(shown, question, **settings):
                print(text, end="", flush=True)
            print()
        else:
            print(engine.answer(shown, question, **settings).text, flush=True)
    if as_json:
        about = {"model": options.model, "recipe": engine.recipe.name, "image": str(image)}
        emit(about | {"seconds": time.perf_counter() - began, "answers": answers})
