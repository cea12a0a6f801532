"""Checkpoint folders of every embedded model, damaged: values of config.json, weight files, files of other kinds."""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from flashu.models.registry import ASSETS, open_model
from tests.robustness.cases import Case

MOST = 1500
"""Of all places, values and files of the five models, as many, drawn at random."""
MODELS = ("scenes", "scenes-hard", "scenes-bagel", "scenes-showo", "scenes-emu3")
STRANGE = (10**9, 2**40, 2**70, -1, 0, 2.5, 1e300, math.nan, math.inf, "7", "", None, True, [], [1, 2], {}, {"a": 1})


def cases(folder: Path, seed: int) -> list[Case]:
    made = list(itertools.chain.from_iterable((_configs(name, folder), _files(name, folder)) for name in MODELS))
    listed = list(itertools.chain.from_iterable(made))
    random.Random(seed).shuffle(listed)
    return listed[:MOST]


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every place in nested objects, with what stands there."""
    if path:
        yield path, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))


def changed(data: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    new = copy.deepcopy(data)
    at = new
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return new


def opened_copy(name: str, folder: Path, change: Callable[[Path], Any]) -> Any:
    """Opens a copy of an embedded model that ``change`` has damaged, and draws with it if it opens."""
    place = folder / "copy"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for file in (ASSETS / name).iterdir():
        (place / file.name).symlink_to(file)
    change(place)
    model = open_model(place, device="cpu")
    from flashu import Engine

    return Engine(model, model.processor, "exact").generate("a red circle", steps=1, seed=0)


def _replaced(place: Path, name: str, data: bytes | str) -> None:
    file = place / name
    file.unlink(missing_ok=True)
    file.write_bytes(data if isinstance(data, bytes) else data.encode())


def _configs(name: str, folder: Path) -> Iterator[Case]:
    data = json.loads((ASSETS / name / "config.json").read_text())
    for path, old in leaves(data):
        for value in STRANGE:
            if value == old and type(value) is type(old):
                continue
            text = json.dumps(changed(data, path, value))
            # A count that no model has, or of another kind, must not be taken for one of its sizes.
            size = path[0] == "config" and type(old) is int
            wrong = size and (not isinstance(value, int) or isinstance(value, bool) or value < 0 or value > 2**30)
            yield Case(
                "config.json",
                f"{name} {'.'.join(path)} = {value!r}",
                lambda text=text: opened_copy(name, folder, lambda place: _replaced(place, "config.json", text)),
                "refuse" if wrong else "either",
            )
        yield Case(
            "config.json",
            f"{name} without {'.'.join(path)}",
            lambda path=path: opened_copy(
                name, folder, lambda place: _replaced(place, "config.json", json.dumps(_without(data, path)))
            ),
        )


def _without(data: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    new = copy.deepcopy(data)
    at = new
    for key in path[:-1]:
        at = at[key]
    del at[path[-1]]
    return new


def _files(name: str, folder: Path) -> Iterator[Case]:
    def case(group: str, what: str, change: Callable[[Path], Any], wanted: Any = "refuse") -> Case:
        return Case(group, f"{name} {what}", lambda: opened_copy(name, folder, change), wanted)

    texts = {
        "empty": b"",
        "a list": b"[]",
        "null": b"null",
        "UTF-16": "{}".encode("utf-16"),
        "binary": bytes(range(256)),
        "deep lists": b"[" * 100_000,
        "deep objects": b'{"a":' * 100_000,
        "closed deep": b"[" * 50_000 + b"]" * 50_000,
        "open": b'{"format": "flashu"',
        "huge number": b'{"format": ' + b"9" * 10_000 + b"}",
    }
    for file in ("config.json", "tokenizer.json"):
        for what, content in texts.items():
            yield case("JSON files", f"{file}: {what}", lambda p, f=file, c=content: _replaced(p, f, c))
        for what, make in KINDS.items():
            yield case("JSON files", f"{file}: {what}", lambda p, f=file, make=make: _other(p / f, make))
    stores = sorted(file.name for file in (ASSETS / name).glob("*.safetensors"))
    dice = random.Random(name)
    for file in stores:
        whole = (ASSETS / name / file).read_bytes()
        for what, make in KINDS.items():
            # A calibration that is not there is none.
            wanted = "either" if (file, what) == ("calibration.safetensors", "a loop") else "refuse"
            yield case("weight files", f"{file}: {what}", lambda p, f=file, make=make: _other(p / f, make), wanted)
        for cut in [0, 1, 7, 8, 9, 100, *(dice.randrange(len(whole)) for _ in range(4)), len(whole) - 1]:
            yield case(
                "weight files", f"{file}: cut at {cut}", lambda p, f=file, w=whole, n=cut: _replaced(p, f, w[:n])
            )
        header = int.from_bytes(whole[:8], "little")
        for _ in range(12):  # any byte of the header; one that stands in metadata changes nothing
            at, bit = dice.randrange(8 + header), 1 << dice.randrange(8)
            damaged = whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :]
            yield case(
                "weight files",
                f"{file}: bit {bit} of byte {at}",
                lambda p, f=file, d=damaged: _replaced(p, f, d),
                "either",
            )
        for length in (2**40, 2**63, 2**64 - 1, 10**8 + 1):
            huge = length.to_bytes(8, "little") + whole[8:]
            yield case("weight files", f"{file}: header of {length}", lambda p, f=file, d=huge: _replaced(p, f, d))
    for what, change in TENSORS.items():
        yield case("tensors", what, lambda p, change=change: _tensors(p, change))
    for what, make in PICKLES.items():
        yield case("tensors", f".bin: {what}", lambda p, make=make: _pickle(p, make))


def _other(file: Path, make: Callable[[Path], None]) -> None:
    file.unlink()
    make(file)


KINDS: dict[str, Callable[[Path], None]] = {
    "a directory": lambda file: file.mkdir(),
    "a pipe": lambda file: os.mkfifo(file),
    "/dev/zero": lambda file: file.symlink_to("/dev/zero"),
    "/dev/null": lambda file: file.symlink_to("/dev/null"),
    "a loop": lambda file: file.symlink_to(file),
    "a Git LFS pointer": lambda file: _write(file, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "HTML": lambda file: _write(file, b"<!doctype html><p>404"),
}


def _write(file: Path, data: bytes) -> None:
    file.write_bytes(data)


Weights = dict[str, Any]


def _tensors(place: Path, change: Callable[[Weights, str], Any]) -> None:
    file = place / "model.safetensors"
    weights = load_file(file)
    change(weights, next(iter(weights)))
    file.unlink()
    save_file(weights, file)


def _pickle(place: Path, make: Callable[[Weights, str], Any]) -> None:
    file = place / "model.safetensors"
    weights: Any = dict(load_file(file))
    made = make(weights, next(iter(weights)))
    weights = weights if made is None else made
    file.unlink()
    torch.save(weights, place / "pytorch_model.bin")


class Runs:
    """A pickle that would run a command."""

    def __reduce__(self) -> Any:
        return os.system, ("false",)


TENSORS: dict[str, Callable[[Weights, str], Any]] = {
    "one missing": lambda w, n: w.pop(n),
    "one more": lambda w, n: w.update(more=torch.ones(1)),
    "a name that steers the terminal": lambda w, n: w.update({"\x1b[2Jred\x1b[31m\u202e": torch.ones(1)}),
    "NaN": lambda w, n: w[n].view(-1)[0].fill_(math.nan),
    "infinity": lambda w, n: w[n].view(-1)[0].fill_(math.inf),
    "transposed": lambda w, n: w.update({n: w[n][None].contiguous()}),
    "empty": lambda w, n: w.update({n: w[n].flatten()[:0].clone()}),
    "integers": lambda w, n: w.update({n: w[n].int()}),
    "booleans": lambda w, n: w.update({n: w[n].bool()}),
    "float8": lambda w, n: w.update({n: w[n].to(torch.float8_e4m3fn)}),
    "complex": lambda w, n: w.update({n: w[n].to(torch.complex64)}),
    "none": lambda w, n: w.clear(),
}
PICKLES: dict[str, Callable[[Weights, str], Any]] = {
    "sparse": lambda w, n: w.update({n: w[n].float().to_sparse()}),
    "meta": lambda w, n: w.update({n: w[n].to("meta")}),
    "nested": lambda w, n: w.update({n: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}),
    "quantized": lambda w, n: w.update({n: torch.quantize_per_tensor(torch.ones(3), 1.0, 0, torch.qint8)}),
    "numbers for names": lambda w, n: w.update({5: torch.ones(1)}),
    "a list": lambda w, n: list(w.values()),
    "a tensor": lambda w, n: w[n],
    "a training state": lambda w, n: {"model": w, "step": 5},
    "code": lambda w, n: w.update({n: Runs()}),
    "text": lambda w, n: w.update({n: "text"}),
}
