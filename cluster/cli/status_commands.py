"""The commands `status` and `wait`: how a cluster is, now, from now on, or once it is ready."""

import json
import time

import click

_NOT_READY = 3
_EVERY_S = 1.0


@click.command()
@click.option("-o", "--output", type=click.Choice(["json", "wide"]), help="One JSON object, or all that is known.")
@click.option("--json", "as_json", is_flag=True, help="As -o json.")
@click.option("--watch", is_flag=True, help="Show it anew each second, until Ctrl-C.")
def status(output: str | None, *, as_json: bool, watch: bool) -> None:
    """The cluster as it is now; exit code 3 when it is not ready."""
    from cluster.cli.session import open_session
    from cluster.cli.status_picture import print_status, watched

    session, wide = open_session(), output == "wide"
    as_json = as_json or output == "json"
    if watch:
        watched(session.status, _EVERY_S, as_json=as_json, wide=wide)
        return
    report = session.status()
    if as_json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        print_status(report, wide=wide)
    if report["state"] != "ready":
        click.get_current_context().exit(_NOT_READY)


@click.command()
@click.option("--for", "wanted", type=click.Choice(["ready", "stopped"]), default="ready", show_default=True)
@click.option("--timeout", "timeout_s", type=click.FloatRange(0.0), metavar="SECONDS", help="How long at most.")
def wait(wanted: str, timeout_s: float | None) -> None:
    """Wait until the cluster is ready, or stopped.

    Exit code 3 when it is not in time.
    """
    from cluster.cli.session import open_session

    session = open_session()
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while (state := session.status()["state"]) != wanted:
        if deadline is not None and time.monotonic() >= deadline:
            session.terminal.note(f"tandem: The cluster is {state}, not {wanted}.")
            click.get_current_context().exit(_NOT_READY)
        session.terminal.progress(f"the cluster is {state}; waiting until it is {wanted}")
        time.sleep(0.1)
    session.terminal.done()
