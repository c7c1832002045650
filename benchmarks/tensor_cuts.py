"""Whether models that are cut into tensor ranks answer as whole ones do, at what share of the weights and with how many exchanges.

For each architecture of mlx-lm a tiny random model in float32, whole and cut into ranks that are threads: the largest difference
between two logits (of prompts at once, in chunks and without a cache), and whether 24 greedy tokens after each prompt are the same.
The cuts are derived as for a real model, see `workers/tensor/trying.py`.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.support import machine
from benchmarks.support.figures import Bar, bar_chart
from benchmarks.support.main import main
from benchmarks.support.reporting import Report
from workers import zoo

CASES_PER_PROCESS = 12
MOST_DIFFERENT = 2e-5
# Of the architectures that run here, at how many ranks.
LEAST_RIGHT = {2: 118 / 122, 4: 100 / 122}
# One of each family of cuts: plain and shared key heads, one key head, fused projections, experts, latents, norms over all heads,
# gated deltas, convolutions, what is only gathered, keys of other layers, and quantized.
SAMPLE = (
    "qwen3:3", "qwen3_next:3", "gemma4_text:2", "gpt_bigcode:2", "phi3:4", "mixtral:4", "deepseek_v3:2", "olmo2:2", "mamba2:2",
    "afm7:2", "gpt_oss:2:4bit",
)  # fmt: skip


def trials(cases: Sequence[str], lengths: Sequence[int]) -> dict[str, dict[str, Any]]:
    """What came of each case, see `benchmarks.support.cut_trial`; a process that ended before its time is one, too."""
    found: dict[str, dict[str, Any]] = {}
    for first in range(0, len(cases), CASES_PER_PROCESS):
        some = list(cases[first : first + CASES_PER_PROCESS])
        while some:
            ended = subprocess.run(
                [sys.executable, "-m", "benchmarks.support.cut_trial", ",".join(map(str, lengths)), *some],
                env=os.environ | {"MLX_DISABLE_COMPILE": "1"},
                capture_output=True,
                text=True,
                check=False,
            )
            lines = [line for line in ended.stdout.splitlines() if line.startswith("{")]  # mlx-lm prints as well
            said = {outcome.pop("case"): outcome for outcome in map(json.loads, lines)}
            if len(said) < len(some):
                said[some[len(said)]] = {"failed": f"ended with {ended.returncode}: {ended.stderr[-300:]}"}
            found |= said
            some = some[len(said) :]
    return found


def is_right(outcome: dict[str, Any]) -> bool:
    return outcome.get("same_ids", False) and outcome["difference"] <= MOST_DIFFERENT


def run(arguments: argparse.Namespace) -> Report:
    """Every architecture at each number of ranks."""
    report = Report("tensor-cuts")
    report.fact("machine", machine.describe())
    report.fact("prompts", f"random, of {', '.join(map(str, arguments.lengths))} tokens; 24 greedy tokens after each")
    cases = arguments.cases or [f"{name}:{size}" for size in arguments.ranks for name in zoo.architectures()]
    found = trials(cases, arguments.lengths)
    by_size: dict[int, dict[str, dict[str, Any]]] = {}
    for case, outcome in found.items():
        name, size, *bits = case.split(":")
        by_size.setdefault(int(size), {})[":".join([name, *bits])] = outcome
    for size, outcomes in by_size.items():
        _add(report, size, outcomes)
    report.data["outcomes"] = found
    shares = [(case, outcome["share"]) for case, outcome in found.items() if is_right(outcome)]
    report.figure = bar_chart("Share of the layers' weights on a rank", "of all", [Bar(*share) for share in shares])
    return report


def _add(report: Report, size: int, outcomes: dict[str, dict[str, Any]]) -> None:
    rows = [
        [
            name,
            outcome.get("difference"),
            _said(outcome),
            outcome.get("share"),
            outcome.get("exchanges"),
            _ways(outcome),
        ]
        for name, outcome in outcomes.items()
    ]
    report.table(
        f"{size} ranks",
        ["architecture", "largest difference", "same ids", "share", "exchanges a layer", "cut by"],
        rows,
    )
    right = [outcome for outcome in outcomes.values() if is_right(outcome)]
    if right:
        shares = [outcome["share"] for outcome in right]
        report.fact(f"share at {size} ranks", f"{statistics.median(shares):.3f} (median), {max(shares):.3f} (largest)")
    able = [outcome for outcome in outcomes.values() if "not_run" not in outcome]
    least = math.ceil(LEAST_RIGHT.get(size, 1.0) * len(able))
    report.check(f"of {len(able)} that run here, right at {size} ranks", len(right), at_least=least)


def _said(outcome: dict[str, Any]) -> str:
    for word in ("not_run", "refused", "failed"):
        if word in outcome:
            return f"{word.replace('_', ' ')}: {outcome[word][:60]}"
    return "yes" if outcome["same_ids"] else "NO"


def _ways(outcome: dict[str, Any]) -> str:
    return ", ".join(sorted({kinds[0] for kinds in outcome.get("kinds", {}).values()}))


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--lengths", type=int, nargs="+", default=[300, 37], help="of the prompts, in tokens")
    parser.add_argument("--cases", nargs="+", metavar="ARCHITECTURE:RANKS[:4bit]", help="these alone")


if __name__ == "__main__":
    raise SystemExit(main("tensor-cuts", __doc__, options, run, quick={"cases": list(SAMPLE), "lengths": [70]}))
