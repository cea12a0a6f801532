"""How requests are written for BAGEL, and its results read."""

from __future__ import annotations

from flashu.errors import ImageError
from flashu.inference.samplers.solvers import times
from flashu.models.bagel.config import BagelConfig
from flashu.models.bagel.spec import spec_of
from flashu.models.defaults import GenerationDefaults
from flashu.plan.explain import Sizes


def latent_size(config: BagelConfig, height: int, width: int) -> tuple[int, int]:
    """Latent cells (rows, columns) of an image in pixels. `ImageError` unless the image tokens tile it and the table of
    positions has them: beyond it, the original takes the next row's positions."""
    cell, most = config.cell, config.max_latent_size * config.cell
    if height < cell or width < cell or height % cell or width % cell:
        raise ImageError(f"images are multiples of {cell} pixels, at least {cell}; {width}x{height} is not")
    if max(height, width) > most:
        raise ImageError(
            f"an image of {width}x{height} is larger than the {most} pixels that this model has places for"
        )
    return height // config.downsample, width // config.downsample


def sizes_of(name: str, config: BagelConfig, defaults: GenerationDefaults) -> Sizes:
    """What `plan.explain` needs; no weights are looked at."""

    def image_tokens(height: int | None, width: int | None) -> int:
        rows, columns = latent_size(config, height or defaults.height, width or defaults.width)
        return (rows // config.latent_patch_size) * (columns // config.latent_patch_size)

    return Sizes(
        name,
        spec_of(config),
        defaults,
        image_tokens,
        lambda count: count + 2,
        lambda forwards, solver: times(forwards, defaults.shift, solver).tolist(),
    )
