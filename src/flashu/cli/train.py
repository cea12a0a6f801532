"""`flashu train`: what makes a model quicker, trained on the model itself."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from flashu.cli import options as opt
from flashu.cli.opened import open_engine
from flashu.cli.output import bar, emit, out, progress
from flashu.errors import FlashUError

if TYPE_CHECKING:
    from flashu.inference.engine import Engine
    from flashu.inference.speculate import Speculation
    from flashu.training.draft.answers import Asked
    from flashu.training.draft.measure import Acceptance

app = typer.Typer(help="Train a model, or what drafts its answers.")

OFFERED = ("model", "dtype", "device")


class Kind(str, Enum):
    """What drafts."""

    eagle3 = "eagle3"
    meta_queries = "meta_queries"
    ngrams = "ngrams"
    self = "self"


@app.callback(invoke_without_command=True)
def train(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="YAML settings of a run; run again to resume.")
    ] = None,
) -> None:
    """Train a model, by the settings of a file; or what drafts its answers, on those."""
    if context.invoked_subcommand is None:
        if config is None:
            raise typer.BadParameter("give --config FILE, or a command", ctx=context)
        model(config)


def model(path: Path) -> None:
    """Train a model by the settings in a file."""
    from flashu.models.registry import family, open_model
    from flashu.training.settings import TrainSettings
    from flashu.training.sources import source
    from flashu.training.trainer import Trainer

    settings = TrainSettings.load(path)
    opened = open_model(settings.model)
    own = family(opened.spec.family)
    if own.save is None:
        raise FlashUError(f"a trained {own.title} cannot be saved here")
    opened.requires_grad_(True)
    with progress() as bars:
        trainer = Trainer(opened, settings, source(settings, opened), lambda line: print(line, flush=True))
        trainer.run(bar(bars, "training", settings.steps))
    trainer.save_model(own.save, opened.processor)
    out().print(str(trainer.output / "model"), highlight=False)


@app.command()
@opt.offers(opt.EngineOptions, *OFFERED)
def draft(
    output: Annotated[Path, typer.Option("-o", "--output", file_okay=False, help="Folder of the draft.")],
    options: opt.EngineOptions,
    kind: Annotated[
        Kind, typer.Option(help="A network, n-grams of the answers, or the model without some of its layers.")
    ] = Kind.eagle3,
    data: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help='JSON lines of {"question": ..., "images": [...]}; scenes if not given.'
        ),
    ] = None,
    items: Annotated[int, opt.number("items", "Questions about scenes.")] = 2400,
    held_out: Annotated[int, opt.number("items", "Questions that only measure what is accepted.")] = 200,
    steps: Annotated[int, opt.number("steps", "Updates.")] = 400,
    batch: Annotated[int, opt.number("batch_size", "Answers of an update.")] = 32,
    lr: Annotated[float, typer.Option(min=0, max=1, help="Learning rate at its highest.")] = 2e-3,
    unroll: Annotated[int, typer.Option(min=1, max=16, help="Tokens drafted from every position in training.")] = 5,
    ce: Annotated[float, typer.Option(min=0, max=100, help="Weight of the cross-entropy beside KL.")] = 0.1,
    layers: Annotated[int, typer.Option(min=1, max=8, help="Layers of the network.")] = 1,
    queries: Annotated[int, typer.Option(min=0, max=64, help="Meta queries (meta_queries); 0 = none.")] = 4,
    zero_init: Annotated[bool, typer.Option(help="Begin as the model's last layers (meta_queries).")] = True,
    normed: Annotated[bool, typer.Option(help="Bring features to one scale first (meta_queries).")] = True,
    tokens: Annotated[
        int | None, typer.Option(min=2, max=2**20, help="Draft only the most frequent tokens; all if not given.")
    ] = None,
    max_new_tokens: opt.MaxNewTokens = None,
    most: Annotated[int, typer.Option(min=1, max=16, help="Tokens drafted at once where acceptance is measured.")] = 5,
    verifier: Annotated[
        str | None, typer.Option(help="Hub id or folder of the model in transformers' format, for `speculators`.")
    ] = None,
    seed: opt.ItemSeed = 0,
    as_json: opt.AsJson = False,
) -> None:
    """Train what drafts a model's answers, on its own answers; run again to resume.

    Prints, for questions it has not seen, how many drafted tokens are accepted. What a draft proposes changes the time
    of an answer, never its tokens.
    """
    engine = open_engine(options)
    from flashu.inference.speculate import Speculation, load_drafter, ngrams
    from flashu.models.speculators import save_network, save_ngrams, save_skips
    from flashu.training.draft import answers as own
    from flashu.training.draft.measure import shorter

    output.mkdir(parents=True, exist_ok=True)
    asked, unseen = _questions(engine, data, items, held_out, seed)
    with progress() as bars:
        shown, done = bar(bars, "answers", len(asked)), 0

        def answered(count: int) -> None:
            nonlocal done
            done += count
            shown(done, len(asked))

        if kind is Kind.self:
            save_skips(output, shorter(engine, asked[:64], most=most, limit=max_new_tokens), most, engine.model)
        else:
            said = own.own_answers(engine, asked, output / "answers.jsonl", limit=max_new_tokens, on_batch=answered)
            if kind is Kind.ngrams:
                save_ngrams(output, ngrams(said), 4, engine.model)
            else:
                from flashu.models.draft import frequent
                from flashu.training.draft import train as training

                count = engine.model.spec.vocabulary
                if tokens is not None and tokens > count:
                    raise FlashUError(f"{tokens} tokens to draft of a vocabulary of {count}")
                ids = None if tokens in (None, count) else frequent(said, count, tokens)
                more: dict[str, Any] = {"layers": layers}
                if kind is Kind.meta_queries:
                    more |= {"queries": queries, "zero_init": zero_init, "normed": normed}
                network = training.new_network(engine, kind.value, ids, seed, **more)
                settings = training.Settings(
                    steps, batch, lr, min(20, steps), unroll, ce=ce, seed=seed, limit=max_new_tokens
                )
                trainer = training.DraftTrainer(engine, network, asked, said, settings)
                training.train(trainer, output, lambda entry: None if as_json else print(_line(entry), flush=True))
                save_network(output, network, engine.model, most, verifier)
    speculation = Speculation(load_drafter(output, engine.model), most, adapt=False)
    _report(engine, speculation, unseen, kind.value, max_new_tokens, as_json, str(output))


class Stage(str, Enum):
    """What a student is taught."""

    cfg = "cfg"
    regression = "regression"
    dmdo = "dmdo"


@app.command()
@opt.offers(opt.EngineOptions, *OFFERED)
def distill(
    output: Annotated[Path, typer.Option("-o", "--output", file_okay=False, help="Folder of the adapter.")],
    options: opt.EngineOptions,
    stage: Annotated[
        Stage,
        typer.Option(help="cfg: guidance in one pass; regression: segments in one step; dmdo: distribution matching."),
    ] = Stage.cfg,
    start: Annotated[
        Path | None, typer.Option("--from", exists=True, file_okay=False, help="Adapter to go on from.")
    ] = None,
    to: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="Both stages in turn, to a student that draws in so many steps."),
    ] = None,
    points: Annotated[int, typer.Option(min=1, max=1000, help="Steps that the student draws in (not cfg).")] = 6,
    substeps: Annotated[int, typer.Option(min=1, max=100, help="Steps of the teacher in one of them.")] = 4,
    steps: Annotated[int, opt.number("steps", "Updates.")] = 1000,
    drawings: Annotated[int, typer.Option(min=0, max=4096, help="Drawings of an update.")] = 64,
    edits: Annotated[int, typer.Option(min=0, max=4096, help="Edits of an update.")] = 32,
    text_scale: Annotated[tuple[float, float], typer.Option(help="Range of the text's guidance.")] = (1.0, 5.0),
    image_scale: Annotated[tuple[float, float], typer.Option(help="Range of the picture's guidance.")] = (1.0, 2.5),
    rank: Annotated[int, typer.Option(min=1, max=4096, help="Rank of the adapter.")] = 8,
    lr: Annotated[float, typer.Option(min=0, max=1, help="Learning rate at its highest.")] = 1e-3,
    save_every: Annotated[int, typer.Option(min=1, max=1_000_000, help="Updates between two checkpoints.")] = 50,
    seed: opt.ItemSeed = 0,
) -> None:
    """Train an adapter with which a model draws in fewer passes; run again to resume. The model itself stays."""
    engine = open_engine(options)
    from flashu.training.distill import train as training
    from flashu.training.distill.settings import Settings

    settings = Settings(
        stage.value, steps, drawings, edits, to or points, substeps, text=text_scale, image=image_scale, rank=rank,
        alpha=float(rank), lr=lr, warmup=min(20, steps), seed=seed, save_every=save_every,
    )  # fmt: skip

    def shown(entry: dict[str, float]) -> None:
        losses = " ".join(f"{name} {value:.4f}" for name, value in entry.items() if name != "step")
        print(f"{int(entry['step']):6d} {losses}", flush=True)

    stages = [(settings, output)]
    if to is not None:
        stages = [(replace(settings, stage=one.value), folder) for one, folder in
                  ((Stage.cfg, output / "cfg"), (Stage.regression, output))]  # fmt: skip
    for own, folder in stages:
        training.train(training.Distillation(engine, own, start), folder, shown)
        start = folder
    out().print(str(output), highlight=False)


def _questions(
    engine: Engine, data: Path | None, items: int, held_out: int, seed: int
) -> tuple[list[Asked], list[Asked]]:
    """To train on and to measure with: about scenes, or all and the last of a file."""
    from flashu.scenes.world import world_of
    from flashu.training.draft import answers as own

    if data is not None:
        asked = own.listed(data)
        kept = max(1, min(held_out, len(asked) // 10))
        if len(asked) <= kept:
            raise FlashUError(f"{data} holds {len(asked)} question: give at least 2, the last tenth only measures")
        return asked[:-kept], asked[-kept:]
    world = world_of(engine.layout.defaults.height, engine.layout.defaults.width)
    if world is None:
        raise FlashUError("this model is not of a procedural world: give questions about your own images with --data")
    return own.about_scenes(world, items, seed), own.about_scenes(world, held_out, seed, held_out=True)


def _line(entry: dict[str, Any]) -> str:
    rates = " ".join(f"{share:.2f}" for share in entry["accepted"])
    return (
        f"{entry['step']:6d} loss {entry['loss']:.3f} accepted {rates} "
        f"tokens a forward {entry['tokens']:.2f}, {entry['speedup']:.2f}x expected"
    )


def _report(
    engine: Engine,
    speculation: Speculation,
    unseen: list[Asked],
    kind: str,
    limit: int | None,
    as_json: bool,
    folder: str,
) -> None:
    from flashu.training.draft.measure import measured

    found: Acceptance = measured(engine, speculation, unseen, limit=limit)
    low, high = found.interval()
    if as_json:
        about = {"draft": folder, "kind": kind, "cost": speculation.drafter.cost, "answers": found.answers}
        emit(about | {"tokens": found.tokens, "interval": [low, high], "accepted": found.rates, "tried": found.tried})
        return
    table = Table(title=f"{kind}: {found.answers} answers not trained on, {speculation.most} tokens drafted")
    for name in ("tokens a forward", "95 %", *(f"position {n + 1}" for n in range(len(found.rates)))):
        table.add_column(name, justify="right")
    table.add_row(f"{found.tokens:.2f}", f"{low:.2f} to {high:.2f}", *(f"{rate:.2f}" for rate in found.rates))
    out().print(table)
