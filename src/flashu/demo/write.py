"""Writes the demo's files."""

from __future__ import annotations

import json
import os
from pathlib import Path

from flashu.demo.report import page
from flashu.demo.result import Result
from flashu.demo.sheet import contact_sheet


def write_all(result: Result, folder: Path) -> None:
    """report.html, contact-sheet.png and results.json, each put in place whole."""
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / ".results.json.new"
    results.write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
    sheet = folder / ".contact-sheet.new.png"
    contact_sheet(result).save(sheet)
    report = folder / ".report.html.new"
    report.write_text(page(result), encoding="utf-8")
    for part, name in ((results, "results.json"), (sheet, "contact-sheet.png"), (report, "report.html")):
        os.replace(part, folder / name)
