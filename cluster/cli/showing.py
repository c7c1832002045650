"""How a cluster and a choice look to people. Text in, text out; nothing here asks anybody."""

from typing import Any

from cluster.serving.examining import absences
from cluster.serving.group_findings import pays_clause, stages_text, sums_clause

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
        "groups": [],
        "why_no_group": None,
        "hosts": [],
        "links": [],
        "requests": {"running": 0, "waiting": 0, "finished": 0, "failed": 0, "resumed": 0},
        "cache": {"prompt_tokens": 0, "cached_tokens": 0, "hit_rate": 0.0},
        "guesses": {"draft": None, "proposed": 0, "accepted": 0, "acceptance": None},
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
        *_group_lines(status),
        *predicted_lines(status.get("predicted")),
    ]
    return [*lines, *map(worker_line, status["workers"]), *(f"missing {each}" for each in absences(status))]


def _group_lines(status: dict[str, Any]) -> list[str]:
    """Who computes together, or why nobody does whom the configuration names."""
    why_none = status.get("why_no_group")
    return [_group_line(group) for group in status.get("groups", ())] or (
        [] if why_none is None else [f"group   none: {why_none}"]
    )


def _group_line(group: dict[str, Any]) -> str:
    """Who they are, and what is known of what that costs and gives."""
    known = ", ".join(filter(None, (sums_clause(group), pays_clause(group))))
    return f"group   {stages_text(group)} compute together as tensor-parallel" + (f": {known}" if known else "")


def predicted_lines(outlook: dict[str, Any] | None) -> list[str]:
    """What is predicted of the plan, strategy by strategy."""
    if outlook is None:
        return []
    return [
        f"predicted {each['strategy']} on {', '.join(each['workers'])}: {outlook['prompt_tokens']:,} tokens read in "
        f"{each['ttft_s']:.3g} s, then {each['decode_tokens_per_s']:.3g} tokens/s"
        for each in outlook["strategies"]
    ]


def route_lines(outlook: dict[str, Any] | None, *, each: bool) -> list[str]:
    """What is predicted for one stream on each route of the plan, or on the fastest one of each strategy."""
    routes = outlook.get("routes", ()) if outlook is not None else ()
    if each:
        return [f"route   {', '.join(route['workers'])}: {_rates_text(route)}" for route in routes]
    fastest: dict[str, dict[str, Any]] = {}
    for route in routes:
        fastest.setdefault(route["strategy"], route)
    return [f"route   {strategy}: {_rates_text(route)}" for strategy, route in fastest.items()]


def _rates_text(route: dict[str, Any]) -> str:
    reads, generates = route["prefill_tokens_per_s"], route["decode_tokens_per_s"]
    return f"predicted to read {reads:,.0f} tokens/s and to generate {generates:,.3g} tokens/s"


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


def worker_line(worker: dict[str, Any]) -> str:
    """Who it is and what it holds."""
    full = ", holds the full model" if worker["holds_full_model"] else ""
    layers = layers_text(worker["layers"])
    return (
        f"worker  {worker['name']} (pid {worker['pid']}, {worker['state']}): layers {layers}{full}{_step_text(worker)}"
    )


def _step_text(worker: dict[str, Any]) -> str:
    oldest_s = worker.get("oldest_step_s")
    return "" if oldest_s is None else f", at a step for {oldest_s:.1f} s"
