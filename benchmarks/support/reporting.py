"""What a benchmark found: facts, tables and figures, on the terminal, as JSON and as SVG.

A benchmark builds one `Report` and ends with `publish`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

_WIDTH = 130  # of what goes to a file


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """A figure beside its target. at_most: whether the target is an upper bound."""

    what: str
    measured: float
    target: float
    at_most: bool

    @property
    def met(self) -> bool:
        return self.measured <= self.target if self.at_most else self.measured >= self.target


class Report:
    """Everything one run found. `data` is what the JSON holds beside facts, tables and targets."""

    def __init__(self, name: str):
        self.name = name
        self.data: dict[str, Any] = {}
        self.figure: str | None = None
        self._facts: dict[str, str] = {}
        self._tables: list[tuple[str, list[str], list[list[str]]]] = []
        self._checked: list[Checked] = []

    def __repr__(self) -> str:
        return f"Report({self.name}, {len(self._tables)} tables)"

    def fact(self, name: str, value: str) -> None:
        """A circumstance under which the figures hold."""
        self._facts[name] = value

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Rows of values; numbers are shown with three significant digits, None as a dash."""
        self._tables.append((title, list(columns), [[_shown(value) for value in row] for row in rows]))

    def check(
        self, what: str, measured: float | None, *, at_most: float | None = None, at_least: float | None = None
    ) -> None:
        """A figure that has a target: one of at_most and at_least. A figure that could not be had is left out."""
        if measured is None:
            return
        target = at_most if at_most is not None else at_least
        assert target is not None
        self._checked.append(Checked(what=what, measured=measured, target=target, at_most=at_most is not None))

    @property
    def checked(self) -> tuple[Checked, ...]:
        return tuple(self._checked)

    def to_json(self) -> bytes:
        """Facts, tables (columns and rows as shown), targets, and the data."""
        tables = [{"title": title, "columns": columns, "rows": rows} for title, columns, rows in self._tables]
        targets = [{**msgspec.to_builtins(item), "met": item.met} for item in self._checked]
        content = {"benchmark": self.name, "facts": self._facts, "tables": tables, "targets": targets, **self.data}
        return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"

    def show(self, console: Console) -> None:
        """Print everything."""
        for name, value in self._facts.items():
            console.print(f"[bold]{name}[/bold]: {value}", highlight=False, soft_wrap=True)
        for title, columns, rows in self._tables:
            console.print(_rich_table(title, columns, rows))
        for item in self._checked:
            sign, verdict = ("<=" if item.at_most else ">="), ("met" if item.met else "MISSED")
            console.print(
                f"{verdict}: {item.what}: {_shown(item.measured)} (wanted {sign} {_shown(item.target)})", soft_wrap=True
            )

    def publish(self, arguments: argparse.Namespace) -> None:
        """Print, and write the files that the arguments of `add_output_arguments` name."""
        console = Console()
        self.show(console if console.is_terminal else Console(width=_WIDTH))
        if arguments.json:
            Path(arguments.json).write_bytes(self.to_json())
        if arguments.svg and self.figure:
            Path(arguments.svg).write_text(self.figure, encoding="utf-8")


def as_markdown(content: dict[str, Any]) -> str:
    """What `Report.to_json` holds, for a page: facts as a list, tables as tables, targets as a list."""
    parts = ["\n".join(f"- {name}: {value}" for name, value in content["facts"].items())]
    for table in content["tables"]:
        columns = table["columns"]
        lines = [columns, ["---", *["--:"] * (len(columns) - 1)], *table["rows"]]
        parts.append(f"{table['title'][:1].upper()}{table['title'][1:]}:")
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    targets = (
        f"- {item['what']}: {_shown(item['measured'])}; wanted {'at most' if item['at_most'] else 'at least'} "
        f"{_shown(item['target'])}: {'met' if item['met'] else '**missed**'}"
        for item in content["targets"]
    )
    return "\n\n".join(part for part in [*parts, "\n".join(targets)] if part)


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """--json and --svg."""
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured")
    parser.add_argument("--svg", metavar="FILE", help="write the figure")


def _rich_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    return table


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
