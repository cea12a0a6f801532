"""`flashu models`: what can be loaded, and where it would come from."""

from __future__ import annotations

from rich import box
from rich.table import Table

from flashu.cli import options as opt
from flashu.cli.output import emit, out


def models(as_json: opt.AsJson = False) -> None:
    """What can be loaded by name; any checkpoint folder or hub id works as well."""
    from flashu.models.registry import CHECKPOINTS, families, is_here, where

    rows = [{"name": c.name, "summary": c.summary, "where": where(c), "here": is_here(c)} for c in CHECKPOINTS]
    known = families()
    sizes = [name for family in known for name in family.random_sizes]
    if as_json:
        emit({"models": rows, "random": sizes})
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("model", "what it is", "from", "here"):
        table.add_column(heading, no_wrap=heading == "model")
    for row in rows:
        table.add_row(
            str(row["name"]), str(row["summary"]), str(row["where"]).partition(",")[0], "yes" if row["here"] else "no"
        )
    out().print(table)
    titles = ", ".join(family.title for family in known)
    out().print(f"Any other checkpoint folder or hub id of {titles} can be given as --model.")
    out().print(f"With random weights, for `flashu bench`: {', '.join(sizes)}.")
