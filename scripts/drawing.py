"""Draw a feature pyramid network as docs/fpn.svg, in the manner of the paper's Fig. 1 (d) and Fig. 3.

python scripts/drawing.py
"""

from collections.abc import Mapping
from pathlib import Path

OUT = Path(__file__).resolve().parents[1] / "docs" / "fpn.svg"
WIDTHS = {5: 44, 4: 74, 3: 104, 2: 134}
"""Of the maps, by level."""
LEFT, RIGHT, TOP, STEP, TALL = 120, 400, 46, 74, 26
BLUE, GREEN, GREY = "#0072b2", "#009e73", "#555555"


def main() -> None:
    """Write the drawing."""
    OUT.write_text(drawing())
    print(f"written to {OUT}")


def drawing() -> str:
    """The whole picture."""
    rows = {level: TOP + STEP * (5 - level) for level in WIDTHS}
    shapes = [*_pathway(LEFT, rows, "C", BLUE), *_pathway(RIGHT, rows, "P", GREEN)]
    for level, y in rows.items():
        half = WIDTHS[level] / 2
        shapes.append(_arrow(LEFT + half + 34, y, RIGHT - half - 30, y, GREEN))
        shapes.append(_text((LEFT + RIGHT) / 2 + 2, y - 6, "1×1" + ("" if level == 5 else ", then +"), GREEN))
        shapes.append(_arrow(RIGHT + half + 26, y, 572, y, GREY))
        shapes.append(_text(536, y - 6, "3×3", GREY))
        shapes.append(_text(578, y + 4, f"RPN and RoIs on P{level}", "#000000", "start"))
        if level < 5:
            shapes.append(_arrow(LEFT, y - TALL / 2, LEFT, rows[level + 1] + TALL / 2 + 4, BLUE))
            shapes.append(_arrow(RIGHT, rows[level + 1] + TALL / 2, RIGHT, y - TALL / 2 - 4, GREEN))
            shapes.append(_text(RIGHT + 8, (y + rows[level + 1]) / 2 + 4, "2× upsampled", GREEN, "start"))
    bottom = rows[2] + 34
    shapes += [
        _text(LEFT, bottom + 6, "bottom-up: ResNet", BLUE),
        _text((LEFT + RIGHT) / 2, bottom + 6, "lateral", GREEN),
        _text(RIGHT, bottom + 6, "top-down", GREEN),
    ]
    return "\n".join([_HEAD, *shapes, "</svg>", ""])


_HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 730 320" role="img" font-family="sans-serif"
     font-size="13"><title>A feature pyramid network</title>
<rect width="730" height="320" fill="#ffffff"/>
<defs><marker id="end" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">
<path d="M0 0 L8 4 L0 8 z" fill="context-stroke"/></marker></defs>"""


def _pathway(x: float, rows: Mapping[int, float], letter: str, colour: str) -> list[str]:
    """Its maps as sheets seen from the side, finer ones wider."""
    found = []
    for level, y in rows.items():
        half, tall = WIDTHS[level] / 2, TALL / 2
        points = ((x - half + 14, y - tall), (x + half + 14, y - tall), (x + half - 14, y + tall))
        corners = " ".join(f"{a:g},{b:g}" for a, b in (*points, (x - half - 14, y + tall)))
        style = f'fill="{colour}" fill-opacity="0.14" stroke="{colour}" stroke-width="1.6"'
        found.append(f'<polygon points="{corners}" {style}/>')
        found.append(_text(x, y + 5, f"{letter}{level}", colour, weight="bold"))
    return found


def _arrow(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return (
        f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{colour}" stroke-width="1.6"'
        ' marker-end="url(#end)"/>'
    )


def _text(x: float, y: float, words: str, colour: str, anchor: str = "middle", weight: str = "normal") -> str:
    style = f'fill="{colour}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text x="{x:g}" y="{y:g}" {style}>{words}</text>'


if __name__ == "__main__":
    main()
