"""Draws docs/images/floors.svg: the packages of flashu by floor, and which import which. Run: python docs/floors.py"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.layering import FLOORS, arrows  # noqa: E402

WIDTH, HEIGHT, BOX = 760, 58, 118


def draw() -> str:
    """The picture as SVG."""
    where: dict[str, tuple[float, float]] = {}
    boxes = []
    for n, names in enumerate(FLOORS):
        y = (len(FLOORS) - 1 - n) * HEIGHT + 20
        for k, name in enumerate(sorted(names)):
            x = WIDTH * (k + 1) / (len(names) + 1)
            where[name] = (x, y)
            label = {"families": "models/<family>", "top": "flashu, cli"}.get(name, name)
            label = label.replace("<", "&lt;").replace(">", "&gt;")
            boxes.append(
                f'<rect x="{x - BOX / 2:.0f}" y="{y - 13:.0f}" width="{BOX}" height="26" rx="4" fill="#fff" '
                f'stroke="#2a78d6"/><text x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle">{label}</text>'
            )
    lines = []
    for start, end in sorted(arrows()):
        (x1, y1), (x2, y2) = where[start], where[end]
        lines.append(
            f'<path d="M{x1:.0f},{y1 + 13:.0f} C{x1:.0f},{y1 + 40:.0f} {x2:.0f},{y2 - 40:.0f} {x2:.0f},{y2 - 13:.0f}" '
            'fill="none" stroke="#8aa" stroke-width="1" opacity="0.55" marker-end="url(#tip)"/>'
        )
    height = len(FLOORS) * HEIGHT
    tip = '<defs><marker id="tip" viewBox="0 0 6 6" refX="6" refY="3" markerWidth="6" markerHeight="6" orient="auto">'
    tip += '<path d="M0,0 L6,3 L0,6 z" fill="#8aa"/></marker></defs>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
    head += 'font-family="sans-serif" font-size="12">'
    ground = f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>'
    return "\n".join([head, ground, tip, *lines, *boxes, "</svg>"]) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "images" / "floors.svg").write_text(draw())
