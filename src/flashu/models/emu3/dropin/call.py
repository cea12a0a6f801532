"""A call of ``generate`` as transformers' users write it, understood."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Allowed = Callable[[int, Tensor], Sequence[int]]
"""(row, its ids so far) -> the ids that may come next."""

DEFAULTS = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "do_sample": False}
"""transformers' own, where neither the call nor the checkpoint says."""
READ = frozenset(
    {*DEFAULTS, "max_new_tokens", "max_length", "guidance_scale", "eos_token_id", "pad_token_id", "bos_token_id"}
    | {"return_dict_in_generate", "use_cache", "transformers_version", "_from_model_config"}
)
"""Settings that are followed, or that change nothing here."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "num_beam_groups": (1,),
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "length_penalty": (1.0,),
    "typical_p": (1.0,),
    "min_length": (0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "diversity_penalty": (0.0,),
    "early_stopping": (0,),
    # of assisted decoding, which an assistant model switches on
    "num_assistant_tokens": (20,),
    "num_assistant_tokens_schedule": ("constant",),
    "assistant_confidence_threshold": (0.4,),
    "assistant_lookbehind": (10,),
    "target_lookbehind": (10,),
}
INPUTS = frozenset({"input_ids", "attention_mask", "pixel_values", "image_sizes"})


class Unlike(Exception):
    """A call that only the original can answer, with the reason."""


@dataclass(frozen=True)
class Call:
    """``asked`` [B, L]: the rows as they were given; ``ids``: with their pictures' codes in place; ``rows``: without
    their padding. ``limit``: new tokens at most; ``eos``: what ends a row, ``pad`` what follows its end. ``allowed``:
    what may come next, None = anything. ``guidance``: its scale, None = off; ``negative``: the guidance branch's rows.
    ``sampled``: by ``temperature`` and ``top_k`` (0 = all), else greedy. ``as_dict``: what the caller wants back."""

    asked: Tensor
    ids: Tensor
    rows: list[list[int]]
    limit: int
    eos: frozenset[int]
    pad: int
    allowed: Allowed | None
    guidance: float | None
    negative: list[list[int]]
    sampled: bool
    temperature: float
    top_k: int
    as_dict: bool


def read(module: Any, placeholder: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """What a call asks for. `Unlike` with the reason where it asks for more than is done here."""
    given = _named(args, kwargs)
    settings = _settings(module, given)
    ids = given.get("inputs", given.get("input_ids"))
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        raise Unlike("rows are not given as ids")
    asked = ids
    pad, eos = _value(settings, "pad_token_id"), _value(settings, "eos_token_id")
    ends = frozenset(eos if isinstance(eos, list | tuple) else () if eos is None else (eos,))
    mask = given.get("attention_mask")
    if mask is None:
        inferred = pad is not None and pad not in ends and bool((ids == pad).any())
        mask = ids.ne(pad) if inferred else torch.ones_like(ids)
    if given.get("pixel_values") is not None:
        codes = module.model.get_image_tokens(given["pixel_values"], given["image_sizes"])
        places = ids == placeholder
        if int(places.sum()) != codes.numel():
            raise Unlike("the pictures' codes are not as many as the places for them")
        ids = ids.masked_scatter(places, codes.to(ids))
    guidance, allowed = _value(settings, "guidance_scale"), given.get("prefix_allowed_tokens_fn")
    negative, negative_mask = given.get("negative_prompt_ids"), given.get("negative_prompt_attention_mask")
    for processor in given.get("logits_processor") or ():
        kind = type(processor).__name__
        if kind == "UnbatchedClassifierFreeGuidanceLogitsProcessor" and guidance in (None, 1):
            guidance, context = processor.guidance_scale, processor.unconditional_context
            negative, negative_mask = context["input_ids"], context["attention_mask"]
        elif kind == "PrefixConstrainedLogitsProcessor" and allowed is None and processor._num_beams == 1:
            allowed = processor._prefix_allowed_tokens_fn  # it has no public name
        else:
            raise Unlike(f"it has a {kind}")
    if guidance == 1:
        guidance = None
    if guidance is not None and negative is None:  # transformers' choice: the prompt's last token alone
        negative, negative_mask = ids[:, -1:], None
    if guidance is None or negative is None:
        unconditional: list[list[int]] = []
    else:
        unconditional = _unpadded(negative.expand(len(ids), -1), negative_mask)
    sampled = bool(_value(settings, "do_sample"))
    if sampled and _value(settings, "top_p") != 1:
        raise Unlike("it samples by top_p")
    if (guidance is None) != (allowed is None) and allowed is None:
        raise Unlike("it guides text")
    if allowed is not None and sampled and _value(settings, "temperature") != 1:
        raise Unlike("it draws at a temperature")
    return Call(
        asked,
        ids,
        _unpadded(ids, mask),
        _limit(settings, ids.shape[1]),
        ends,
        pad if pad is not None else next(iter(ends), 0),
        allowed,
        guidance,
        unconditional,
        sampled,
        float(_value(settings, "temperature")),
        int(_value(settings, "top_k") or 0),
        bool(_value(settings, "return_dict_in_generate")),
    )


def _named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name. `Unlike` for those that change what is computed."""
    order = ("inputs", "generation_config", "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn")
    given = dict(zip(order, args, strict=False)) | {name: v for name, v in kwargs.items() if v is not None}
    if len(args) > len(order):
        raise Unlike("it has more positional arguments than are known")
    for name in ("stopping_criteria", "assistant_model", "streamer", "custom_generate", "synced_gpus"):
        if given.pop(name, None):
            raise Unlike(f"it has a {name}")
    return given


def _settings(module: Any, given: dict[str, Any]) -> list[dict[str, Any]]:
    """Where settings are looked for, in turn: the call, its configuration, the checkpoint's."""
    known = {
        "inputs",
        "generation_config",
        "logits_processor",
        "prefix_allowed_tokens_fn",
        "negative_prompt_ids",
        "negative_prompt_attention_mask",
    } | INPUTS
    call = {name: given[name] for name in given.keys() - known}
    configs = [c.to_dict() for c in (given.get("generation_config"), module.generation_config) if c is not None]
    for name in {name for found in (call, *configs) for name in found} - READ:
        value = next((found[name] for found in (call, *configs) if found.get(name) is not None), None)
        if value is not None and value is not False and value not in NEUTRAL.get(name, ()):
            raise Unlike(f"it has {name} = {value!r}")
    return [call, *configs]


def _value(settings: Sequence[dict[str, Any]], name: str) -> Any:
    return next((found[name] for found in settings if found.get(name) is not None), DEFAULTS.get(name))


def _limit(settings: Sequence[dict[str, Any]], length: int) -> int:
    for found in settings:
        if found.get("max_new_tokens") is not None:
            return int(found["max_new_tokens"])
        if found.get("max_length") is not None:
            return max(int(found["max_length"]) - length, 0)
    raise Unlike("it does not say how many tokens at most (max_new_tokens)")


def _unpadded(ids: Tensor, mask: Tensor | None) -> list[list[int]]:
    """Rows without their padding on the left."""
    if mask is None:
        return ids.tolist()
    mask = mask.bool().expand(len(ids), -1)
    if not bool((mask[:, 1:] >= mask[:, :-1]).all() and mask[:, -1].all()):
        raise Unlike("rows are padded elsewhere than on the left")
    return [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)]
