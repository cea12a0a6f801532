"""`python -m flashu.training.scenes`: autoencoder, pool of scenes, unified model; resumes where it was stopped."""

from __future__ import annotations

import argparse
import os
import time
from math import isfinite
from pathlib import Path
from statistics import fmean

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flashu.models.registry import ASSETS, FAMILIES, family, family_of, resolve
from flashu.models.small_autoencoder import FILE, SmallAutoencoder
from flashu.scenes.tokenizer import build
from flashu.scenes.world import WORLDS
from flashu.training.scenes import curves
from flashu.training.scenes.autoencoder import train_autoencoder
from flashu.training.scenes.data import Batcher, build_pool
from flashu.training.scenes.evaluate import score
from flashu.training.scenes.trainer import Settings, Trainer

CHECKPOINT_SECONDS = 120
console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flashu.training.scenes", description=__doc__)
    parser.add_argument("--world", choices=WORLDS, default="scenes")
    parser.add_argument("--family", choices=FAMILIES, help="of the model to train (default that of the shipped one)")
    parser.add_argument("--start", type=Path, help="folder of another world's trained model to begin with")
    parser.add_argument("--steps", type=int, default=4000, help="updates of the unified model")
    parser.add_argument("--generation", type=int, default=112, help="images to draw, per update")
    parser.add_argument("--understanding", type=int, default=24, help="images with five or six questions, per update")
    parser.add_argument("--scenes", type=int, default=48_000, help="training scenes in the pool")
    parser.add_argument("--evaluate-minutes", type=float, default=10, help="minutes between held-out scores")
    parser.add_argument("--runs", type=Path, help="checkpoints, curves, cached latents (default runs/WORLD)")
    parser.add_argument("--assets", type=Path, help="where the finished files go (default in the package)")
    options = parser.parse_args()
    world = WORLDS[options.world]
    options.runs = options.runs or Path("runs", world.name)
    options.assets = options.assets or ASSETS / world.name
    chosen = family(options.family) if options.family else family_of(resolve(world.name))
    if chosen.trainer is None:
        parser.error(f"{chosen.title} cannot be trained here")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for folder in (options.runs, options.assets):
        folder.mkdir(parents=True, exist_ok=True)

    path = options.assets / FILE
    if not path.exists():
        start = options.start / FILE if options.start else None
        train_autoencoder(path, steps=700 if start else 1300, world=world, start=start, device=device, log=console.log)
    autoencoder = SmallAutoencoder.load(path)
    console.log("drawing and encoding the pool of scenes")
    pool = build_pool(autoencoder, options.scenes, options.runs / "pool.pt", world=world)
    settings = Settings(options.steps, options.generation, options.understanding)
    words = build(world)
    network = chosen.trainer(world, words, settings.seed, options.start)
    train(Trainer(settings, Batcher(pool, words, settings.seed, world), network, device), autoencoder, options)


def train(trainer: Trainer, autoencoder: SmallAutoencoder, options: argparse.Namespace) -> None:
    """Runs to the planned step; checkpoints every two minutes, scores and exports every few."""
    settings, batcher, runs = trainer.settings, trainer.batcher, options.runs
    checkpoint = runs / "checkpoint.pt"
    if checkpoint.exists():
        trainer.load_state_dict(torch.load(checkpoint, map_location=trainer.device, weights_only=True))
        batcher.reseed(settings.seed + trainer.step)
        torch.manual_seed(settings.seed + trainer.step)
        console.log(f"resumed at step {trainer.step}")
    saved = scored = logged = time.monotonic()
    recent: list[dict[str, float]] = []
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task(options.world, total=settings.steps, completed=trainer.step)
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
            if now - saved > CHECKPOINT_SECONDS or trainer.step == settings.steps:
                _save(trainer, checkpoint)
                saved = now
            if now - scored > 60 * options.evaluate_minutes or trainer.step == settings.steps:
                _publish(trainer, autoencoder, options)
                scored = logged = time.monotonic()


def _save(trainer: Trainer, path: Path) -> None:
    torch.save(trainer.state_dict(), path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def _publish(trainer: Trainer, autoencoder: SmallAutoencoder, options: argparse.Namespace) -> None:
    """Exports the averaged weights, scores them on a small held-out set, redraws the curves."""
    network = trainer.averaged()
    network.save(options.assets, autoencoder)
    table = score(network, trainer.batcher, autoencoder, n=30)
    curves.append(options.runs / "scores.csv", {"step": trainer.step, **table})
    curves.draw(options.runs / "losses.csv", options.runs / "scores.csv", options.runs / "curves.png")
    console.log(f"held-out scores at step {trainer.step}: " + ", ".join(f"{k} {v:.2f}" for k, v in table.items()))


if __name__ == "__main__":
    main()
