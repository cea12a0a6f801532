"""Folders of drafts: EAGLE-3's in the format of vLLM's `speculators`, the other kinds in the same form.

A folder holds config.json and model.safetensors. The layout of SafeAILab's EAGLE-3 releases is read, too.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from flashu.errors import CheckpointError
from flashu.models.draft import DraftConfig, DraftNetwork, Eagle3, Eagle3Config, MetaConfig, MetaQueries
from flashu.models.hub import checkpoint_folder
from flashu.models.protocol import UnifiedModel
from flashu.models.sizes import described
from flashu.models.weights import checkpoint_hash, fill, read_json, read_weights, weight_files

log = logging.getLogger("flashu")
VERSION = "0.9.0"
"""Of the `speculators` package whose format is written."""
PREFIX = "flashu_"
"""Of the kinds that the package has not."""
FILE = "model.safetensors"


def write_config(
    folder: Path, kind: str, model: UnifiedModel, drafted: int, verifier: str | None = None, **settings: Any
) -> None:
    """A draft's config.json. ``drafted``: tokens proposed at once; ``verifier``: see `save_network`; ``settings``: of
    the kind."""
    proposal = {"proposal_type": "greedy", "speculative_tokens": drafted, "verifier_accept_k": 1, "accept_tolerance": 0}
    about = {
        "speculators_model_type": kind,
        "speculators_version": VERSION,
        "speculators_config": {
            "algorithm": kind,
            "proposal_methods": [proposal],
            "default_proposal_method": "greedy",
            "verifier": {"name_or_path": verifier, "architectures": []},
        },
        "flashu": {"model": model.name, "family": model.spec.family, "model_hash": checkpoint_hash(model)},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(about | settings, indent=2) + "\n")


def save_network(
    folder: str | Path, network: DraftNetwork, model: UnifiedModel, drafted: int, verifier: str | None = None
) -> None:
    """Write a network as a folder; ``drafted``: tokens to propose at once. ``verifier``: hub id or folder of the model
    drafted for as transformers knows it, which `speculators` 0.9 opens beside an EAGLE-3 draft; not needed here."""
    folder, config = Path(folder), network.config
    if isinstance(config, Eagle3Config):
        settings = _eagle3_settings(config)
        write_config(folder, config.kind, model, drafted, verifier, architectures=["Eagle3Speculator"], **settings)
    else:
        write_config(folder, PREFIX + config.kind, model, drafted, verifier, settings=config.to_dict())
    tensors = {name: value for name, value in network.state_dict().items() if name != "target_ids"}
    if isinstance(config, Eagle3Config):
        tensors["embed_tokens.weight"] = model.get_input_embeddings().weight
    tensors |= _mapping(network)
    save_file({name: value.detach().contiguous().cpu() for name, value in tensors.items()}, folder / FILE)


def kind_of(folder: str | Path) -> tuple[str, Path, Mapping[str, Any]]:
    """The kind of a draft, its folder (fetched, for a hub id) and its config.json; `CheckpointError` for what is no
    draft."""
    found = checkpoint_folder(folder)
    data = read_json(found / "config.json")
    kind = data.get("speculators_model_type")
    if kind is None and any("eagle3" in str(name).lower() for name in data.get("architectures") or ()):
        kind = Eagle3Config.kind
    if not isinstance(kind, str):
        raise CheckpointError(f"{found} holds no draft: its config.json names no speculators_model_type")
    return kind.removeprefix(PREFIX), found, data


def load_network(folder: str | Path, model: UnifiedModel) -> DraftNetwork:
    """The network in a folder, on the model's device and in its dtype. `CheckpointError` if it does not fit the model,
    or is of a kind that is not known here. A draft of other weights of the same sizes is used, and the log says so."""
    kind, found, data = kind_of(folder)
    weights = read_weights(weight_files(found))
    ids = _drafted_ids(weights.pop("d2t", None), found)
    weights.pop("t2d", None)
    if kind == Eagle3Config.kind:
        with described(found, "config.json describes no draft that can be built"):
            config = _eagle3_config(data, weights, model)
        _check(config, ids, model, found)
        network: DraftNetwork = Eagle3(config, None if ids is None else ids.tolist())
        weights = {name.replace("midlayer.", "layers.0."): w for name, w in weights.items()}
        weights.pop("embed_tokens.weight", None)  # the model's own
    elif kind == MetaConfig.kind:
        config = MetaConfig.from_dict(dict(data.get("settings", {})))
        _check(config, ids, model, found)
        network = MetaQueries(config, model, None if ids is None else ids.tolist())
    else:
        raise CheckpointError(f"{found}: drafts of kind {kind!r} are not known here; those that are: eagle3, {PREFIX}*")
    if ids is not None:
        weights["target_ids"] = ids
    fill(network, weights, found, model.dtype, model.device)
    network.check(model)
    about = data.get("flashu")
    trained = about.get("model_hash") if isinstance(about, Mapping) else None
    if trained is not None and trained != checkpoint_hash(model):
        log.warning("%s was trained for other weights (%s): fewer of its tokens may be accepted", found, trained)
    return network.eval().requires_grad_(False)


def _check(config: DraftConfig, ids: Tensor | None, model: UnifiedModel, folder: Path) -> None:
    drafted = config.vocabulary if ids is None else len(ids)
    if drafted != config.drafted or (ids is not None and not bool(((ids >= 0) & (ids < config.vocabulary)).all())):
        raise CheckpointError(f"{folder}: d2t does not name {config.drafted} of the {config.vocabulary} tokens")
    config.check(model)


def _eagle3_settings(config: Eagle3Config) -> dict[str, Any]:
    llama = {
        "model_type": "llama",
        "hidden_size": config.hidden,
        "intermediate_size": config.neurons,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocabulary,
        "rms_norm_eps": config.eps,
        "rope_theta": config.theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.theta},
        "attention_bias": config.bias,
        "hidden_act": "silu",
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    flags = {name: getattr(config, name) for name in FLAGS}
    return {
        "transformer_layer_config": llama,
        "draft_vocab_size": config.drafted,
        "target_hidden_size": config.hidden,
        "eagle_aux_hidden_state_layer_ids": list(config.layer_ids),
        **flags,
    }


FLAGS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")


def _eagle3_config(data: Mapping[str, Any], weights: Mapping[str, Tensor], model: UnifiedModel) -> Eagle3Config:
    """From a `speculators` config, or from SafeAILab's, which has the layer's settings at the top."""
    layer: Mapping[str, Any] = data.get("transformer_layer_config", data)
    theta = layer.get("rope_theta") or (layer.get("rope_parameters") or {}).get("rope_theta") or 1e4
    count = model.spec.layers
    try:
        heads = layer["num_attention_heads"]
        return Eagle3Config(
            hidden=layer["hidden_size"],
            heads=heads,
            kv_heads=layer.get("num_key_value_heads") or heads,
            head_dim=layer.get("head_dim") or layer["hidden_size"] // heads,
            vocabulary=layer["vocab_size"],
            drafted=data.get("draft_vocab_size") or layer["vocab_size"],
            neurons=layer["intermediate_size"],
            layer_ids=tuple(data.get("eagle_aux_hidden_state_layer_ids") or (2, count // 2, count - 3)),
            layers=layer.get("num_hidden_layers", 1),
            eps=layer.get("rms_norm_eps", 1e-6),
            theta=theta,
            bias=bool(layer.get("attention_bias", False)),
            **{name: bool(data.get(name, False)) for name in FLAGS},
        )
    except KeyError as error:
        raise CheckpointError(f"the draft's config.json has no {error}: is it complete?") from error


def _mapping(network: DraftNetwork) -> dict[str, Tensor]:
    """d2t [n]: what is added to a drafted token to have the model's; t2d [V]: which tokens can be drafted."""
    ids = network.target_ids
    if ids is None:
        return {}
    known = torch.zeros(network.config.vocabulary, dtype=torch.bool)
    known[ids.cpu()] = True
    return {"d2t": ids.cpu() - torch.arange(len(ids)), "t2d": known}


def _drafted_ids(d2t: Tensor | None, folder: Path) -> Tensor | None:
    if d2t is None:
        return None
    if d2t.ndim != 1 or d2t.is_floating_point():
        raise CheckpointError(f"{folder}: d2t is no list of whole numbers")
    ids = d2t.long() + torch.arange(len(d2t))
    return ids


def save_ngrams(folder: str | Path, table: Mapping[tuple[int, ...], int], longest: int, model: UnifiedModel) -> None:
    """Write the commonest next tokens after some tokens as a draft's folder."""
    write_config(Path(folder), f"{PREFIX}ngrams", model, longest, longest=longest)
    keys = sorted(table)
    rows = torch.full((len(keys), longest + 1), -1)
    for n, key in enumerate(keys):
        rows[n, : len(key)] = torch.tensor(key)
        rows[n, longest] = table[key]
    save_file({"ngrams": rows}, Path(folder) / FILE)


def load_ngrams(folder: str | Path) -> tuple[dict[tuple[int, ...], int], int]:
    """A table as `save_ngrams` wrote it, and the most tokens it compares."""
    _, found, data = kind_of(folder)
    rows = read_weights(weight_files(found)).get("ngrams")
    longest = data.get("longest")
    if rows is None or not isinstance(longest, int) or rows.ndim != 2 or rows.shape[1] != longest + 1:
        raise CheckpointError(f"{found}: this is no table of n-grams")
    return {tuple(n for n in row[:-1] if n >= 0): row[-1] for row in rows.tolist()}, longest


def save_skips(folder: str | Path, skip: Sequence[int], drafted: int, model: UnifiedModel) -> None:
    """Write the layers that a model leaves out to draft for itself as a draft's folder."""
    write_config(Path(folder), f"{PREFIX}self", model, drafted, skip=sorted(skip))


def load_skips(folder: str | Path) -> list[int]:
    """The layers that `save_skips` wrote."""
    _, found, data = kind_of(folder)
    skip = data.get("skip")
    if not isinstance(skip, list) or not all(isinstance(n, int) for n in skip):
        raise CheckpointError(f"{found}: this names no layers to leave out")
    return skip
