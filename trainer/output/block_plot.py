"""A curve as blocks of text, for the terminal."""

import sys
from collections.abc import Sequence

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_ASCII = " ...:::##"  # for a terminal that has no blocks


def block_plot(values: Sequence[float], height: int = 4) -> list[str]:
    """`height` lines of one character a value, from the highest on down; the ground is 0.

    The lines have no axis. A value above 0 shows at least as the lowest block.
    """
    top = max(values, default=0.0)
    blocks = _EIGHTHS if _can_show(_EIGHTHS) else _ASCII
    eighths = [round(8 * height * value / top) if top else 0 for value in values]
    filled = [max(number, 1) if value > 0 else 0 for number, value in zip(eighths, values, strict=True)]
    return [
        "".join(blocks[min(max(number - 8 * row, 0), 8)] for number in filled).rstrip()
        for row in reversed(range(height))
    ]


def _can_show(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
