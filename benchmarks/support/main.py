"""What every benchmark's process does around its measuring: options, an end on SIGTERM, the report printed and written.

A script gives its docstring, its options and `run`; it parses nothing itself.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from benchmarks.support import machine
from benchmarks.support.reporting import Report, add_output_arguments
from protocol.errors import TandemError

Options = Callable[[argparse.ArgumentParser], None]
Run = Callable[[argparse.Namespace], Report | Coroutine[Any, Any, Report]]


def main(name: str, doc: str | None, options: Options, run: Run, quick: Mapping[str, Any]) -> int:
    """Run the benchmark `name` of `./launch.sh bench`; the exit code.

    doc: the script's docstring, whose first line says what it measures; options: adds what the script takes besides
    --quick, --json and --svg; run: measures, now or as a coroutine, and may raise TandemError; quick: what --quick sets.
    """
    parser = argparse.ArgumentParser(prog=f"launch.sh bench {name}", description=(doc or "").partition("\n")[0])
    options(parser)
    parser.add_argument("--quick", action="store_true", help="a small run, to see that everything works")
    add_output_arguments(parser)
    arguments = parser.parse_args()
    if arguments.quick:
        vars(arguments).update(quick)
    machine.exit_on_sigterm()
    try:
        found = run(arguments)
        report = asyncio.run(found) if asyncio.iscoroutine(found) else found
    except TandemError as error:
        print(f"bench {name}: {error}", file=sys.stderr)
        return error.exit_code
    report.publish(arguments)
    return 0
