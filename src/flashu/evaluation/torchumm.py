"""FlashU as a backbone of TorchUMM, under the name "flashu": generation, understanding and editing.

    python -m flashu.evaluation.torchumm infer --config flashu_generation.yaml

registers it and hands over to TorchUMM's own command line. Scripts that TorchUMM starts as processes of their own need
`register` called in them.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from PIL import Image

from flashu.errors import FlashUError
from flashu.inference.calibrate.calibration import Calibration
from flashu.inference.engine import Engine
from flashu.models.registry import open_model
from flashu.models.video import Video
from flashu.models.weights import checkpoint_hash

NAME = "flashu"
DEFAULTS = ("generation_cfg", "understanding_cfg", "editing_cfg")
OPENED = ("dtype", "device", "offload", "quantize", "pack", "parts", "autoencoder")
ENGINE = ("compile", "graphs", "in_place")
SAMPLING = ("temperature", "top_k", "top_p", "seed")


class FlashUBackbone:
    """See `load` for its ``backbone_cfg``. A request's ``params`` are settings of `Engine.generate`, `Engine.edit` or
    `Engine.answer`; unknown ones are refused.

    Images are drawn with the ``seed`` of the params, else of the configuration; where the same request comes again, as
    for the samples of one prompt, it is counted up.
    """

    name = NAME

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.seed = 0
        self.defaults: dict[str, dict[str, Any]] = {name: {} for name in DEFAULTS}
        self._asked: Counter[Any] = Counter()

    def load(self, cfg: Mapping[str, Any]) -> None:
        """``model_path``: a name, folder or hub id; ``preset`` ("exact") and ``calibration``: files, as for the
        commands; options of ``from_pretrained`` (torch_dtype or dtype, device, offload, quantize, pack ...) and of
        `Engine` (compile, graphs, in_place); ``seed``; ``generation_cfg``, ``understanding_cfg``, ``editing_cfg``:
        params that every request begins with."""
        given = dict(cfg)
        model_path, preset = given.pop("model_path", "scenes"), given.pop("preset", "exact")
        calibration, self.seed = given.pop("calibration", None), int(given.pop("seed", 0))
        self.defaults = {name: dict(given.pop(name, None) or {}) for name in DEFAULTS}
        if "torch_dtype" in given:
            given["dtype"] = given.pop("torch_dtype")
        if unknown := sorted(given.keys() - {*OPENED, *ENGINE}):
            known = ", ".join(("model_path", "preset", "calibration", "seed", *OPENED, *ENGINE, *DEFAULTS))
            raise FlashUError(f"unknown backbone_cfg {', '.join(unknown)}: flashu has {known}")
        opened = {name: value for name, value in given.items() if name in OPENED}
        model = open_model(model_path, recipe=preset, in_place=given.get("in_place", False), **opened)
        learnt = model.calibration
        if calibration is not None:
            learnt = Calibration.load(calibration, checkpoint_hash(model))
        settings = {name: given[name] for name in ENGINE if name in given}
        self.engine = Engine(model, model.processor, preset, learnt, **settings)
        self._asked.clear()

    def generation(
        self, prompt: str, output_path: str | None = None, generation_cfg: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """One image of a prompt, written to ``output_path`` if given: {"image": picture, "seed": number}."""
        engine, settings = self._opened(), self.defaults["generation_cfg"] | dict(generation_cfg or {})
        _check("generation", settings, Engine.generate)
        return self._drawn(lambda seed: engine.generate(prompt, seed=seed, **settings), prompt, settings, output_path)

    def editing(
        self,
        prompt: str | None,
        images: Sequence[Any],
        output_path: str | None = None,
        editing_cfg: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The first of ``images`` (a path or a picture) changed as the prompt says; returns what `generation` does.
        TorchUMM may name both in the params instead: ``instruction``, ``image_path``."""
        engine, settings = self._opened(), self.defaults["editing_cfg"] | dict(editing_cfg or {})
        instruction, path = settings.pop("instruction", None), settings.pop("image_path", None)
        text, source = prompt or instruction, images[0] if images else path
        if not text or source is None:
            raise FlashUError("an edit needs an instruction and an image: give prompt and images")
        _check("editing", settings, Engine.edit)
        key = (text, str(source))
        return self._drawn(lambda seed: engine.edit(source, text, seed=seed, **settings), key, settings, output_path)

    def understanding(
        self,
        prompt: str | None = None,
        images: Sequence[Any] | None = None,
        videos: Sequence[Any] | None = None,
        understanding_cfg: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The answer to a question about images and videos (paths or pictures), or to a message: {"text": words}."""
        engine, settings = self._opened(), self.defaults["understanding_cfg"] | dict(understanding_cfg or {})
        if not prompt:
            raise FlashUError("nothing to answer: give a prompt")
        _check("understanding", settings, Engine.answer, SAMPLING)
        shown = [*(images or ()), *(v if isinstance(v, Video) else Video.open(v) for v in videos or ())]
        answer = engine.answer([shown], [prompt], **settings) if shown else engine.chat([prompt], **settings)
        return {"text": answer[0].text}

    # TorchUMM's protocol names these three; its pipeline prefers the ones above.
    def generate(self, batch: Mapping[str, Any], gen_cfg: Mapping[str, Any]) -> dict[str, Any]:
        return self.generation(batch["prompt"], batch.get("output_path"), gen_cfg)

    def edit(self, batch: Mapping[str, Any], edit_cfg: Mapping[str, Any]) -> dict[str, Any]:
        return self.editing(batch.get("prompt"), batch.get("images", ()), batch.get("output_path"), edit_cfg)

    def encode(self, batch: Mapping[str, Any]) -> Any:
        raise FlashUError("flashu gives no encodings: ask for understanding")

    def _opened(self) -> Engine:
        if self.engine is None:
            self.load({})
        assert self.engine is not None
        return self.engine

    def _drawn(
        self, draw: Callable[[int], Any], key: Any, settings: dict[str, Any], output_path: str | None
    ) -> dict[str, Any]:
        base = int(settings.pop("seed", self.seed))
        seed = base + self._asked[key, base]
        image: Image.Image = draw(seed).images[0]
        self._asked[key, base] += 1
        if output_path is not None:
            Path(output_path).parent.mkdir(parents=True, exist_ok=True)
            image.save(output_path)
        return {"image": image, "seed": seed}


def register() -> None:
    """Make "flashu" a backbone of TorchUMM in this process."""
    try:
        from umm.core import registry
    except ImportError as error:
        raise FlashUError("TorchUMM is not here: install it, or put its src folder on PYTHONPATH") from error
    registry.register("backbone", NAME, FlashUBackbone)


def main(arguments: Sequence[str] | None = None) -> int:
    """TorchUMM's command line, with the backbone registered."""
    register()
    from umm.cli.main import main as umm

    return int(umm(list(sys.argv[1:] if arguments is None else arguments)))


def _check(task: str, settings: Mapping[str, Any], method: Callable[..., Any], more: Sequence[str] = ()) -> None:
    """`FlashUError` for params that a method of the engine does not have."""
    kinds = signature(method).parameters
    known = {name for name, p in kinds.items() if p.kind is p.KEYWORD_ONLY} | set(more)
    if unknown := sorted(settings.keys() - known):
        raise FlashUError(f"unknown params for {task}: {', '.join(unknown)}; there are {', '.join(sorted(known))}")


if __name__ == "__main__":
    sys.exit(main())
