"""One page for a browser with everything in it, the picture too: it opens anywhere, without a network."""

import base64
import html
from collections.abc import Sequence

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } .wide { overflow-x: auto; }
th, td { padding: .3rem .9rem; text-align: left; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child { padding-left: 0; }
td { font-variant-numeric: tabular-nums; } thead th { border-bottom: 2px solid #888; } tbody th { font-weight: normal; }
img { max-width: 100%; height: auto; }
pre { background: #f5f5f5; padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.members { display: flex; flex-wrap: wrap; gap: 1rem; } .members > div { flex: 1 1 20rem; min-width: 0; }
.fault { color: #a00; font-weight: bold; }
@media (prefers-color-scheme: dark) {
  body { background: #1b1b1b; color: #ddd; } pre { background: #2a2a2a; } th, td { border-color: #444; }
  img { background: #fff; }
}
"""


def html_page(
    title: str,
    sentences: Sequence[str],
    table: Sequence[Sequence[str]],
    picture_png: bytes,
    bindings: Sequence[tuple[str, str]],
    notes: Sequence[str],
) -> str:
    """The page's text.

    sentences: what may be said of the results.
    table: its header first.
    bindings: (member, its lines of gin).
    """
    header, *rows = table
    picture = base64.b64encode(picture_png).decode("ascii")
    cells = "\n".join(
        f"<tr><th scope=row>{_text(name)}</th>{''.join(f'<td>{_text(cell)}</td>' for cell in values)}</tr>"
        for name, *values in rows
    )
    members = "\n".join(f"<div><h3>{_text(name)}</h3><pre>{_text(lines)}</pre></div>" for name, lines in bindings)
    said = "\n".join(
        f"<li{' class=fault' if sentence.startswith('NOT') else ''}>{_text(sentence)}</li>" for sentence in sentences
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{_text(title)}</title>
<style>{_STYLE}</style></head>
<body>
<h1>{_text(title)}</h1>
<ul>
{said}
</ul>
<div class="wide"><table>
<thead><tr>{"".join(f"<th scope=col>{_text(cell)}</th>" for cell in header)}</tr></thead>
<tbody>
{cells}
</tbody></table></div>
<h2>Learning curves</h2>
<img alt="Metric, training loss and learning rate of every member over the steps" src="data:image/png;base64,{picture}">
<h2>What differs between the members</h2>
<div class="members">
{members}
</div>
<h2>How to read it</h2>
<ul>
{"".join(f"<li>{_text(note)}</li>" for note in notes)}
</ul>
</body>
</html>
"""


def _text(text: str) -> str:
    return html.escape(text)
