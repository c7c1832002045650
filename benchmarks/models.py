"""Makes the random models that the other benchmarks run: `./launch.sh bench models [NAME ...]`."""

import argparse
import time

from benchmarks.support.machine import model_folder
from benchmarks.support.random_models import SIZES, ensure_model, known_models, num_parameters


def main() -> None:
    """Make the named models, or say which there are."""
    parser = argparse.ArgumentParser(prog="launch.sh bench models", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="SIZE-FORMAT")
    names = parser.parse_args().names
    if not names:
        for name in known_models():
            print(f"{name:16} {num_parameters(SIZES[name.partition('-')[0]]) / 1e6:7.1f} M parameters")
    for name in names:
        started = time.perf_counter()
        directory = ensure_model(name, model_folder())
        size = sum(file.stat().st_size for file in directory.iterdir())
        print(f"{name}: {size / 1e6:.1f} MB in {directory} ({time.perf_counter() - started:.1f} s)")


if __name__ == "__main__":
    main()
