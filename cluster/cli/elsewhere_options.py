"""The option `--host`, by which a command runs on one of the [[hosts]]."""

from collections.abc import Callable
from typing import NoReturn

import click


def on_host(command: Callable[..., None]) -> Callable[..., None]:
    return click.option("--host", metavar="NAME", help="On this one of the [[hosts]], over ssh.")(command)


def on_other_host(host: str, *arguments: str) -> NoReturn:
    """Run a command there and end with its exit code."""
    from cluster.cli.elsewhere import run_there
    from cluster.cli.session import open_session

    click.get_current_context().exit(run_there(open_session(), host, arguments))
