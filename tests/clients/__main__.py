"""Runs the clients that are named, or all, one after the other; exits with 1 when a call failed."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.clients.installing import NAMES, installed
from tests.clients.played import played_model
from tests.clients.running import Result, calls_of
from tests.support.running_cluster import CHECKOUT, RunningCluster

BUNDLED = CHECKOUT / "models" / "tandem-demo"


@contextmanager
def bundled_model() -> Iterator[str]:
    """The address of a cluster of the bundled model, as users start it."""
    cluster = RunningCluster(compiles=True)
    try:
        cluster.start(BUNDLED)
        yield cluster.url
    finally:
        cluster.close()


def results_of(name: str, given: dict[str, str]) -> list[Result]:
    """What became of a client's calls, said while they are made."""
    print(f"\n{name}", flush=True)
    try:
        results = calls_of(name, installed(name), given)
    except (OSError, RuntimeError) as error:
        results = [Result(call="set up", failure=str(error))]
    for result in results:
        print(f"  {result}", flush=True)
    return results


def table(results: dict[str, list[Result]]) -> str:
    """A line for each client: how many of its calls passed, and which failed."""
    width = max(map(len, results))
    lines = []
    for name, of_client in results.items():
        failed = [result.call for result in of_client if result.failure is not None]
        passed = f"{len(of_client) - len(failed)} of {len(of_client)}"
        lines.append(f"{name:{width}}  {passed:>8}  {', '.join(failed)}".rstrip())
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="launch.sh test --clients", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all where none is named")
    names = parser.parse_args().names or NAMES
    if unknown := sorted(set(names) - set(NAMES)):
        parser.error(f"there is no client {unknown[0]}; choose of {', '.join(NAMES)}")
    with bundled_model() as bundled, played_model() as played:
        given = {"TANDEM_URL": bundled, "PLAYED_URL": played, "MODEL_FOLDER": str(BUNDLED)}
        results = {name: results_of(name, given) for name in names}
    print(f"\n{table(results)}")
    every = [result for of_client in results.values() for result in of_client]
    failed = sum(result.failure is not None for result in every)
    print(f"\n{len(every) - failed} passed, {failed} failed")
    return 1 if failed else 0


sys.exit(main())
