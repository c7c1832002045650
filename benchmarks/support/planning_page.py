"""The tables of docs/PLANNING.md: common Macs, models and links, one Mac alone and two together. Predictions of the simulator."""

from benchmarks.support.model_shapes import SHAPES, ModelShape
from benchmarks.support.reporting import Report
from benchmarks.support.simulated_macs import CABLES, MACS, Cable, Mac, Shares, fits, shares, ways
from strategy.cost import RequestWork, Times

SHOWN = RequestWork(prompt_tokens=8192, generated_tokens=256)
# Name, what is asked.
ANSWERS = {
    "chat": RequestWork(prompt_tokens=512, generated_tokens=512),
    "document": RequestWork(prompt_tokens=16384, generated_tokens=256),
}
TOGETHER = ("distributed-cached", "distributed-prefill", "tensor-parallel")
_BRIEFLY = dict(zip(("single-device-cached", *TOGETHER), ("alone", "pipeline", "prefill", "tensor"), strict=True))
# These have Thunderbolt 4; all others 5.
_OLDER = {"M1 Max, 64 GB", "M2 Ultra, 192 GB"}
_LINKED = "M4 Max, 128 GB"
# Gained less, a second Mac is not worth naming.
_WORTH_IT = 1.05


def tables(report: Report) -> None:
    """All of them."""
    reached = shares()
    _facts(report, reached)
    report.table(
        "links as they are taken",
        ["link", "GB/s", "adds to a step, ms", "one sum, ms"],
        [[cable.name, cable.bytes_per_s / 1e9, cable.step_s * 1e3, cable.sum_s * 1e3] for cable in CABLES],
    )
    names = list(SHAPES)
    report.table("one Mac alone", ["Mac", *names], [_alone(mac, reached) for mac in MACS])
    rows = [_together(mac, best_cable(mac), way, reached, mac.name) for mac in MACS for way in TOGETHER]
    report.table("two such Macs, by Thunderbolt 5 or 4", ["two of", "strategy", *names], rows)
    mac = next(mac for mac in MACS if mac.name == _LINKED)
    linked = [name for name, shape in SHAPES.items() if fits(mac, shape)]
    rows = [_together(mac, cable, way, reached, cable.name)[: 2 + len(linked)] for cable in CABLES for way in TOGETHER]
    report.table(f"two {mac.name}, by link", ["link", "strategy", *linked], rows)
    for name, work in ANSWERS.items():
        title = f"{name}: {work.prompt_tokens:,} tokens read, {work.generated_tokens:,} generated; the fastest way, times one Mac"
        rows = [[mac.name, *(_best(mac, shape, work, reached) for shape in SHAPES.values())] for mac in MACS]
        report.table(title, ["two of", *names], rows)


def _facts(report: Report, reached: Shares) -> None:
    report.fact(
        "cells",
        f"seconds until {SHOWN.prompt_tokens:,} tokens are read, then tokens per second; 4-bit weights, one stream",
    )
    report.fact("reached of the bandwidth", f"{reached.weights:.0%} for weights, {reached.kv:.0%} for KV")
    report.fact("reached of the arithmetic", f"{reached.reading:.0%} in reading")
    experts = f"{reached.expert_weights:.0%} of that in generating, {reached.expert_reading:.0%} in reading"
    report.fact("mixtures of experts", experts)
    report.fact("each layer of each step", f"{reached.layer_s * 1e6:.0f} microseconds beside its weights")


def best_cable(mac: Mac) -> Cable:
    """Thunderbolt 5, or 4 where a Mac has no better one."""
    name = "Thunderbolt 4" if mac.name in _OLDER else "Thunderbolt 5"
    return next(cable for cable in CABLES if cable.name == name)


def _alone(mac: Mac, reached: Shares) -> list[str | None]:
    found = [ways(mac, shape, best_cable(mac), SHOWN, reached) for shape in SHAPES.values()]
    return [mac.name, *(_shown(each.get("single-device-cached")) for each in found)]


def _together(mac: Mac, cable: Cable, way: str, reached: Shares, label: str) -> list[str | None]:
    found = [ways(mac, shape, cable, SHOWN, reached) for shape in SHAPES.values()]
    return [label, way, *(_shown(each.get(way)) for each in found)]


def _shown(times: Times | None) -> str | None:
    if times is None:
        return None
    ttft_s, rate = times.read_s + times.first_s, 1 / times.step_s
    return f"{_brief(ttft_s, 100)} / {_brief(rate, 10)}"


def _brief(value: float, whole_from: float) -> str:
    return f"{value:.0f}" if value >= whole_from else f"{value:.1f}"


def _best(mac: Mac, shape: ModelShape, work: RequestWork, reached: Shares) -> str | None:
    """The strategy with the least total by each Mac's best cable, and how much faster than one Mac; in seconds where the model
    is too large for one.
    """
    found = ways(mac, shape, best_cable(mac), work, reached)
    if not found:
        return None
    totals = {way: total_s(times, work) for way, times in found.items()}
    best = min(totals, key=lambda way: totals[way])
    if "single-device-cached" not in totals:
        return f"{_BRIEFLY[best]}, {totals[best]:.0f} s"
    gain = totals["single-device-cached"] / totals[best]
    return f"{_BRIEFLY[best]} {gain:.2f}" if gain >= _WORTH_IT else "alone"


def total_s(times: Times, work: RequestWork) -> float:
    """From the question to the last token."""
    return times.read_s + times.first_s + (work.generated_tokens - 1) * times.step_s
