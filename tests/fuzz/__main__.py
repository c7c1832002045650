"""Looks for bytes that break something, guided by what they reach: `python -m tests.fuzz NAME [--seconds N]`.

Needs atheris (`pip install atheris`; Linux, or LLVM's clang on macOS), which no test needs: what it found stays in
`corpus/NAME`, and `test_corpus` tries that.
"""

import argparse
import sys

import atheris  # type: ignore[import-not-found]

with atheris.instrument_imports(
    include=["cluster", "protocol", "workers.engine", "workers.cache.disk_tier", "msgpack"]
):
    from tests.fuzz.targets import CORPUS, TARGETS


def main() -> None:
    """Run until the time is over or something breaks, whose bytes are left in the folder of the corpus."""
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=1200)
    arguments = parser.parse_args()
    corpus = CORPUS / arguments.name
    options = [f"-max_total_time={arguments.seconds}", "-max_len=4096", "-timeout=10", f"-artifact_prefix={corpus}/"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], TARGETS[arguments.name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
