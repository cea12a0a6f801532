"""The `flashu` command: its groups, exit codes and error messages.

Exit codes: 0 done, 1 something given cannot be used, 2 wrong usage, 130 interrupted. An error is one sentence on
stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from flashu import __version__
from flashu.cli import ask, bench, calibrate, demo, eval, generate, lab, models, plan, tune
from flashu.errors import FlashUError

# Typer has carried its own copy of click since 0.20 or so; this is the base class of usage errors in either.
UsageProblem: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

INTERRUPTED = 130


class Commands(TyperGroup):
    """Turns what goes wrong into one sentence and an exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
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
        sys.exit(code if isinstance(code, int) else 0)


def complain(sentence: str, code: int) -> int:
    print("flashu:", " ".join(sentence.split()), file=sys.stderr)
    return code


def usage(problem: Any) -> str:
    """A usage error in one line, with the command whose help to read."""
    context = problem.ctx
    command = "flashu" if context is None else context.command_path
    return f"{problem.format_message().rstrip('.')} (see {command} --help)"


app = typer.Typer(
    name="flashu",
    cls=Commands,
    help="Draw and see with unified multimodal models, faster.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def show_version(wanted: bool) -> None:
    if wanted:
        print(f"flashu {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


app.command("generate")(generate.generate)
app.command("ask")(ask.ask)
app.command("demo")(demo.demo)
app.command("calibrate")(calibrate.calibrate)
app.command("plan")(plan.plan)
app.command("bench")(bench.bench)
app.command("lab")(lab.lab)
app.command("tune")(tune.tune)
app.command("models")(models.models)
app.add_typer(eval.app, name="eval")

if __name__ == "__main__":
    app()
