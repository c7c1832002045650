"""How a command becomes another process of Tandem."""

import os
import sys
from typing import NoReturn


def become(module: str, arguments: list[str], environment: dict[str, str]) -> NoReturn:
    """Replace this process by `python -m module`."""
    from cluster.cli.session import CHECKOUT

    environment["PYTHONPATH"] = str(CHECKOUT)
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-P", "-m", module, *arguments], environment)  # noqa: S606 - no shell is wanted
