"""Plots as SVG, without a plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import write_text

WIDTH, HEIGHT, EDGE = 640, 360, 48
COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#e377c2", "#7f7f7f")

Curve = list[tuple[float, float]]


def plot_metrics(metrics: Sequence[dict[str, Any]], path: Path) -> None:
    """Plot the loss of each objective and validation mode against the steps."""
    curves: dict[str, Curve] = {}
    for row in metrics:
        for kind, prefix in (("loss", ""), ("valid", "valid ")):
            for name, value in row.get(kind, {}).items():
                curves.setdefault(prefix + name, []).append((row["step"], value))
    write_text(path, draw(curves, "step", "nats per token"))


def draw(curves: dict[str, Curve], across: str, up: str) -> str:
    """Return an SVG with one line for each curve, and a legend."""
    points = [point for curve in curves.values() for point in curve]
    left, right = _range([x for x, _ in points])
    low, high = _range([0.0, *(y for _, y in points)])

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            EDGE + (x - left) / (right - left) * (WIDTH - EDGE - 150),
            HEIGHT - EDGE - (y - low) / (high - low) * (HEIGHT - 2 * EDGE),
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for i in range(6):
        y = low + (high - low) * i / 5
        x0, at = place(left, y)
        x1, _ = place(right, y)
        parts.append(f'<path d="M{x0:.1f} {at:.1f}H{x1:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{x0 - 6:.1f}" y="{at + 4:.1f}" text-anchor="end">{y:.2f}</text>')
        x = left + (right - left) * i / 5
        at, y0 = place(x, low)
        parts.append(f'<text x="{at:.1f}" y="{y0 + 16:.1f}" text-anchor="middle">{x:.0f}</text>')
    parts.append(f'<text x="{WIDTH / 2 - 50}" y="{HEIGHT - 8}">{across}</text>')
    parts.append(f'<text x="8" y="{EDGE - 16}">{up}</text>')
    for number, (name, curve) in enumerate(sorted(curves.items())):
        color = COLORS[number % len(COLORS)]
        line = "L".join(f"{x:.1f} {y:.1f}" for x, y in (place(*point) for point in sorted(curve)))
        parts.append(f'<path d="M{line}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        if len(curve) == 1:
            parts.append('<circle cx="{:.1f}" cy="{:.1f}" r="3"/>'.format(*place(*curve[0])))
        at = EDGE + 16 * number
        parts.append(f'<text x="{WIDTH - 140}" y="{at}" fill="{color}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low, low + 1)
