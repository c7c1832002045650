"""The status of a cluster on a terminal: a row for each worker with what it holds and bars of its work and memory, then the rest."""

import contextlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from cluster.cli.showing import layers_text, size_text
from cluster.cli.status_text import rest_lines, short_plan_lines, status_lines

# Columns of the table, and from what width on each is shown.
_COLUMNS = {
    "worker": 0, "state": 0, "layers": 0, "works": 0, "memory": 76, "whole model": 90, "steps/s": 102, "waiting": 112, "host": 124,
}  # fmt: skip
_BAR = 10
_FULL, _EMPTY, _PLAIN_FULL, _PLAIN_EMPTY = "█", "░", "#", "."


def print_status(status: dict[str, Any], *, wide: bool = False) -> None:
    """A table on a terminal, plain lines elsewhere and where everything is wanted."""
    if wide or not sys.stdout.isatty() or not status["workers"]:
        print("\n".join(status_lines(status, wide=wide)))
        return
    from rich.console import Console

    console = Console()
    console.print(picture(status, console.width, encoding=console.encoding))


def watched(look: Callable[[], dict[str, Any]], every_s: float, *, as_json: bool, wide: bool) -> None:
    """The status again and again, in place on a terminal, until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        if as_json or not sys.stdout.isatty():
            while True:
                status = look()
                text = (
                    json.dumps(status, ensure_ascii=False)
                    if as_json
                    else "\n".join([*status_lines(status, wide=wide), ""])
                )
                print(text, flush=True)
                time.sleep(every_s)
        from rich.live import Live
        from rich.text import Text

        with Live(auto_refresh=False) as live:
            while True:
                status, console = look(), live.console
                told = Text("\n".join(status_lines(status, wide=True))) if wide else None
                live.update(told or picture(status, console.width, encoding=console.encoding), refresh=True)
                time.sleep(every_s)


def picture(status: dict[str, Any], width: int, *, encoding: str = "utf-8") -> Any:
    """What a terminal of so many columns shows."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    if not status["workers"]:
        return Text("\n".join(status_lines(status)))
    head = [f"state   {status['state']}", *short_plan_lines(status)]
    table = Table(box=box.SIMPLE_HEAD if encoding.startswith("utf") else box.ASCII, pad_edge=False)
    columns = [name for name, least in _COLUMNS.items() if width >= least]
    for name in columns:
        table.add_column(name, overflow="fold")
    for worker in status["workers"]:
        cells = _cells(worker, encoding)
        table.add_row(*(cells[name] for name in columns))
    return Group(Text("\n".join(head)), table, Text("\n".join(rest_lines(status))))


def bar(share: float, encoding: str = "utf-8") -> str:
    """Such as "███░░░░░░░  28%"."""
    full, empty = (_FULL, _EMPTY) if encoding.startswith("utf") else (_PLAIN_FULL, _PLAIN_EMPTY)
    num_full = round(min(max(share, 0.0), 1.0) * _BAR)
    return f"{full * num_full}{empty * (_BAR - num_full)} {share:>4.0%}"


def _cells(worker: dict[str, Any], encoding: str) -> dict[str, str]:
    memory, load = worker["memory"], worker["load"]
    limit, used = memory["limit_bytes"], memory["weights_bytes"] + memory["kv_bytes"] + worker["cache"]["prefix_bytes"]
    return {
        "worker": worker["name"],
        "host": worker["host"],
        "state": worker["state"],
        "layers": layers_text(worker["layers"]),
        "whole model": "yes" if worker["holds_full_model"] else "no",
        "works": bar(load["busy_share"], encoding),
        "memory": f"{bar(used / limit if limit else 0.0, encoding)} of {size_text(limit)}",
        "steps/s": f"{load['steps_per_s']:.1f}",
        "waiting": str(load["queue"]),
    }
