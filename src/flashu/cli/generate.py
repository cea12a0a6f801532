"""`flashu generate`: prompts to image files."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashu.cli import options as opt
from flashu.cli.opened import open_engine
from flashu.cli.output import bar, emit, image_paths, progress, write_image

if TYPE_CHECKING:
    from flashu.inference.run import StepTrace
    from flashu.plan import Step


@opt.offers(opt.EngineOptions)
@opt.offers(opt.DrawingOptions)
def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to draw.", show_default=False)],
    drawing: opt.DrawingOptions,
    options: opt.EngineOptions,
    output: Annotated[Path, typer.Option("-o", "--output", help="A file, or a folder for several.")] = Path("out.png"),
    n: Annotated[int, opt.number("images_per_prompt", "Images per prompt.", "-n")] = 1,
    batch_size: Annotated[int, opt.number("batch_size", "Images drawn at a time.")] = 1,
    image: Annotated[Path | None, typer.Option(help="A picture to draw a part of, for models that draw codes.")] = None,
    mask: Annotated[Path | None, typer.Option(help="Which part of it: white is drawn.")] = None,
    adapter: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="A folder of weights to denoise with.")
    ] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Draw images of prompts. Several go to out-0.png, out-1.png, ...; those finished before an interruption stay."""
    texts = [prompt for prompt in prompts for _ in range(n)]
    paths = image_paths(output, len(texts))
    engine = open_engine(options, adapter=adapter)
    known = {"image": image, "mask": mask}
    settings = drawing.settings | {name: str(path) for name, path in known.items() if path is not None}
    files: list[dict[str, Any]] = []
    trace: list[StepTrace] = []
    began = time.perf_counter()
    with progress() as bars:
        done, forwards = bar(bars, "images", len(texts)), bar(bars, "forwards")

        def on_step(step: Step, *_: Any) -> None:
            forwards(step.index + 1, step.total)

        try:
            for at in range(0, len(texts), batch_size):
                part = texts[at : at + batch_size]
                seeds = list(range(drawing.seed + at, drawing.seed + at + len(part)))
                drawn = engine.generate(part, seed=seeds, on_step=on_step, **settings)
                trace = drawn.trace
                for picture, prompt, seed in zip(drawn.images, part, seeds, strict=True):
                    path = paths[len(files)]
                    about = {"prompt": prompt, "seed": seed, "model": options.model, "recipe": engine.recipe.name}
                    write_image(picture, path, about | {k: v for k, v in settings.items() if v is not None})
                    files.append({"file": str(path), "prompt": prompt, "seed": seed})
                    done(len(files), len(texts))
        except KeyboardInterrupt:
            print(f"{len(files)} of {len(texts)} images are finished and stay", file=sys.stderr)
            raise
    if not as_json:
        for entry in files:
            print(entry["file"])
        return
    report = {
        "model": options.model,
        "recipe": engine.recipe.name,
        "device": str(engine.model.device),
        "dtype": str(engine.model.dtype).removeprefix("torch."),
        "quantization": engine.model.quantization,
        "forwards": len(trace),
        "decoder_passes": sum(forward.rows > 0 for forward in trace),
        "seconds": time.perf_counter() - began,
        "images": files,
    }
    emit(report)
