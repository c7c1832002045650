"""The command `doctor`: what is wrong or slow, here, in the cluster that runs, or with a model that nobody has loaded yet."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cluster.cli.becoming import become
from cluster.cli.elsewhere_options import on_host, on_other_host
from protocol.errors import TandemError, UsageError

if TYPE_CHECKING:
    from cluster.serving.findings import Finding


@click.command()
@click.argument("model", required=False)
@click.option("--workers", type=click.IntRange(1, 1024), help="With MODEL: how many workers on this machine.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="With MODEL: a TOML file, as for start.")
@click.option("--architectures", is_flag=True, help="How each architecture of mlx-lm can be split.")
@click.option("--verify", "verifies", is_flag=True, help="Whether each worker of the running cluster computes right.")
@on_host
def doctor(
    model: str | None,
    workers: int | None,
    config_file: Path | None,
    host: str | None,
    *,
    architectures: bool,
    verifies: bool,
) -> None:
    """Check this machine, what runs, or a model before it is loaded.

    Ends with what to do next.

    With MODEL, a directory or a hub id: whether it fits, how it would be split, and what is slow here, without loading it.
    """
    if host is not None and verifies:
        raise UsageError("--verify is about every worker of the cluster that runs here; leave --host out")
    if model is not None and (host is not None or architectures or verifies):
        raise UsageError("MODEL stands alone: leave --host, --architectures and --verify out")
    if model is None and (workers is not None or config_file is not None):
        raise UsageError("--workers and --config need a MODEL")
    if host is not None:
        on_other_host(host, "doctor", *(["--architectures"] if architectures else []))
    if architectures:
        become("workers.model.inspection", ["--all"], dict(os.environ))
    _report(_about_model(model, workers, config_file) if model is not None else _about_here(verifies=verifies))


def _about_here(*, verifies: bool) -> "Iterator[Finding]":
    from cluster.cli.doctor import examine
    from cluster.cli.session import open_session
    from cluster.cli.verifying import verify

    return (verify if verifies else examine)(open_session())


def _about_model(model: str, workers: int | None, config_file: Path | None) -> "Iterator[Finding]":
    from cluster.cli.fitting import foresee
    from cluster.cli.session import open_session
    from cluster.config import Flags

    session = open_session()
    session.home.create()
    resolved = session.with_model(session.settings(config_file, Flags(model=model, workers=workers)))
    return foresee(session, resolved.settings, counts_running=workers is None and config_file is None)


def _report(findings: "Iterator[Finding]") -> None:
    """Print each as it is found. Raises TandemError where something is a problem."""
    num_problems = 0
    for finding in findings:
        print(finding.line, flush=True)
        num_problems += finding.verdict == "problem"
    if num_problems:
        raise TandemError(
            f"{num_problems} problem{'s' if num_problems > 1 else ''} found; the lines above say what to do"
        )
