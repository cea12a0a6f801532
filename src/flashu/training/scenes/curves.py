"""The log of a training run: one CSV line per record, and a picture of the curves."""

from __future__ import annotations

import csv
from importlib.util import find_spec
from pathlib import Path


def append(path: Path, record: dict[str, float]) -> None:
    """Appends a record to a CSV file, with a header if the file is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, record)
        if new:
            writer.writeheader()
        writer.writerow({k: f"{v:.5g}" for k, v in record.items()})


def draw(losses: Path, scores: Path, picture: Path) -> None:
    """Losses on the left (log scale), held-out scores on the right, over steps. Needs the `plots` extra."""
    if find_spec("matplotlib") is None:  # an optional extra: `pip install ".[plots]"`
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5))
    for axis, path, names in (
        (axes[0], losses, ("flow", "codes", "edit flow", "answer", "board", "around", "seen")),
        (axes[1], scores, None),
    ):
        if not path.exists():
            continue
        with path.open() as file:
            rows = list(csv.DictReader(file))
        for name in [k for k in names or rows[0] if k in rows[0] and k not in ("step", "minutes")]:
            style = {"linewidth": 2.5} if name in ("generation", "understanding") else {"linewidth": 1}
            axis.plot([float(r["step"]) for r in rows], [float(r[name]) for r in rows], label=name, **style)
        axis.set_xlabel("step")
        axis.legend(fontsize=7, ncols=2)
    axes[0].set_yscale("log")
    axes[0].set_title("training losses")
    axes[1].set_title("held-out scores")
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    plt.close(figure)
