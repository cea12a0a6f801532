"""`flashu models`: what can be loaded, and where it would come from."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.table import Table

from flashu.cli import options as opt
from flashu.cli.terminal import emit, out


def models(as_json: opt.AsJson = False) -> None:
    """What can be loaded by name; any checkpoint folder or hub id works as well."""
    from huggingface_hub import try_to_load_from_cache

    from flashu.models.registry import ENTRIES

    rows = []
    for entry in ENTRIES:
        if isinstance(entry.source, Path):
            here = (entry.source / "model.safetensors").exists()
        else:
            here = isinstance(try_to_load_from_cache(entry.source, "config.json"), str)
        rows.append({"name": entry.name, "summary": entry.summary, "where": entry.where, "here": here})
    if as_json:
        emit({"models": rows})
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("model", "what it is", "from", "here"):
        table.add_column(heading, no_wrap=heading == "model")
    for row in rows:
        table.add_row(
            str(row["name"]), str(row["summary"]), str(row["where"]).partition(",")[0], "yes" if row["here"] else "no"
        )
    out().print(table)
    out().print("Any other checkpoint folder or hub id in the official Show-o2 layout can be given as --model.")
