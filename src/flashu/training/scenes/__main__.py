"""`python -m flashu.training.scenes`: autoencoder, pool of scenes, unified model of any family; resumes
where it was stopped."""

from __future__ import annotations

import argparse
import os
import time
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flashu.models import small_autoencoder, small_vq
from flashu.models.registry import ASSETS, FAMILIES, family, family_of, resolve
from flashu.models.small_autoencoder import SmallAutoencoder
from flashu.models.small_vq import SmallVQ
from flashu.scenes.world import WORLDS, World
from flashu.training.scenes import curves
from flashu.training.scenes.autoencoder import train_autoencoder
from flashu.training.scenes.data import Batcher, build_pool
from flashu.training.scenes.evaluate import score
from flashu.training.scenes.network import Network
from flashu.training.scenes.trainer import Settings, Trainer
from flashu.training.scenes.vq import train_vq

CHECKPOINT_SECONDS = 120
CODECS: dict[Any, tuple[str, int, Any]] = {
    SmallAutoencoder: (small_autoencoder.FILE, 1300, train_autoencoder),
    SmallVQ: (small_vq.FILE, 800, train_vq),
}
"""Of each class of autoencoder: its file, the steps of a new one, what trains it."""
DESCRIPTIONS = 0.3  # share of pictures whose every cell is described, where the vocabulary has the words
console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flashu.training.scenes", description=__doc__)
    parser.add_argument("--world", choices=WORLDS, default="scenes")
    parser.add_argument("--family", choices=FAMILIES, help="of the model to train (default that of the shipped one)")
    parser.add_argument(
        "--name", help="of the model (default that of the world, with the family behind if it is given)"
    )
    parser.add_argument("--start", type=Path, help="folder of a trained model to begin with")
    parser.add_argument("--steps", type=int, default=4000, help="updates")
    parser.add_argument("--drawings", type=int, default=112, help="images to draw, per update")
    parser.add_argument("--questions", type=int, default=24, help="images with five or six questions, per update")
    parser.add_argument("--edits", type=int, default=32, help="images to edit, per update, where the model learns it")
    parser.add_argument("--scenes", type=int, default=48_000, help="training scenes in the pool")
    parser.add_argument("--rate", type=float, default=1.0, help="factor of the learning rates")
    parser.add_argument("--evaluate-minutes", type=float, default=10, help="minutes between held-out scores")
    parser.add_argument("--save-seconds", type=float, default=CHECKPOINT_SECONDS, help="seconds between checkpoints")
    parser.add_argument("--runs", type=Path, help="checkpoints, curves, cached pictures (default runs/NAME)")
    parser.add_argument("--assets", type=Path, help="where the finished files go (default in the package)")
    options = parser.parse_args()
    world = WORLDS[options.world]
    options.name = options.name or (f"{world.name}-{options.family}" if options.family else world.name)
    options.runs = options.runs or Path("runs", options.name)
    options.assets = options.assets or ASSETS / options.name
    chosen = family(options.family) if options.family else family_of(resolve(options.name))
    if chosen.trainer is None:
        parser.error(f"{chosen.title} cannot be trained here")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for folder in (options.runs, options.assets):
        folder.mkdir(parents=True, exist_ok=True)

    settings = Settings(
        options.steps,
        {"draw": options.drawings, "answer": options.questions, "edit": options.edits},
        muon_lr=options.rate * Settings.muon_lr,
        adam_lr=options.rate * Settings.adam_lr,
    )
    network: Network = chosen.trainer(world, settings.seed, options.start)
    codec = open_codec(network.codec, world, options, device)
    console.log("drawing and encoding the pool of scenes")
    edits = options.scenes // 2 if "edit" in network.tasks else 0
    pool = build_pool(codec, options.scenes, options.runs / "pool.pt", world=world, edits=edits)
    descriptions = DESCRIPTIONS if "edit" in network.tasks else 0.0
    batcher = Batcher(pool, network.tokenizer, settings.seed, world, descriptions)
    train(Trainer(settings, batcher, network, device), codec, options)


def open_codec(kind: Any, world: World, options: argparse.Namespace, device: str) -> Any:
    """The autoencoder of this class in the folder of the model; trained where there is none, from that of ``start`` if
    it has one."""
    file, steps, make = CODECS[kind]
    path = options.assets / file
    if path.exists():
        return kind.load(path)
    theirs = options.start / file if options.start is not None else None
    start = theirs if theirs is not None and theirs.exists() else None
    return make(path, steps=steps // 2 if start else steps, world=world, start=start, device=device, log=console.log)


def train(trainer: Trainer, codec: Any, options: argparse.Namespace) -> None:
    """Runs to the planned step; checkpoints every two minutes, scores and exports every few."""
    settings, runs = trainer.settings, options.runs
    checkpoint = runs / "checkpoint.pt"
    if checkpoint.exists():
        trainer.load_state_dict(torch.load(checkpoint, map_location=trainer.device, weights_only=True))
        console.log(f"resumed at step {trainer.step}")
    saved = scored = logged = time.monotonic()
    recent: list[dict[str, float]] = []
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task(options.name, total=settings.steps, completed=trainer.step)
        while trainer.step < settings.steps:
            recent.append({name: value.item() for name, value in trainer.train_step().items()})
            bar.update(task, completed=trainer.step)
            now = time.monotonic()
            if trainer.step % 50 == 0:
                means = {name: fmean(r[name] for r in recent) for name in recent[0]}
                if not all(isfinite(v) for v in means.values()):
                    raise FloatingPointError(f"loss is not finite at step {trainer.step}: resume from {checkpoint}")
                seconds = (now - logged) / len(recent)
                curves.append(runs / "losses.csv", {"step": trainer.step, "seconds": seconds, **means})
                listed = " ".join(f"{name} {value:.4f}" for name, value in means.items())
                console.log(f"{trainer.step} {seconds:.2f} s/step {listed}")
                recent, logged = [], now
            if now - saved > options.save_seconds or trainer.step == settings.steps:
                _save(trainer, checkpoint)
                saved = now
            if now - scored > 60 * options.evaluate_minutes or trainer.step == settings.steps:
                _publish(trainer, codec, options)
                scored = logged = time.monotonic()


def _save(trainer: Trainer, path: Path) -> None:
    with path.with_suffix(".new").open("wb") as file:
        torch.save(trainer.state_dict(), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path.with_suffix(".new"), path)


def _publish(trainer: Trainer, codec: Any, options: argparse.Namespace) -> None:
    """Exports the averaged weights, scores them on a small held-out set, redraws the curves."""
    network = trainer.averaged()
    network.save(options.assets, codec)
    table = score(options.assets, network.tasks, trainer.batcher.world, n=30)
    curves.append(options.runs / "scores.csv", {"step": trainer.step, **table})
    curves.draw(options.runs / "losses.csv", options.runs / "scores.csv", options.runs / "curves.png")
    console.log(f"held-out scores at step {trainer.step}: " + ", ".join(f"{k} {v:.2f}" for k, v in table.items()))


if __name__ == "__main__":
    main()
