"""`flashu generate`: prompts to image files."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashu.cli import options as opt
from flashu.cli.files import image_paths, write_image
from flashu.cli.opened import open_engine
from flashu.cli.terminal import emit, progress

if TYPE_CHECKING:
    from flashu.inference.run import Record
    from flashu.plan import Step


def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to draw.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="A file, or a folder for several.")] = Path("out.png"),
    model: opt.Model = "scenes",
    preset: opt.Preset = "exact",
    steps: opt.Steps = None,
    guidance: opt.Guidance = None,
    seed: opt.Seed = 0,
    n: Annotated[int, typer.Option("-n", min=1, help="Images per prompt.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Images drawn at a time.")] = 1,
    height: opt.Height = None,
    width: opt.Width = None,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    calibration: opt.CalibrationFile = None,
    in_place: opt.InPlace = False,
    offload: opt.Offload = False,
    quantize: opt.Quantize = None,
    pack: opt.Pack = False,
    as_json: opt.AsJson = False,
) -> None:
    """Draw images of prompts. Several go to out-0.png, out-1.png, ...; those finished before an interruption stay."""
    texts = [prompt for prompt in prompts for _ in range(n)]
    paths = image_paths(output, len(texts))
    engine = open_engine(
        model, preset, dtype, device, calibration, in_place=in_place, offload=offload, quantize=quantize, pack=pack
    )
    settings = {"steps": steps, "guidance": guidance, "height": height, "width": width}
    files: list[dict[str, Any]] = []
    trace: list[Record] = []
    began = time.perf_counter()
    with progress() as bars:
        images = bars.add_task("images", total=len(texts))
        forwards = bars.add_task("forwards", total=None)

        def on_step(step: Step, *_: Any) -> None:
            bars.update(forwards, completed=step.index + 1, total=step.total)

        try:
            for at in range(0, len(texts), batch_size):
                part = texts[at : at + batch_size]
                seeds = list(range(seed + at, seed + at + len(part)))
                drawn = engine.generate(part, seed=seeds, on_step=on_step, **settings)  # type: ignore[arg-type]
                trace = drawn.trace
                for image, prompt, own in zip(drawn.images, part, seeds, strict=True):
                    path = paths[len(files)]
                    about = {"prompt": prompt, "seed": own, "model": model, "recipe": engine.recipe.name}
                    write_image(image, path, about | {k: v for k, v in settings.items() if v is not None})
                    files.append({"file": str(path), "prompt": prompt, "seed": own})
                    bars.advance(images)
        except KeyboardInterrupt:
            print(f"{len(files)} of {len(texts)} images are finished and stay", file=sys.stderr)
            raise
    seconds = time.perf_counter() - began
    report = {
        "model": model,
        "recipe": engine.recipe.name,
        "device": str(engine.model.device),
        "dtype": str(engine.model.dtype).removeprefix("torch."),
        "quantization": engine.model.quantization,
        "forwards": len(trace),
        "decoder_passes": sum(record.rows > 0 for record in trace),
        "seconds": seconds,
        "images": files,
    }
    if as_json:
        emit(report)
        return
    for entry in files:
        print(entry["file"])
