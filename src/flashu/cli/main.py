"""The `flashu` command: its commands, exit codes and error messages.

Exit codes: 0 done, 1 something given cannot be used, 2 wrong usage, 130 interrupted. An error is one sentence on
stderr; only `flashu --debug COMMAND` shows more, of an error that nobody foresaw.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from flashu import __version__
from flashu.cli import (
    ask,
    batch,
    bench,
    calibrate,
    demo,
    edit,
    eval,
    generate,
    lab,
    models,
    plan,
    serve,
    study,
    train,
    tune,
)
from flashu.errors import FlashUError

# Typer has carried its own copy of click since 0.20 or so; this is the base class of usage errors in either.
UsageProblem: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

INTERRUPTED = 130


class Commands(TyperGroup):
    """Turns what goes wrong into one sentence and an exit code."""

    def main(self, *args: Any, **settings: Any) -> Any:
        if not settings.get("standalone_mode", True):
            return super().main(*args, **settings)
        arguments = list(args[0] if args and args[0] is not None else settings.get("args") or sys.argv[1:])
        debug = "--debug" in arguments[:1]
        try:
            code = super().main(*args, **settings | {"standalone_mode": False})
            sys.stdout.flush()  # a full disk shows here, not when Python has gone
            if code == INTERRUPTED:
                complain("interrupted", code)
        except UsageProblem as problem:
            code = complain(usage(problem), 2)
        except FlashUError as error:
            code = complain(str(error), 1)
        except (KeyboardInterrupt, typer.Abort):
            code = complain("interrupted", INTERRUPTED)
        except BrokenPipeError:
            sys.stdout = sys.stderr  # the reader has gone: nothing more can be written there
            code = 1
        except MemoryError:
            code = complain("there is not enough memory for this: see docs/memory.md for what needs less", 1)
        except OSError as error:
            sys.stdout = sys.stderr
            code = complain(f"{error.filename or 'output'}: {error.strerror or error}", 1)
        except Exception as error:
            if debug:
                raise
            code = complain(
                f"{type(error).__name__}: {error}. This is a defect of flashu: `flashu --debug ...` shows where", 1
            )
        sys.exit(code if isinstance(code, int) else 0)


def complain(sentence: str, code: int) -> int:
    print("flashu:", " ".join(sentence.split()), file=sys.stderr)
    return code


def usage(problem: Any) -> str:
    """A usage error in one line, with the command whose help to read."""
    context = problem.ctx
    command = "flashu" if context is None else context.command_path
    return f"{problem.format_message().rstrip('.')} (see {command} --help)"


def show_version(wanted: bool) -> None:
    if wanted:
        print(f"flashu {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="flashu",
    cls=Commands,
    help="Generate images and answer questions with unified multimodal models, faster.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an unforeseen error comes from.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


for command in (
    generate.generate, edit.edit, ask.ask, demo.demo, calibrate.calibrate, plan.plan, lab.lab, tune.tune,
    models.models, serve.serve, batch.batch,
):  # fmt: skip
    app.command()(command)
app.add_typer(bench.app, name="bench")
app.add_typer(eval.app, name="eval")
app.add_typer(train.app, name="train")
app.add_typer(study.app, name="study")
