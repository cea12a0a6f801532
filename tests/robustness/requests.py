"""Prompts, questions, numbers and pictures of a request: every argument of every call, with every strange value."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from flashu import Engine
from tests.robustness.cases import Case

NUMBERS: tuple[Any, ...] = (
    -1,
    0,
    1,
    2,
    10**9,
    2**32,
    2**64,
    -(2**70),
    0.5,
    2.5,
    -0.5,
    1e-40,
    1e300,
    math.nan,
    math.inf,
    -math.inf,
    "5",
    "",
    "x",
    b"5",
    True,
    [],
    [1],
    [1, 2],
    [1.9],
    ["7"],
    (None,),
    {},
    {"a": 1},
    object(),
    np.int64(3),
    np.float32(2),
    np.array(5),
    np.array([1, 2]),
    torch.tensor(3),
    torch.tensor([1.5]),
    complex(1, 1),
    range(1),
)
TEXTS: tuple[Any, ...] = (
    None,
    5,
    2.5,
    b"a red circle",
    [],
    [None],
    [5],
    [[]],
    {},
    "",
    " ",
    "\0",
    "\x1b[31mred",
    "a " * 20_000,
    "\ud800",
    "🦊" * 50,
    "\u202ea red circle",
    "a red circle\n" * 10,
    "<|im_start|>",
    "[PAD]",
    "<image>",
    "<image><image>",
    ["a red circle", ""],
    ["a red circle", None],
    ("a red circle",),
    {"a red circle"},
    np.array(["a red circle"]),
    object(),
    "é",
    "é",
)
DRAW = (
    "steps",
    "guidance",
    "seed",
    "height",
    "width",
    "images_per_prompt",
    "batch_size",
    "shift",
    "solver",
    "on_step",
    "history",
)
ASK = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")


def cases(seed: int, engines: dict[str, Engine]) -> list[Case]:
    listed = list(itertools.chain.from_iterable(_of(name, engine) for name, engine in engines.items()))
    random.Random(seed).shuffle(listed)
    return listed


def _of(name: str, engine: Engine) -> Iterator[Case]:
    picture = Image.new("RGB", (64, 64), "red")

    def draw(prompt: Any = "a red circle", **given: Any) -> None:
        made = engine.generate(prompt, **{"steps": 1} | given)
        assert len(made.images) >= 1

    def answer(question: Any = "what is red?", image: Any = picture, **given: Any) -> None:
        engine.answer(image, question, **{"max_new_tokens": 2} | given)

    known = engine.generate.__kwdefaults__ or {}
    for field, value in itertools.product(DRAW, NUMBERS):
        if field in known:
            yield Case("numbers", f"{name} generate {field}={value!r:.40}", lambda f=field, v=value: draw(**{f: v}))
    for field, value in itertools.product(ASK, NUMBERS):
        yield Case("numbers", f"{name} answer {field}={value!r:.40}", lambda f=field, v=value: answer(**{f: v}))
    for text in TEXTS:
        yield Case("texts", f"{name} generate {text!r:.40}", lambda text=text: draw(text))
        yield Case("texts", f"{name} answer {text!r:.40}", lambda text=text: answer(text))
    for image in (
        None,
        5,
        "none.png",
        [],
        [None],
        [picture, picture],
        b"",
        torch.zeros(3, 4),
        np.zeros((4, 4)),
        "/dev/zero",
        "/",
    ):
        yield Case("numbers", f"{name} answer about {image!r:.40}", lambda image=image: answer(image=image))
    for field, value in itertools.product(
        ("steps", "guidance", "height", "width", "prompt_tokens", "max_new_tokens"), NUMBERS
    ):
        yield Case("numbers", f"{name} explain {field}={value!r:.40}", lambda f=field, v=value: _explain(engine, f, v))


def _explain(engine: Engine, field: str, value: Any) -> None:
    task = "understanding" if field in ("max_new_tokens", "question_tokens") else "generation"
    try:
        str(engine.explain(task, **{field: value}))
    except TypeError as error:  # a keyword that explain has not is Python's to refuse
        if "unexpected keyword" not in str(error):
            raise
