"""The status of a cluster as lines for people: in words, or with `wide` everything that is known."""

import time
from typing import Any

from cluster.cli.showing import epoch_text, layers_text, plan_lines, route_lines, size_text, worker_line
from cluster.serving.examining import absences

_EVENTS_SHOWN = 5


def status_lines(status: dict[str, Any], *, wide: bool = False) -> list[str]:
    """The plain form of `status`."""
    lines = [f"state   {status['state']}"]
    if status.get("note"):
        lines.append(f"note    {status['note']}")
    if status["model"]["id"] is None:
        return lines
    if wide:
        return [*lines, *_wide(status)]
    workers = [f"worker  {_worker_text(worker)}" for worker in status["workers"]]
    return [*lines, *short_plan_lines(status), *workers, *rest_lines(status)]


def short_plan_lines(status: dict[str, Any]) -> list[str]:
    """The plan without its workers, and its fastest routes."""
    plan = plan_lines(status | {"predicted": None, "workers": []})
    return [*plan, *route_lines(status.get("predicted"), each=False)]


def rest_lines(status: dict[str, Any]) -> list[str]:
    """What is no worker's: who is missing, requests, events."""
    missing = [f"missing {each}" for each in absences(status)]
    links = [
        f"link    {link['from']} to {link['to']}: {link['warning']}" for link in status["links"] if link["warning"]
    ]
    events = [f"event   {_event_text(event)}" for event in status["events"][-_EVENTS_SHOWN:]]
    return [
        *missing,
        *links,
        f"asked   {_requests_text(status['requests'])}",
        f"reused  {_reuse_text(status)}",
        *_guess_lines(status["guesses"]),
        *events,
    ]


def _worker_text(worker: dict[str, Any]) -> str:
    """Of one worker what matters at a glance."""
    whole = ", and the whole model" if worker["holds_full_model"] else ""
    oldest_s = worker.get("oldest_step_s")
    slow = f", at one step for {oldest_s:.1f} s" if oldest_s is not None and oldest_s >= 1.0 else ""
    held = f"layers {layers_text(worker['layers'])}{whole}"
    used = f"{size_text(worker['memory']['kv_bytes'])} of {size_text(worker['cache']['kv_budget_bytes'])}"
    return f"{worker['name']} ({worker['state']}): {held}; computes {worker['load']['busy_share']:.0%} of the time{slow}, {used} taken by requests"


def _requests_text(requests: dict[str, Any]) -> str:
    text = f"{requests['running']} running, {requests['waiting']} waiting, {requests['finished']} answered, {requests['failed']} failed"
    resumed = requests["resumed"]
    return f"{text}, {resumed} went on after a loss" if resumed else text


def _reuse_text(status: dict[str, Any]) -> str:
    cache = status["cache"]
    return f"{cache['cached_tokens']:,} of {cache['prompt_tokens']:,} prompt tokens ({cache['hit_rate']:.0%})"


def _guess_lines(guesses: dict[str, Any]) -> list[str]:
    """What became of guesses at next tokens, where anybody guesses."""
    draft, proposed = guesses["draft"], guesses["proposed"]
    if draft is None and not proposed:
        return []
    by = "" if draft is None else " by lookup" if draft == "lookup" else f" by {draft}"
    share = f" ({guesses['acceptance']:.0%})" if proposed else ""
    return [f"guessed {guesses['accepted']:,} of {proposed:,} next tokens rightly{share}{by}"]


# --- everything


def _wide(status: dict[str, Any]) -> list[str]:
    """Everything that is known, a line each."""
    workers = status["workers"]
    epoch = [] if status["epoch"] is None else [f"epoch   {epoch_text(status['epoch'])}"]
    busy = [f"load    {worker['name']}: {_load_text(worker['load'])}" for worker in workers]
    caches = [f"cache   {worker['name']}: {_cache_text(worker)}" for worker in workers]
    memory = [f"memory  {worker['name']}: {_memory_text(worker['memory'])}" for worker in workers]
    hosts = [f"host    {_host_text(host)}" for host in status["hosts"]]
    links = [f"link    {_link_text(link)}" for link in status["links"]]
    missing = [f"missing {each}" for each in absences(status)]
    asked = [f"asked   {_requests_text(status['requests'])}", f"reused  {_reuse_text(status)}"]
    asked += _guess_lines(status["guesses"])
    events = [f"event   {_event_text(event)}" for event in status["events"]]
    plan = plan_lines(status | {"workers": []})
    return [
        *epoch,
        *plan,
        *route_lines(status["predicted"], each=True),
        *map(worker_line, workers),
        *missing,
        *hosts,
        *links,
        *busy,
        *memory,
        *caches,
        *asked,
        *events,
    ]


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
    use = "" if link["in_use"] else ", not used"
    warning = f"; {link['warning']}" if link["warning"] else ""
    return f"{link['from']} to {link['to']} over {way}: {figures}{use}{warning}"


def _event_text(event: dict[str, Any]) -> str:
    """When, on this machine's clock, and what."""
    return f"{time.strftime('%H:%M:%S', time.localtime(event['at']))}  {event['what']}"


def _load_text(load: dict[str, Any]) -> str:
    steps = f"{load['steps_per_s']:.1f} steps/s of {load['batch_size']:.1f} sequences"
    return f"{load['busy_share']:.0%} busy, {steps}, {load['queue']} waiting"


def _memory_text(memory: dict[str, Any]) -> str:
    return f"{size_text(memory['weights_bytes'])} of weights, limit {size_text(memory['limit_bytes'])}"


def _cache_text(worker: dict[str, Any]) -> str:
    cache = worker["cache"]
    running = f"{size_text(worker['memory']['kv_bytes'])} of {size_text(cache['kv_budget_bytes'])} in use"
    kept = f"{size_text(cache['prefix_bytes'])} of {size_text(cache['prefix_budget_bytes'])} kept"
    return f"{running}, {kept} ({size_text(cache['shared_bytes'])} shared), {size_text(cache['disk_bytes'])} on disk"
