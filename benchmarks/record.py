"""Runs the measurements that three pages show and writes their results there: `./launch.sh bench record [NAME ...]`.

The pages are docs/BENCHMARKS.md (speed), docs/RELIABILITY.md (losses) and docs/PLANNING.md (predictions). Each measurement runs in a process of its own,
one after the other. Results are kept as JSON under TANDEM_HOME/benchmarks; a page's part below the marker is written anew from
all that are there, and stays as it is for what is not. The figures beside it go into docs/figures.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.support import machine
from benchmarks.support.reporting import as_markdown

DOCS = machine.CHECKOUT / "docs"
SPEED, LOSSES, PLANNING = DOCS / "BENCHMARKS.md", DOCS / "RELIABILITY.md", DOCS / "PLANNING.md"
ROUTING = DOCS / "ROUTING.md"
FIGURES = DOCS / "figures"
MARKER = "<!-- Everything below is written by ./launch.sh bench record -->"


class Measurement(msgspec.Struct, frozen=True):
    """One section of a page: its heading, the benchmark and its arguments."""

    title: str
    module: str
    arguments: tuple[str, ...] = ()
    page: Path = SPEED

    @property
    def command(self) -> str:
        return " ".join(["./launch.sh bench", self.module, *self.arguments])


_AS_MEASURED = ("--rounds", "3", "--only", "as measured", "--only", "1 worker", "--only", "2 tensor ranks")
MEASUREMENTS = {
    "hop": Measurement("One hop between two stages", "hop"),
    "decode": Measurement("One stream over two stages, 160M, float32", "decode"),
    "decode-bfloat16": Measurement(
        "One stream over two stages, 160M, bfloat16",
        "decode",
        ("--model", "160m-bfloat16", "--rounds", "3", "--prompt-tokens", "512"),
    ),
    "decode-4bit": Measurement(
        "One stream over two stages, 160M, 4-bit",
        "decode",
        ("--model", "160m-4bit", "--rounds", "3", "--prompt-tokens", "512"),
    ),
    "prefill-handover": Measurement("A prompt that two stages read for one, 25M, float32", "prefill_handover"),
    "prefill-handover-160m": Measurement(
        "A prompt that two stages read for one, 160M, float32",
        "prefill_handover",
        ("--model", "160m-float32", "--rounds", "3", "--prompts", "2"),
    ),
    "tensor": Measurement("Two workers as one tensor group, 25M, float32", "tensor", ("--rival",)),
    "tensor-bfloat16": Measurement(
        "Two workers as one tensor group, 25M, bfloat16", "tensor", ("--model", "25m-bfloat16", "--rival")
    ),
    "tensor-160m": Measurement(
        "Two workers as one tensor group, 160M, float32", "tensor", ("--model", "160m-float32", "--rival")
    ),
    "speculation": Measurement("Guesses, bundled model and draft", "speculation"),
    "comparison": Measurement("Eight streams, 25M, bfloat16", "comparison", ("--rounds", "5")),
    "comparison-float32": Measurement(
        "Eight streams, 25M, float32", "comparison", ("--model", "25m-float32", "--rounds", "3")
    ),
    "comparison-4bit": Measurement("Eight streams, 25M, 4-bit", "comparison", ("--model", "25m-4bit", "--rounds", "2")),
    "comparison-160m": Measurement("Eight streams, 160M, float32", "comparison", ("--model", "160m-float32")),
    **{
        f"layout-{of}": Measurement(
            f"Eight streams as policy measured lays them out, 25M, {of}",
            "comparison",
            ("--model", f"25m-{of}", *_AS_MEASURED),
        )
        for of in ("float32", "bfloat16", "4bit")
    },
    "interference": Measurement("A long prompt among running streams", "interference", ("--rounds", "3")),
    "context": Measurement("Time per token against the length of the context", "context"),
    "conversation": Measurement("A conversation, turn by turn", "conversation"),
    "conversation-160m": Measurement(
        "A conversation, turn by turn, 160M, float32", "conversation", ("--model", "160m-float32")
    ),
    "prefix-cost": Measurement("What keeping prefixes costs a load that never repeats", "prefix_cost"),
    "kv-cache": Measurement("For which lengths a KV cache pays", "kv_cache", ("--distributed",)),
    "memory": Measurement("Memory of each worker, model of 1 GB; of ranks, 160M, float32", "memory"),
    "coordinator": Measurement("The coordinator alone", "coordinator"),
    "coordinator-dashboard": Measurement(
        "The coordinator beside an open dashboard", "coordinator", ("--dashboard", "1")
    ),
    "coordinator-8": Measurement("The coordinator alone, eight sequences in a message", "coordinator", ("--rows", "8")),
    "planning": Measurement("The best split over unlike nodes", "planning"),
    "routing": Measurement(
        "Policy measured beside the best strategy in hindsight",
        "routing",
        ("--links", "cable", "wifi", "--streams", "0"),
        page=ROUTING,
    ),
    "routing-load": Measurement(
        "Policy measured beside four streams",
        "routing",
        ("--load-only", "--prompts", "16", "512", "2048"),
        page=ROUTING,
    ),
    "routing-load-25m": Measurement(
        "Policy measured beside four streams, 25M",
        "routing",
        ("--load-only", "--models", "25m-float32", "--prompts", "16", "512", "2048"),
        page=ROUTING,
    ),
    "simulate": Measurement("The cost model, the planner and the schedule, simulated", "simulate"),
    "macs": Measurement("What to expect of common Macs", "simulate", ("--page",), page=PLANNING),
    "kills": Measurement("Workers lost at random moments", "kills", page=LOSSES),
    "kills-again": Measurement(
        "Workers lost at random moments, other ones",
        "kills",
        ("--kills", "48", "--limited-kills", "32", "--seed", "1"),
        page=LOSSES,
    ),
    "rank-losses": Measurement("Ranks of a tensor group killed and stopped", "rank_losses", page=LOSSES),
    "links": Measurement("Faults of the link between two workers", "links", page=LOSSES),
    "restarts": Measurement("The coordinator killed under load", "restarts", page=LOSSES),
    "copies": Measurement("Copies of caches on the next worker", "copies", page=LOSSES),
    "soak": Measurement("20,000 requests with losses", "soak", page=LOSSES),
    "mutations": Measurement("Wrong messages and requests beside a client that is served", "mutations", page=LOSSES),
    "joins": Measurement("A thousand joins that nobody invited", "joins", page=LOSSES),
    "hosts": Measurement("Faults between three hosts", "hosts", page=LOSSES),
    "spread": Measurement("A larger model over three hosts", "spread", page=LOSSES),
    "weights": Measurement(
        "Half of a model of 1 GB from another host", "weights", ("--model", "500m-float16"), page=LOSSES
    ),
    "overload": Measurement("More requests than may wait, and readers that do not read", "overload", page=LOSSES),
}


def measure(name: str, folder: Path, *, quick: bool) -> bool:
    """Run one measurement; whether it ended well."""
    measurement = MEASUREMENTS[name]
    print(f"--- {measurement.title}: {measurement.command}", flush=True)
    figures = folder if quick else FIGURES
    ending = ".quick.json" if quick else ".json"
    outputs = ("--json", str(folder / f"{name}{ending}"), "--svg", str(figures / f"{name}.svg"))
    command = [sys.executable, "-m", f"benchmarks.{measurement.module}", *measurement.arguments, *outputs]
    return (
        subprocess.run([*command, *(["--quick"] if quick else [])], cwd=machine.CHECKOUT, check=False).returncode == 0
    )


def page(before: str, found: dict[str, dict[str, Any]]) -> str:
    """A page: what it said `before` up to its marker, then a section for each result; of what was not found, the old one."""
    head, _, body = before.partition(MARKER)
    old = {section.partition("\n")[0]: section.strip() for section in body.split("### ")[1:]}
    parts = [head.rstrip(), MARKER]
    for name, measurement in MEASUREMENTS.items():
        if name in found:
            parts += [f"### {measurement.title}", f"`{measurement.command}`", as_markdown(found[name])]
            parts += [f"![{measurement.title}](figures/{name}.svg)"] if (FIGURES / f"{name}.svg").exists() else []
        elif measurement.title in old:
            parts.append(f"### {old[measurement.title]}")
    return "\n\n".join(parts) + "\n"


def results(folder: Path, of_page: Path) -> dict[str, dict[str, Any]]:
    """What has been measured for a page, by name."""
    names = [name for name, measurement in MEASUREMENTS.items() if measurement.page == of_page]
    files = {name: folder / f"{name}.json" for name in names}
    return {name: msgspec.json.decode(file.read_bytes()) for name, file in files.items() if file.exists()}


def main() -> int:
    """Measure and write; 1 when a measurement failed."""
    parser = argparse.ArgumentParser(prog="launch.sh bench record", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(MEASUREMENTS)}")
    parser.add_argument("--quick", action="store_true", help="small settings; the pages are left alone")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(MEASUREMENTS):
        parser.error(f"there is no measurement {', '.join(sorted(unknown))}; there are: {', '.join(MEASUREMENTS)}")
    machine.exit_on_sigterm()
    folder = machine.home().root / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    FIGURES.mkdir(parents=True, exist_ok=True)
    failed = [name for name in arguments.names or MEASUREMENTS if not measure(name, folder, quick=arguments.quick)]
    if not arguments.quick:
        for file in sorted({MEASUREMENTS[name].page for name in arguments.names or MEASUREMENTS}):
            file.write_text(page(file.read_text(encoding="utf-8"), results(folder, file)), encoding="utf-8")
    if failed:
        print(f"bench record: {', '.join(failed)} failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
