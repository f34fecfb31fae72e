"""Results as short tables, for a terminal and a notebook."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

WIDTH = 116  # a printed table is at least this many columns wide
NONE = "–"  # stands for a missing number
PERCENT = "%"  # the unit of a fraction that is shown in percent


def with_unit(value: float, unit: str) -> str:
    """A measure as people read it: `91.30%` of a fraction 0.913, `12.4 px`, `3.17`."""
    return f"{value:.2%}" if unit == PERCENT else f"{value:.4g} {unit}".rstrip()


@dataclass(frozen=True)
class Shown:
    """A table and the sentences below it.

    Attributes:
        title: above the table.
        columns: their heads; the first is aligned to the left, the others to the right.
        rows: of one cell for each column.
        notes: sentences, one a line.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def print_to(self, console: Console) -> None:
        """Print to a terminal or a file, without interpreting markup in the texts."""
        table = Table(title=self.title, title_justify="left")
        for number, name in enumerate(self.columns):
            table.add_column(name, justify="right" if number else "left", no_wrap=number > 0)
        for row in self.rows:
            table.add_row(*row)
        console.print(table, markup=False)
        for note in self.notes:
            console.print(note, markup=False, highlight=False, soft_wrap=True)

    def text(self) -> str:
        """The table drawn with characters, without colours."""
        stream = io.StringIO()
        self.print_to(Console(file=stream, width=WIDTH, color_system=None, markup=False))
        return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())

    def html(self) -> str:
        """The table as HTML, for a notebook."""

        def row(cells: Sequence[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(row(cells, "td") for cells in self.rows)
        notes = "<br>".join(html.escape(note) for note in self.notes)
        return (
            f"<table><caption>{html.escape(self.title)}</caption><thead>{row(self.columns, 'th')}</thead>"
            f"<tbody>{body}</tbody></table><p>{notes}</p>"
        )


class Showable:
    """Prints, and renders in a notebook, as the table of `shown`."""

    def shown(self) -> Shown:
        raise NotImplementedError

    def __str__(self) -> str:
        return self.shown().text()

    def _repr_html_(self) -> str:
        return self.shown().html()
