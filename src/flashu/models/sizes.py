"""The numbers of a config file: of the kind that their field says, and no more than a model has. Looked at before
anything is built of them."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from flashu.errors import CheckpointError, FlashUError
from flashu.plan.limits import check_number

MOST = {"layers": 1024, "blocks": 1024, "heads": 4096, "size": 2**20, "vocab_size": 2**24, "side": 4096}
"""The most of a number by what its name is or ends in; more than any released model has."""
SIDES = ("image_latent_height", "image_latent_width", "max_latent_size", "vit_max_num_patch_per_side", "patch_size")
OTHERS = 2**24
LARGEST = 1e12
"""The most of a number that is not whole."""
WRONG = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What reading, or building, from a file of the wrong content raises."""


class Checked:
    """A dataclass whose values are looked at when it is made; see `check_values`. ``least``: of its whole numbers."""

    least = 1

    def __post_init__(self) -> None:
        check_values(self, self.least)


def check_values(made: Any, least: int = 0) -> None:
    """`FlashUError` unless each value of a dataclass is of its field's type: whole numbers from ``least`` to the most
    that a field of its name can have, other numbers finite and above 0."""
    cls: Any = type(made)
    for name, kind in _hints(cls).items():
        if (problem := _problem(name, getattr(made, name), kind, least)) is not None:
            raise FlashUError(f"{name} {problem}")


def build(cls: type, where: str, data: Any) -> Any:
    """A config class made of a part of a config file, whose name is ``where``. ``ValueError`` for unknown keys,
    missing ones and values that it cannot have."""
    if not isinstance(data, Mapping):
        raise FlashUError(f"{where}: must be an object, not {data!r:.80}")
    if unknown := sorted(set(data) - {f.name for f in fields(cls)}):
        raise FlashUError(f"{where}: unknown keys {unknown}")
    try:
        return cls(**data)
    except (FlashUError, TypeError) as e:
        raise FlashUError(f"{where}: {e}") from e


@contextmanager
def described(
    where: object, problem: str = "config.json does not describe a model that can be built"
) -> Iterator[None]:
    """Whatever goes wrong with what ``where`` says becomes one `CheckpointError`."""
    try:
        yield
    except CheckpointError as e:
        raise CheckpointError(f"{where}: {e}") from e
    except WRONG as e:
        reason = f"{e} is missing" if isinstance(e, KeyError) else str(e)
        raise CheckpointError(f"{where}: {problem} ({reason})") from e


def check_ids(ids: Any, vocabulary: int) -> None:
    """`FlashUError` if a dataclass of token ids has one beyond the vocabulary."""
    if beyond := {name: value for name, value in vars(ids).items() if not 0 <= value < vocabulary}:
        raise FlashUError(f"ids {beyond} lie beyond the {vocabulary} tokens of the vocabulary")


def check_limits(data: Mapping[str, Any]) -> None:
    """`FlashUError` unless the most tokens of a prompt and of a question, where a config file names them, are numbers
    that a request can have."""
    for name, kind in (("max_text", "prompt_tokens"), ("max_question", "question_tokens")):
        if name in data:
            if data[name] is None:
                raise FlashUError(f"{name} must be a number")
            check_number(kind, data[name])


def most(name: str) -> int:
    """The most that a whole number of this name can be."""
    if name in SIDES:
        return MOST["side"]
    return next((number for end, number in reversed(MOST.items()) if name == end or name.endswith(f"_{end}")), OTHERS)


@cache
def _hints(cls: Any) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}


def _problem(name: str, value: Any, kind: Any, least: int) -> str | None:
    """What is wrong with a value, as the end of a sentence that begins with its name."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        kinds = get_args(kind)
        if value is None and type(None) in kinds:
            return None
        problems = [_problem(name, value, one, least) for one in kinds if one is not type(None)]
        return None if None in problems else problems[0]
    if origin is Literal:
        return None if value in get_args(kind) else f"must be one of {get_args(kind)}, not {value!r:.80}"
    if origin is tuple:
        if not isinstance(value, (tuple, list)) or len(value) > OTHERS:
            return f"must be a list, not {value!r:.80}"
        inner = get_args(kind)[0]
        return next((found for one in value if (found := _problem(name, one, inner, 0))), None)
    if kind is int:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            return f"must be a whole number of at least {least}, not {value!r:.80}"
        return f"is {value}, beyond {most(name)}: no model is that large" if value > most(name) else None
    if kind is float:
        fine = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= LARGEST
        return None if fine else f"must be a number above 0 and up to {LARGEST:g}, not {value!r:.80}"
    if kind in (bool, str) and not isinstance(value, kind):
        return f"must be {'true or false' if kind is bool else 'text'}, not {value!r:.80}"
    return None
