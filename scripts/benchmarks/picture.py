"""The table as a picture: SVG, dark on white, a bar for each mark."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from benchmarks.results import SUBJECT, Outcome, Verdict, number

WIDTH = 960
LEFT = 330
"""Where bars begin."""
BAR_WIDTH = 400
MOST = 2.5
"""Times its mark that the longest bar stands for; longer ones are cut off there."""
ROW = 26
HEAD = 84
REACHED, MISSED, TEXT, FAINT = "#2f7d4f", "#b5482f", "#1b1f24", "#c9ced6"
FONT = "font-family='DejaVu Sans, Helvetica, Arial, sans-serif'"


def text(x: float, y: float, words: str, size: int = 13, anchor: str = "start", color: str = TEXT) -> str:
    """One line of text."""
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' text-anchor='{anchor}' fill='{color}'>{escape(words)}</text>"
    )


def line(x1: float, y1: float, x2: float, y2: float, color: str, width: float = 1, dashes: str = "") -> str:
    """One straight line."""
    dashed = f" stroke-dasharray='{dashes}'" if dashes else ""
    ends = f"x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}'"
    return f"<line {ends} stroke='{color}' stroke-width='{width}'{dashed}/>"


def document(width: int, height: float, parts: Iterable[str]) -> str:
    """A whole SVG file."""
    return "\n".join(
        [
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height:.0f}' width='{width}' "
            f"height='{height:.0f}' {FONT}>",
            "<rect width='100%' height='100%' fill='white'/>",
            *parts,
            "</svg>\n",
        ]
    )


def draw(outcomes: Iterable[Outcome], subtitle: str) -> str:
    """Bars: how mystfuse's figures stand to their marks. The line at 1 is the mark."""
    parts = [
        text(16, 28, "mystfuse against its marks", 18),
        text(16, 48, f"A bar that passes the line has reached its mark. {subtitle}", 12),
    ]
    y = HEAD
    for outcome in outcomes:
        verdicts = [verdict for verdict in outcome.verdicts() if not verdict.mark.aim]
        for index, verdict in enumerate(verdicts):
            parts += _row(outcome, verdict, y, is_first=index == 0)
            y += ROW
        if verdicts:
            parts.append(line(16, y + 1, WIDTH - 16, y + 1, FAINT, 0.5))
            y += 4
    mark = LEFT + BAR_WIDTH / MOST
    parts += [line(mark, HEAD - 6, mark, y, TEXT, 1.5, "4 3"), text(mark, HEAD - 10, "mark", 12, "middle")]
    return document(WIDTH, y + 16, parts)


def _row(outcome: Outcome, verdict: Verdict, y: float, is_first: bool) -> list[str]:
    color = REACHED if verdict.is_reached else MISSED
    length = max(2.0, min(verdict.score, MOST) / MOST * BAR_WIDTH)
    own = outcome.median(SUBJECT) or 0
    if verdict.mark.against:
        said = f"{verdict.value:.2f} of {verdict.mark.against} (mark {verdict.mark.limit:g})"
    else:
        said = f"{number(own)} {outcome.job.unit} (mark {verdict.mark.limit:g})"
    return [
        text(LEFT - 10, y + 17, outcome.job.title, 13, "end") if is_first else "",
        f"<rect x='{LEFT}' y='{y + 4}' width='{length:.1f}' height='{ROW - 8}' fill='{color}'/>",
        text(LEFT + BAR_WIDTH + 10, y + 17, said, 12),
    ]
