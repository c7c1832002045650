"""What a look at a running cluster finds of its groups, in words: what a sum costs, whether a group pays, and whether one would."""

from collections.abc import Iterator
from typing import Any

from cluster.serving.findings import Finding
from strategy.group_sums import SUMS_PER_LAYER, dearest_sum_s


def sums_clause(group: dict[str, Any]) -> str | None:
    """What the ranks of a group exchange for a token; None where that is nothing."""
    sums = group["sums"]
    if sums is None:
        return None
    token_ms = sums["per_token"] * sums["us"] / 1e3
    return f"a sum over {sums['transport']} takes {sums['us'] / 1e3:.3g} ms, the {sums['per_token']} of a token {token_ms:.3g} ms"


def stages_text(group: dict[str, Any]) -> str:
    """The workers of a group, stage by stage."""
    workers, ranks = group["workers"], group["ranks"]
    return ", then ".join(", ".join(workers[first : first + ranks]) for first in range(0, len(workers), ranks))


def pays_clause(group: dict[str, Any]) -> str | None:
    """How fast a group decodes beside its first worker alone; None where that was not measured."""
    if group["speed"] is None or group["alone"] is None:
        return None
    times = group["speed"]["decode_tokens_per_s"] / group["alone"]["decode_tokens_per_s"]
    return f"one stream is {times:.3g} times as fast as on {group['workers'][0]} alone"


def groups(status: dict[str, Any]) -> Iterator[Finding]:
    """Of the groups that there are; where the configuration names none, of those which would be nearest."""
    for group in status["groups"]:
        yield _of(group)
        if group["sums"] is not None and group["sums"]["warning"] is not None:
            names = ", ".join(group["workers"])
            yield Finding(
                verdict="warning",
                text=f"{names} exchange over {group['sums']['transport']}: {group['sums']['warning']}",
            )
    if status["why_no_group"] is not None:
        yield Finding(verdict="warning", text=f"no workers compute together: {status['why_no_group']}")
    elif not status["groups"]:
        yield from _would_pay(status)


def _of(group: dict[str, Any]) -> Finding:
    """Whether a group pays, as far as that was measured."""
    pays = pays_clause(group)
    known = ", ".join(filter(None, (sums_clause(group), pays)))
    text = f"{stages_text(group)} compute together" + (f": {known}" if known else "")
    if pays is None:
        return Finding(verdict="ok", text=f'{text}; with `strategy.policy = "measured"` it is timed whether that pays')
    if group["speed"]["decode_tokens_per_s"] > group["alone"]["decode_tokens_per_s"]:
        return Finding(verdict="ok", text=f"{text}: the group pays")
    half_ms = 1e3 / group["alone"]["decode_tokens_per_s"] * (1 - 1 / group["ranks"])
    why = f"of the time of one alone {half_ms:.3g} ms a token can be saved at most"
    advice = "a faster link or a larger model would change that, else leave the group out of [[groups]]"
    return Finding(verdict="warning", text=f"{text}: the group does not pay, since {why}; {advice}")


def _would_pay(status: dict[str, Any]) -> Iterator[Finding]:
    """Of the two workers with the quickest link, which is taken for what a sum over it costs."""
    measured = [link for link in status["links"] if link["in_use"] and link["round_trip_us"] is not None]
    layers = status["model"]["layers"]
    if not measured or not layers:
        return
    link = min(measured, key=lambda link: link["round_trip_us"])
    pair = (link["from"], link["to"])
    sum_s = link["round_trip_us"] / 1e6
    text = (
        f"a sum between {pair[0]} and {pair[1]} would take about the {sum_s * 1e3:.3g} ms of their round trip, and a token "
        f"{SUMS_PER_LAYER * layers} of them"
    )
    alone_s = _alone_s(status["workers"], pair)
    if alone_s is None:
        most = dearest_sum_s(1.0, layers) / sum_s
        yield Finding(
            verdict="ok",
            text=f"{text}: a group of them pays, by this estimate, where one alone decodes at most {most:.3g} tokens/s",
        )
    elif sum_s < dearest_sum_s(alone_s, layers):
        advice = f'`[[groups]] workers = ["{pair[0]}", "{pair[1]}"]` tries it'
        yield Finding(verdict="ok", text=f"{text}: a group of them would pay, by this estimate; {advice}")
    else:
        saved = f"a token takes {alone_s * 1e3:.3g} ms on one alone, of which half can be saved"
        yield Finding(verdict="ok", text=f"{text}: a group of them would not pay, by this estimate, since {saved}")


def _alone_s(workers: list[dict[str, Any]], pair: tuple[str, str]) -> float | None:
    """What a token takes on the quicker of two workers with the full model; None where that was not measured."""
    speeds = [worker["speed"] for worker in workers if worker["name"] in pair and worker["speed"] is not None]
    rates = [speed["full_model"]["decode_tokens_per_s"] for speed in speeds if speed["full_model"] is not None]
    return 1 / max(rates) if rates and max(rates) > 0 else None
