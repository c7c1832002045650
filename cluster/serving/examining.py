"""What a look at a running cluster finds: who is missing, slow, full or idle. Of its status alone; asks nobody."""

import time
from collections.abc import Iterator
from typing import Any

from cluster.planning.progress import amount
from cluster.serving.findings import Finding
from cluster.serving.group_findings import groups

# A step of a healthy cluster takes seconds at most; a cache this full makes requests give way.
_LONG_STEP_S = 10.0
_FULL = 0.9
# When one stage works so much and another so little, the split does not suit them.
_BUSY, _IDLE_SHARE = 0.5, 0.5
_RECENT_S = 3600.0
_LOSS = "lost "


def running(status: dict[str, Any], now: float | None = None) -> Iterator[Finding]:
    """Findings about a cluster that answers; now: seconds since 1970."""
    model = status["model"]
    good = status["state"] in ("ready", "starting")
    text = f"cluster {status['state']} at {status['api']}: {model['id']}, {len(status['workers'])} workers"
    yield Finding(verdict="ok" if good else "warning", text=text)
    yield from within(status, now)


def within(status: dict[str, Any], now: float | None = None) -> Iterator[Finding]:
    """The same, for whoever sees the cluster's state anyway."""
    for clause in absences(status):
        yield Finding(verdict="warning", text=clause)
    for worker in status["workers"]:
        yield from _worker(worker)
    yield from _balance(status["workers"])
    yield from _hosts(status["hosts"])
    for link in status["links"]:
        if link["warning"]:
            yield Finding(verdict="warning", text=f"link from {link['from']} to {link['to']}: {link['warning']}")
    yield from groups(status)
    yield from _past(status, time.time() if now is None else now)


def absences(status: dict[str, Any]) -> list[str]:
    """Each host that cannot take part, with why and what mends it."""
    away = {worker["host"]: worker["why_away"] for worker in status["workers"] if worker["why_away"] is not None}
    return [f"{host}: {why}" for host, why in away.items()]


def _worker(worker: dict[str, Any]) -> Iterator[Finding]:
    name, memory, cache = worker["name"], worker["memory"], worker["cache"]
    if worker["state"] != "ready" and worker["why_away"] is None:
        yield Finding(verdict="warning", text=f"{name} is {worker['state']}; `./launch.sh logs {name}` says why")
    oldest_s = worker.get("oldest_step_s")
    if oldest_s is not None and oldest_s > _LONG_STEP_S:
        yield Finding(
            verdict="warning",
            text=f"{name} has been at one step for {oldest_s:.0f} s; other programs may hold its machine up",
        )
    budget = cache["kv_budget_bytes"]
    if budget and memory["kv_bytes"] > _FULL * budget:
        share = memory["kv_bytes"] / budget
        text = f"{share:.0%} of {amount(budget)} for running requests is in use on {name}: longer ones wait"
        yield Finding(verdict="warning", text=f"{text}; give it more memory_limit, or send shorter or fewer requests")


def _balance(workers: list[dict[str, Any]]) -> Iterator[Finding]:
    """Whether one stage waits for another."""
    shares = {worker["name"]: worker["load"]["busy_share"] for worker in workers if worker["layers"]}
    if len(shares) < 2:
        return
    most, least = max(shares, key=lambda name: shares[name]), min(shares, key=lambda name: shares[name])
    if shares[most] > _BUSY and shares[least] < _IDLE_SHARE * shares[most]:
        text = f"{most} works {shares[most]:.0%} of the time and {least} {shares[least]:.0%}"
        yield Finding(verdict="warning", text=f'{text}: with `strategy.policy = "measured"` layers are split by speed')


def _hosts(hosts: list[dict[str, Any]]) -> Iterator[Finding]:
    """Whether all run the same."""
    for name in ("mlx", "mlx-lm"):
        versions = {host["name"]: host["versions"].get(name) for host in hosts}
        if len(set(versions.values())) > 1:
            told = ", ".join(f"{version} on {host}" for host, version in versions.items())
            yield Finding(
                verdict="warning",
                text=f"{name} is not the same everywhere ({told}): answers may differ; update Tandem there",
            )


def _past(status: dict[str, Any], now: float) -> Iterator[Finding]:
    requests = status["requests"]
    lost = [
        event["what"] for event in status["events"] if event["what"].startswith(_LOSS) and now - event["at"] < _RECENT_S
    ]
    if lost:
        times = "once" if len(lost) == 1 else f"{len(lost)} times"
        yield Finding(
            verdict="warning",
            text=f"something was lost {times} within the hour, at last: {lost[-1]}",
        )
    text = f"requests: {requests['finished']} answered, {requests['failed']} failed, {requests['running']} run, {requests['waiting']} wait"
    yield Finding(verdict="warning" if requests["failed"] else "ok", text=text)
