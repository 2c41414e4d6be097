"""Pieces of HTML: everything that comes from a run is escaped here."""

import html
from collections.abc import Mapping, Sequence

Cell = str | tuple[str, str]


def escape(text: object) -> str:
    """`text` safe inside an element or a quoted attribute."""
    return html.escape(str(text))


def section(anchor: str, title: str, content: str) -> str:
    """A titled part of the page."""
    return f'<section id="{anchor}">\n<h2>{escape(title)}</h2>\n{content}\n</section>\n'


def cards(*entries: tuple[str, str, str, str]) -> str:
    """Headline cards of `(title, before, after, note)`."""
    shown = "".join(
        f"<div class=card><h3>{escape(title)}</h3><div class=big><span class=from>{escape(before)} →</span> "
        f"{escape(after)}</div><p>{escape(note)}</p></div>"
        for title, before, after, note in entries
    )
    return f"<div class=cards>{shown}</div>\n"


def not_run(what: str, why: str = "") -> str:
    """A line that says that something was not run."""
    return f"<p class=absent>{escape(what)}: not run{f' ({escape(why)})' if why else ''}.</p>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f"<p{f' class={kind}' if kind else ''}>{escape(text)}</p>"


def note(text: str) -> str:
    """A paragraph in small print."""
    return paragraph(text, "note")


def heading(text: str) -> str:
    """A heading inside a section."""
    return f"<h3>{escape(text)}</h3>"


def figure(figures: Mapping[str, str], name: str, caption: str) -> str:
    """The named figure with its caption; nothing if the run has no data for it."""
    if name not in figures:
        return ""
    svg = figures[name].replace("<svg", f'<svg role="img" aria-label="{escape(caption)}"', 1)
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def table(header: Sequence[Cell], rows: Sequence[Sequence[Cell]], own: Sequence[int] = ()) -> str:
    """A table; a cell is its text, or `(text, attributes)` with attributes as HTML. Rows in `own` stand out."""
    head = "".join(_cell("th", cell) for cell in header)
    body = "".join(
        f"<tr{' class=own' if i in own else ''}>{''.join(_cell('td', cell) for cell in row)}</tr>"
        for i, row in enumerate(rows)
    )
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def folded(summary: str, content: str) -> str:
    """Content that shows on a click."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def code(text: str) -> str:
    """Text as it stands."""
    return f"<pre>{escape(text)}</pre>"


def items(texts: Sequence[str], kind: str = "") -> str:
    """A list."""
    return f"<ul{f' class={kind}' if kind else ''}>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"


def _cell(tag: str, cell: Cell) -> str:
    text, attributes = (cell, "") if isinstance(cell, str) else cell
    return f"<{tag}{f' {attributes}' if attributes else ''}>{escape(text)}</{tag}>"
