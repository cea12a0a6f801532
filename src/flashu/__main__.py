"""`python -m flashu` is the `flashu` command."""

from __future__ import annotations

from flashu.cli.main import app

if __name__ == "__main__":
    app()
