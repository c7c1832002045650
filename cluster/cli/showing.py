"""How a cluster, a choice and a configuration look to people. Text in, text out; nothing here asks anybody."""

import contextlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from cluster.config import Resolved, is_secret

_EVENTS_SHOWN = 5
# Columns of the table of workers, and from what width on each is shown.
_COLUMNS = {
    "worker": 0, "host": 70, "pid": 120, "state": 0, "layers": 0, "full model": 100, "weights": 50, "KV": 60, "limit": 90,
    "step": 110,
}  # fmt: skip
_BYTES_PER_UNIT = (("GB", 10**9), ("MB", 10**6), ("KB", 10**3))


def stopped_status(note: str | None = None) -> dict[str, Any]:
    """The status of a cluster that does not run: every key of a running one, with nothing in it."""
    status: dict[str, Any] = {
        "state": "stopped",
        "epoch": None,
        "api": None,
        "model": {"id": None, "layers": 0, "bytes": 0},
        "mode": None,
        "policy": None,
        "predicted": None,
        "coordinator": {"pid": None},
        "workers": [],
        "hosts": [],
        "links": [],
        "requests": {"running": 0, "waiting": 0, "finished": 0, "failed": 0, "resumed": 0},
        "cache": {"prompt_tokens": 0, "cached_tokens": 0, "hit_rate": 0.0},
        "events": [],
    }
    return status if note is None else status | {"note": note}


def plan_lines(status: dict[str, Any]) -> list[str]:
    """Model, mode and API address, a line for each worker, and one for each host that is missing."""
    model = status["model"]
    known = model["layers"] is not None
    size = f"{model['layers']} layers, {size_text(model['bytes'])}" if known else "not loaded yet"
    lines = [
        f"model   {model['id']} ({size})",
        f"mode    {status['mode']}, policy {status['policy']}",
        f"API     {status['api']}",
        *_predicted_lines(status.get("predicted")),
    ]
    return [*lines, *map(_worker_line, status["workers"]), *(f"missing {each}" for each in absences(status))]


def _predicted_lines(outlook: dict[str, Any] | None) -> list[str]:
    """What is predicted of the plan, strategy by strategy."""
    if outlook is None:
        return []
    return [
        f"predicted {each['strategy']} on {', '.join(each['workers'])}: {outlook['prompt_tokens']:,} tokens read in "
        f"{each['ttft_s']:.3g} s, then {each['decode_tokens_per_s']:.3g} tokens/s"
        for each in outlook["strategies"]
    ]


def absences(status: dict[str, Any]) -> list[str]:
    """Each host that cannot take part, with why and what mends it."""
    away = {worker["host"]: worker["why_away"] for worker in status["workers"] if worker["why_away"] is not None}
    return [f"{host}: {why}" for host, why in away.items()]


def status_lines(status: dict[str, Any]) -> list[str]:
    """The plain form of `status`."""
    lines = [f"state   {status['state']}"]
    if status.get("note"):
        lines.append(f"note    {status['note']}")
    if status["model"]["id"] is None:
        return lines
    if status.get("epoch") is not None:
        lines.append(f"epoch   {epoch_text(status['epoch'])}")
    requests = ", ".join(f"{count} {name}" for name, count in status["requests"].items() if isinstance(count, int))
    busy = [f"load    {worker['name']}: {_load_text(worker['load'])}" for worker in status["workers"]]
    caches = [f"cache   {worker['name']}: {_cache_text(worker)}" for worker in status["workers"]]
    events = [f"event   {_event_text(event)}" for event in status.get("events", [])[-_EVENTS_SHOWN:]]
    hosts = [f"host    {_host_text(host)}" for host in status.get("hosts", []) if len(status["hosts"]) > 1]
    links = [f"link    {_link_text(link)}" for link in status.get("links", []) if link["in_use"] or link["warning"]]
    known = [*hosts, *links, *busy, *caches, f"reused  {_reuse_text(status)}", f"requests  {requests}", *events]
    return [*lines, *plan_lines(status), *known]


def print_status(status: dict[str, Any]) -> None:
    """A table on a terminal, plain lines elsewhere."""
    if not sys.stdout.isatty() or not status["workers"]:
        print("\n".join(status_lines(status)))
        return
    from rich.console import Console

    console = Console()
    console.print(_picture(status, console.width))


def watched(look: Callable[[], dict[str, Any]], every_s: float, *, as_json: bool) -> None:
    """The status again and again, in place on a terminal, until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        if as_json or not sys.stdout.isatty():
            while True:
                status = look()
                print(
                    json.dumps(status, ensure_ascii=False) if as_json else "\n".join([*status_lines(status), ""]),
                    flush=True,
                )
                time.sleep(every_s)
        from rich.live import Live

        with Live(auto_refresh=False) as live:
            while True:
                live.update(_picture(look(), live.console.width), refresh=True)
                time.sleep(every_s)


def _picture(status: dict[str, Any], width: int) -> Any:
    """Workers as a table, of as many columns as there is room for, and the rest as lines."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    lines = [line for line in status_lines(status) if not status["workers"] or not line.startswith("worker")]
    rest = Text("\n".join(lines))
    if not status["workers"]:
        return rest
    table = Table(title=f"{status['model']['id']}: {status['state']}", title_justify="left")
    columns = [name for name, least in _COLUMNS.items() if width >= least]
    for name in columns:
        table.add_column(name, overflow="fold")
    for worker in status["workers"]:
        cells = _cells(worker)
        table.add_row(*(cells[name] for name in columns))
    return Group(table, rest)


def _cells(worker: dict[str, Any]) -> dict[str, str]:
    memory, oldest_s = worker["memory"], worker.get("oldest_step_s")
    return {
        "worker": worker["name"],
        "host": worker["host"],
        "pid": str(worker["pid"]),
        "state": worker["state"],
        "layers": layers_text(worker["layers"]),
        "full model": "yes" if worker["holds_full_model"] else "no",
        "weights": size_text(memory["weights_bytes"]),
        "KV": size_text(memory["kv_bytes"]),
        "limit": size_text(memory["limit_bytes"]),
        "step": "-" if oldest_s is None else f"{oldest_s:.1f} s",
    }


def explain_lines(choice: dict[str, Any]) -> list[str]:
    """The chosen strategy, why, and what was possible."""
    lines = [
        f"{choice['strategy']}: {choice['reason']}",
        f"{choice['prompt_tokens']} prompt tokens, {choice['max_tokens']} to generate at most",
    ]
    return lines + [f"  {candidate['strategy']:<22}{_verdict(candidate)}" for candidate in choice["candidates"]]


def _verdict(candidate: dict[str, Any]) -> str:
    """Whether a strategy is possible and, as far as that is predicted, how long it would take."""
    if not candidate["feasible"]:
        return f"not possible: {candidate['why_not']}"
    total_s, ttft_s = candidate.get("predicted_total_s"), candidate.get("predicted_ttft_s")
    if total_s is None or ttft_s is None:
        return "possible"
    on = ", ".join(candidate["workers"])
    return f"about {total_s:.3g} s, {ttft_s:.3g} s to the first token, on {on}"


def config_lines(resolved: Resolved) -> list[str]:
    """Every key with its value and where it came from; the keys of the API are not shown."""
    shown = {key: f"{key} = {_config_value(key, resolved.value(key))}" for key in resolved.origins}
    width = max(map(len, shown.values()))
    return [f"{text:<{width}}  # {resolved.origins[key]}" for key, text in shown.items()]


def _config_value(key: str, value: Any) -> str:
    return "(set)" if is_secret(key) and value is not None else _toml(value)


def size_text(size: int | None) -> str:
    """Bytes in the unit that people would use; a dash for none."""
    if size is None:
        return "-"
    for unit, scale in _BYTES_PER_UNIT:
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"


def layers_text(layers: list[int] | None) -> str:
    """A half-open range as its first and last layer."""
    if not layers or layers[0] == layers[1]:
        return "none"
    return f"{layers[0]}-{layers[1] - 1}"


def epoch_text(epoch: int) -> str:
    """An epoch's two halves: which start of the coordinator, and which plan since then."""
    return f"{epoch >> 32}.{epoch & 0xFFFF_FFFF}"


def _worker_line(worker: dict[str, Any]) -> str:
    full = ", holds the full model" if worker["holds_full_model"] else ""
    layers = layers_text(worker["layers"])
    return (
        f"worker  {worker['name']} (pid {worker['pid']}, {worker['state']}): layers {layers}{full}{_step_text(worker)}"
    )


def _step_text(worker: dict[str, Any]) -> str:
    oldest_s = worker.get("oldest_step_s")
    return "" if oldest_s is None else f", at a step for {oldest_s:.1f} s"


def _host_text(host: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in host["versions"].items())
    return (
        f"{host['name']} at {host['address']}: {host['chip']}, {size_text(host['memory_bytes'])}, {host['os']}, {versions}; "
        f"{', '.join(host['workers'])}"
    )


def _link_text(link: dict[str, Any]) -> str:
    known = link["round_trip_us"] is not None
    figures = f"{link['round_trip_us']} us there and back" if known else "does not answer"
    if link["bytes_per_s"]:
        figures += f", {size_text(link['bytes_per_s'])}/s"
    way = f"{link['interface'] or 'no network of its own'} ({link['kind']}) to {link['address']}"
    warning = f"; {link['warning']}" if link["warning"] else ""
    return f"{link['from']} to {link['to']} over {way}: {figures}{warning}"


def _event_text(event: dict[str, Any]) -> str:
    """When, on this machine's clock, and what."""
    return f"{time.strftime('%H:%M:%S', time.localtime(event['at']))}  {event['what']}"


def _load_text(load: dict[str, Any]) -> str:
    steps = f"{load['steps_per_s']:.1f} steps/s of {load['batch_size']:.1f} sequences"
    return f"{load['busy_share']:.0%} busy, {steps}, {load['queue']} waiting"


def _cache_text(worker: dict[str, Any]) -> str:
    cache = worker["cache"]
    running = f"{size_text(worker['memory']['kv_bytes'])} of {size_text(cache['kv_budget_bytes'])} in use"
    kept = f"{size_text(cache['prefix_bytes'])} of {size_text(cache['prefix_budget_bytes'])} kept"
    return f"{running}, {kept} ({size_text(cache['shared_bytes'])} shared), {size_text(cache['disk_bytes'])} on disk"


def _reuse_text(status: dict[str, Any]) -> str:
    cache = status["cache"]
    return f"{cache['cached_tokens']:,} of {cache['prompt_tokens']:,} prompt tokens ({cache['hit_rate']:.0%})"


def _toml(value: Any) -> str:
    if value is None:
        return "(not set)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str(list(value))
    if isinstance(value, float):
        return f"{value:g}"
    return f'"{value}"' if isinstance(value, str) else str(value)
