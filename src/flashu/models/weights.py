"""Weight files: found, read, checked against a model, and put into it; written; fingerprinted."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from flashu.errors import CheckpointError, FlashUError
from flashu.models.ffn import FFN
from flashu.models.packing import FOR_GOOD, is_packed
from flashu.models.quantize import check_scheme, finished, narrow, narrowed, try_scheme
from flashu.models.sizes import WRONG
from flashu.plan.files import read_text

NAMES = ("model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.bin")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LISTED = 10  # keys of a kind that an error names
SAMPLES = 1024  # values of a tensor that the fingerprint reads
AGAIN = "Download it again; to test a file, compare its size and sha256 with the hub's."


def read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(read_text(path))
    except FileNotFoundError as e:
        raise CheckpointError(f"{path.parent}: there is no {path.name}; is this the folder of a model?") from e
    except (OSError, ValueError, RecursionError) as e:
        raise CheckpointError(f"{path}: cannot be read as JSON ({e}). {AGAIN}") from e
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: holds a {type(data).__name__} where an object is expected. {AGAIN}")
    return data


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder: one file, or the shards that an index names. safetensors come first."""
    for name in NAMES:
        if (folder / name).is_file():
            return [folder / name]
        if (index := folder / f"{name}.index.json").is_file():
            shards = read_json(index).get("weight_map")
            if not isinstance(shards, dict) or not shards or not all(_plain(shard) for shard in shards.values()):
                raise CheckpointError(f"{index}: its weight_map does not name files of this folder. {AGAIN}")
            files = [folder / shard for shard in sorted(set(shards.values()))]
            if lacking := [file.name for file in files if not file.is_file()]:
                raise CheckpointError(f"{folder}: {len(lacking)} of {len(files)} shards are missing: {_some(lacking)}")
            return files
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    raise CheckpointError(f"{folder}: no weights (looked for {', '.join(NAMES)}, or their index); found {_some(found)}")


def read_weights(files: list[Path]) -> dict[str, Tensor]:
    """All tensors of the files, by name. They are mapped from disk and read when used; no code is ever run."""
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)
    return weights


@torch.no_grad()
def fill(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    where: object,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    quantize: str | None = None,
) -> None:
    """Gives a model built on the meta device its weights; parameters become ``dtype`` (None = as stored).

    ``quantize``: a `UnifiedModel`'s projections are quantized one by one as they come, so that the device never holds
    the whole of it wide; its checkpoint's fingerprint is noted.

    Tied parameters stay tied; of their names one is enough. Every difference between the names, shapes and values
    there are and those there should be is named in one ``CheckpointError``, raised before the model is touched.
    Tensors are copied one at a time: a file that is overwritten later cannot reach into a running model.
    """
    groups: dict[int, list[str]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(value), []).append(name)
    tied = {name: group for group in groups.values() for name in group}
    _compare(model, weights, tied, where)
    place = torch.device(device or "cpu")
    wide: set[nn.Linear] = set()
    if quantize is not None:
        wide, any_weight = narrowed(model), next(iter(weights.values()))
        check_scheme(quantize)
        try_scheme(quantize, place, dtype or any_weight.dtype)
        parameters = dict(model.named_parameters())  # tied ones by their first name
        own = ((name, next(weights[n] for n in tied[name] if n in weights)) for name in sorted(parameters))
        model.fingerprint = fingerprint((name, value.to(dtype or value.dtype)) for name, value in own)  # type: ignore[assignment]
    before = 0
    for group in groups.values():
        stored = next(weights[name] for name in group if name in weights)
        owner, leaf = _place(model, group[0])
        old = getattr(owner, leaf)
        new: Tensor
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(stored.to(place, dtype, copy=True), requires_grad=old.requires_grad)
        else:
            new = stored.to(place, copy=True)
        before += new.nbytes
        for name in group:
            owner, leaf = _place(model, name)
            setattr(owner, leaf, new)
            if quantize is not None and leaf == "weight" and owner in wide:
                narrow(owner, quantize)
    if quantize is not None:
        finished(model, quantize, before)


def _compare(model: nn.Module, weights: Mapping[str, Tensor], tied: dict[str, list[str]], where: object) -> None:
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    present = wanted.keys() & weights.keys()
    missing = [n for n in wanted if not any(alias in weights for alias in tied.get(n, [n]))]
    unexpected = [n for n in weights if n not in wanted]
    misshaped = [n for n in wanted if n in present and tuple(weights[n].shape) != wanted[n]]
    sound = [n for n in wanted if n in present and n not in set(misshaped)]
    # What the model holds as integers (a table's powers of two) has to be stored as such.
    kinds = {
        name: DTYPES if value.is_floating_point() else (value.dtype,) for name, value in model.state_dict().items()
    }
    mistyped = [n for n in sound if weights[n].dtype not in kinds[n]]
    broken = [n for n in sound if weights[n].dtype in DTYPES and not _finite(weights[n])]
    untied = [n for n in sound for a in tied.get(n, [])[:1] if a != n and a in sound and not _same(weights, a, n)]

    def shape(name: str) -> str:
        return f"{name} {list(weights[name].shape) if name in weights else list(wanted[name])}"

    complaints = [
        ("missing", [shape(n) for n in missing]),
        ("unexpected", [shape(n) for n in unexpected]),
        ("of the wrong shape", [f"{shape(n)} where the model has {list(wanted[n])}" for n in misshaped]),
        ("of the wrong type (numbers are fp32, fp16 or bf16)", [f"{n} {weights[n].dtype}" for n in mistyped]),
        ("with NaN or infinite values", broken),
        ("differing from the weights they are tied to", untied),
    ]
    lines = [f"  {len(names)} {what}: {_some(names)}" for what, names in complaints if names]
    if lines:
        advice = "Check that config.json and the weight files belong together and are complete; nothing was loaded."
        raise CheckpointError("\n".join([f"{where}: the weights do not fit the model:", *lines, f"  {advice}"]))


def names(model: nn.Module) -> list[str]:
    """The names of the parameters; one for those that are tied."""
    return list({id(_held(model, name)): name for name, _ in reversed(list(model.named_parameters()))}.values())


def stored(model: nn.Module, name: str) -> Tensor:
    """A parameter as the checkpoint has it: FFN neurons in its order, quantized values as plain numbers."""
    parent = name.rpartition(".")[0].rpartition(".")[0]
    owner, value = model.get_submodule(parent), _held(model, name).detach()
    if type(value) is not Tensor:
        value = value.dequantize()
    if isinstance(owner, FFN) and (dim := owner.neuron_dims().get(name.removeprefix(f"{parent}."))) is not None:
        return owner.stored(value, dim)
    return value


def check_savable(model: Any) -> None:
    """An error unless a model's weights are what a checkpoint holds."""
    if is_packed(model):
        raise FlashUError(FOR_GOOD)
    if model.quantization is not None:
        raise CheckpointError(
            f"this model is quantized ({model.quantization}) and would not be what it was: save it before"
        )


def write_weights(model: nn.Module, file: Path) -> None:
    """Writes the weights as safetensors (tied ones once) beside the file, then puts it in place at once."""
    tensors = {name: stored(model, name).contiguous().cpu() for name in names(model)}
    draft = file.with_name(file.name + ".part")
    save_file(tensors, draft, metadata={"format": "pt"})
    os.replace(draft, file)


@torch.no_grad()
def checkpoint_hash(model: Any) -> str:
    """16 hex digits of a sha256 over the names, shapes and values of the parameters.

    Of each tensor at most 1024 evenly spaced values are read, rounded to bf16: the same checkpoint has one hash in
    fp32 and in bf16, on any device, and quantized or packed the one it had before. It tells checkpoints apart; it is no
    protection against tampering.
    """
    if (noted := getattr(model, "fingerprint", None)) is not None:
        return noted
    return fingerprint((name, stored(model, name)) for name in sorted(names(model)))


def fingerprint(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """The `checkpoint_hash` of parameters in the order of their names."""
    digest = hashlib.sha256()
    for name, value in parameters:
        flat = value.flatten()
        picks = torch.linspace(0, max(len(flat) - 1, 0), min(len(flat), SAMPLES), dtype=torch.float64).long()
        values = flat[picks.to(flat.device)].bfloat16().cpu().view(torch.int16).numpy().astype("<i2")
        digest.update(f"{name}{list(value.shape)}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()[:16]


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, *WRONG) as e:
        raise CheckpointError(f"{file}: not a whole safetensors file ({e}).{_guess(file)} {AGAIN}") from e


def _read_pickle(file: Path) -> dict[str, Tensor]:
    try:
        with file.open("rb") as opened:
            zipped = opened.read(4) == b"PK\x03\x04"  # torch's older format cannot be mapped
        weights = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as e:
        raise CheckpointError(
            f"{file}: refused, because it is damaged or holds more than weights (a pickle can run code)."
            f"{_guess(file)} Use a safetensors file, or convert this one where you trust its source."
        ) from e
    except (EOFError, OSError, *WRONG) as e:
        reason = str(e).splitlines()[0] if str(e) else "it ends too early"
        raise CheckpointError(f"{file}: not a whole PyTorch file ({reason}).{_guess(file)} {AGAIN}") from e
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(f"{file}: holds something else than named tensors; is it a training state?")
    if strange := [str(name) for name, value in weights.items() if not _dense(value)]:
        raise CheckpointError(f"{file}: {_some(strange)} hold no plain values (sparse, nested, quantized or meta)")
    if not all(isinstance(name, str) for name in weights):
        raise CheckpointError(f"{file}: its tensors are not named by text; is it a training state?")
    return weights


def _guess(file: Path) -> str:
    """A hint for the commonest wrong file."""
    with file.open("rb") as opened:
        start = opened.read(64)
    return " It is a Git LFS pointer: run `git lfs pull`." if start.startswith(b"version https://git-lfs") else ""


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    owner, _, leaf = name.rpartition(".")
    return model.get_submodule(owner), leaf


def _held(model: nn.Module, name: str) -> Tensor:
    """A parameter, also one that lies elsewhere between calls (`offload`)."""
    owner, leaf = _place(model, name)
    value: Tensor = getattr(owner, leaf)
    return owner._hf_hook.weights_map[leaf] if value.is_meta else value  # type: ignore[union-attr, index]


def _dense(value: Tensor) -> bool:
    return value.layout is torch.strided and not (value.is_meta or value.is_nested or value.is_quantized)


def _finite(tensor: Tensor) -> bool:
    if tensor.numel() == 0:
        return True
    low, high = tensor.aminmax()
    return bool(low.isfinite() & high.isfinite())


def _same(weights: Mapping[str, Tensor], a: str, b: str) -> bool:
    return torch.equal(weights[a], weights[b])


def _plain(name: object) -> bool:
    return isinstance(name, str) and bool(name) and Path(name).name == name


def _some(names: list[str]) -> str:
    more = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return (", ".join(names[:LISTED]) or "nothing") + more
