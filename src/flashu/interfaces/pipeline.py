"""A diffusers-compatible pipeline: an engine called with diffusers' argument names. diffusers is not needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flashu.errors import FlashUError
from flashu.inference.calibrate.calibration import CALIBRATION
from flashu.inference.engine import Engine
from flashu.models.hub import Pushed, checkpoint_folder, upload
from flashu.models.offload import offload
from flashu.models.place import find_device
from flashu.models.registry import family, open_model, resolve
from flashu.plan import Plan, Step
from flashu.plan.presets import FlashUConfig
from flashu.plan.recipe import Recipe
from flashu.runtime.memory import enough_memory
from flashu.runtime.sampling import drawn_seed

RECIPE = "recipe.json"
"""The file of a saved pipeline's recipe, beside the weights."""
OutputType = Literal["pil", "np", "pt", "latent"]
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
AT_ONCE = 8  # images the autoencoder decodes at a time

OnStepEnd = Callable[["Pipeline", int, "Tensor | None", dict[str, Any]], "dict[str, Any] | None"]
"""Called as ``callback(pipe, step_index, timestep, callback_kwargs)`` after each forward; see `Pipeline.__call__`."""


@dataclass(frozen=True, eq=False)
class PipelineOutput:
    """``images`` in the output type asked for; ``seeds``, one per image, draw the same with `Engine.generate`."""

    images: list[Image.Image] | np.ndarray | Tensor
    seeds: list[int] = field(default_factory=list)

    def to_tuple(self) -> tuple[Any, ...]:
        return (self.images, self.seeds)

    def __getitem__(self, key: int | str | slice) -> Any:
        """By name or place, as diffusers' outputs: ``out["images"]`` and ``out[0]`` are the images."""
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in ("images", "seeds"):
            raise KeyError(key)
        return getattr(self, key)


class _Interrupted(Exception):
    """The callback has asked to stop; holds the latents so far."""

    def __init__(self, latents: Tensor) -> None:
        super().__init__()
        self.latents = latents


class Pipeline(Pushed):
    """Draws with an engine: ``pipe(prompt, num_inference_steps=..., guidance_scale=..., generator=...).images``.

    ``engine`` stays usable by itself, for questions and everything else a pipeline has no argument for.
    """

    _callback_tensor_inputs = ("latents",)

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._interrupt = False
        self._bar: dict[str, Any] = {}

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        recipe: Recipe | FlashUConfig | str | Path | None = None,
        torch_dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        revision: str | None = None,
        token: str | None = None,
        **settings: Any,
    ) -> Pipeline:
        """The pipeline of a saved one, of a known model's name, a checkpoint folder or a hub id, there of a branch, tag
        or commit (``revision``) and read with a ``token``, if given.

        ``recipe`` None: the one saved with the pipeline, else "exact". Further settings as of the family's
        ``from_pretrained``.
        """
        source = revised(source, revision, token)
        model = open_model(source, dtype=torch_dtype, device=device, **settings)
        if recipe is None:
            stored = checkpoint_folder(resolve(source).source, (RECIPE,)) / RECIPE
            recipe = stored if stored.is_file() else "exact"
        return cls(Engine(model, model.processor, recipe, model.calibration))

    def save_pretrained(self, folder: str | os.PathLike[str], *, push_to_hub: bool = False, **hub: Any) -> None:
        """Write weights, processor, calibration and recipe; with ``push_to_hub``, to the hub too: ``repo_id`` (default:
        the folder's name) and the rest as of `push_to_hub`."""
        folder, engine = Path(folder), self.engine
        if hub and not push_to_hub:
            raise FlashUError(f"{', '.join(hub)}: these settings are for push_to_hub=True")
        save = family(engine.model.spec.family).save
        if save is None:
            raise FlashUError(f"models of the family {engine.model.spec.family} cannot be saved")
        save(engine.model, folder, engine.processor)
        if engine.calibration is not None:
            engine.calibration.save(folder / CALIBRATION)
        engine.recipe.save(folder / RECIPE)
        if push_to_hub:
            upload(folder, **{"repo_id": folder.name, **hub})

    def to(self, *targets: torch.device | str | int | torch.dtype, **named: Any) -> Pipeline:
        """Move to a device, cast to a dtype, or both; returns itself.

        The weights are those of every engine that shares the model. A cast is as loading with that dtype: the
        autoencoder keeps its own.
        """
        wanted = [*targets, *(value for value in named.values() if value is not None)]
        if unknown := named.keys() - {"device", "dtype", "torch_dtype"}:
            raise FlashUError(f"a pipeline moves to a device or dtype, not to {', '.join(sorted(unknown))}")
        self.engine.release()  # what was derived from the weights is derived anew
        for target in wanted:
            self.engine.model.to(target)
            if not isinstance(target, torch.dtype):
                self.engine.processor.to(target)
        return self

    def enable_model_cpu_offload(self, device: torch.device | str | None = None) -> None:
        """Keep the weights in main memory, for good; each visits ``device`` (None: CUDA) when it computes."""
        place = find_device(device)
        if place is None or place.type == "cpu":
            raise FlashUError("offloading needs a GPU for the weights to visit: there is none, or it was not named")
        self.engine.release()
        offload(self.engine.model, place)
        self.engine.processor.to(place)

    def set_progress_bar_config(self, **settings: Any) -> None:
        """Settings of the tqdm bar over forwards, for instance ``disable=True``; without any, it shows on terminals."""
        self._bar = settings

    def progress_bar(self, total: int) -> Any:
        from tqdm.auto import tqdm

        return tqdm(total=total, **{"disable": None} | self._bar)

    @property
    def device(self) -> torch.device:
        return self.engine.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.engine.model.dtype

    @property
    def interrupt(self) -> bool:
        """Whether a callback has set ``pipe._interrupt``, the way diffusers' callbacks stop a call."""
        return self._interrupt

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> PipelineOutput | tuple[Any]:
        """Draw ``num_images_per_prompt`` images of each prompt; defaults are the checkpoint's.

        ``generator``: every image's noise has its own seed, drawn in order from the generator (None: torch's global
        one), or from its own generator of a list as long as there are images; equal generators give equal images.
        ``output_type``: "pil"; "np" [B, H, W, 3] or "pt" [B, 3, H, W] in [0, 1]; "latent", as `Generation.latents`.
        ``callback_on_step_end(pipe, step_index, timestep, callback_kwargs)``: after each forward, with its flow time
        (0 noise, 1 data; None where images are not drawn by flow) and "latents"; it may return a dict with other
        latents. ``pipe._interrupt = True`` there ends the call with the latents so far; an exception ends it with none.
        """
        if output_type not in OUTPUT_TYPES:
            raise FlashUError(f"output_type is one of {', '.join(OUTPUT_TYPES)}, not {output_type!r}")
        if output_type != "latent" and not self.engine.layout.draws:
            raise FlashUError('this model was loaded without an autoencoder: use output_type="latent"')
        if strange := sorted(set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)):
            raise FlashUError(f"a callback can be given {', '.join(self._callback_tensor_inputs)}, not {strange}")
        count = (1 if isinstance(prompt, str) else len(prompt)) * num_images_per_prompt
        seeds = _seeds(generator, count)
        self._interrupt = False

        bar = self.progress_bar(0)

        def on_step(step: Step, plan: Plan, latents: Tensor) -> Tensor | None:
            bar.total = step.total
            bar.update(step.index + 1 - bar.n)
            if callback_on_step_end is None:
                return None
            time = None if step.time is None else torch.tensor(step.time)
            given: dict[str, Any] = dict.fromkeys(callback_on_step_end_tensor_inputs, latents)
            returned = callback_on_step_end(self, step.index, time, given) or {}
            changed = returned.get("latents", latents)
            if self._interrupt:
                raise _Interrupted(changed)
            return None if changed is latents else changed

        try:
            latents = self.engine.generate(
                prompt,
                seed=seeds,
                images_per_prompt=num_images_per_prompt,
                steps=num_inference_steps,
                guidance=guidance_scale,
                height=height,
                width=width,
                on_step=None if callback_on_step_end is None and bar.disable else on_step,
                decode=False,
            ).latents
        except _Interrupted as stopped:
            latents = stopped.latents
        finally:
            bar.close()
        images = self._finished(latents, output_type)
        return PipelineOutput(images, seeds) if return_dict else (images,)

    @torch.inference_mode()
    def _finished(self, latents: Tensor, output_type: OutputType) -> list[Image.Image] | np.ndarray | Tensor:
        if output_type == "latent":
            return latents
        if output_type == "pil":
            return self.engine.decode(latents, AT_ONCE)
        with enough_memory("decode the images", "draw fewer at once, or use the autoencoder's enable_tiling()"):
            pixels = torch.cat([self.engine.layout.pixels(part).float() for part in latents.split(AT_ONCE)])
        pixels = ((pixels + 1) / 2).clamp(0, 1)
        return pixels if output_type == "pt" else pixels.permute(0, 2, 3, 1).cpu().numpy()


def revised(source: str | os.PathLike[str], revision: str | None, token: str | None) -> str | os.PathLike[str]:
    """The folder of a hub id's revision; ``source`` itself where neither revision nor token is given."""
    if revision is None and token is None:
        return source
    known = resolve(source).source
    if isinstance(known, Path):
        raise FlashUError(f"{source} is a folder here: revision and token are for repositories of the hub")
    return checkpoint_folder(known, None, revision, token)


def _seeds(generator: torch.Generator | Sequence[torch.Generator] | None, count: int) -> list[int]:
    if generator is None or isinstance(generator, torch.Generator):
        return [drawn_seed(generator) for _ in range(count)]
    if len(generator) != count:
        raise FlashUError(f"{len(generator)} generators for {count} images: give one, or one per image")
    return [drawn_seed(own) for own in generator]
