"""The commands, their options, and the boundary where every error becomes one plain sentence and an exit code.

0: done. 1: it failed. 2: the command line, the environment or the configuration is wrong. 3: `status` found a cluster
that is not ready. 130: interrupted. The commands import what they need when they run, so that `prompt` adds little to
the time of its answer.
"""

import ast
import contextlib
import difflib
import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cluster.cli.becoming import become
from cluster.cli.doctor_command import doctor
from cluster.cli.elsewhere_options import on_host, on_other_host
from cluster.cli.generation_commands import chat, explain, prompt
from cluster.cli.model_commands import models
from cluster.cli.status_commands import status, wait
from cluster.cli.token_commands import token
from cluster.cli.worker_command import worker
from protocol.errors import TandemError, UsageError, as_sentence

if TYPE_CHECKING:
    from cluster.cli.session import Session

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_FOREGROUND_POLL_S = 0.5
_WHOLE = 200  # letters, more than any first sentence has
_PLAIN = {"ignore_unknown_options": True, "help_option_names": [], "allow_interspersed_args": False}


def main(arguments: Sequence[str]) -> int:  # noqa: PLR0911 - one return for each kind of ending
    """Run one command; returns the exit code."""
    signal.signal(signal.SIGTERM, _end_on_signal)
    signal.signal(signal.SIGHUP, _end_on_signal)
    try:
        exit_code = commands.main(list(arguments), prog_name="launch.sh", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return 2
    except click.ClickException as error:
        return _complain(_clause(error), 2)
    except TandemError as error:
        return _complain(str(error), error.exit_code, error.param)
    except (click.exceptions.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        # The reader of our output went away, which is its right; Python must not complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001 - the process boundary: a bug, said plainly, with its trace in a file
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            place = error.filename or "Tandem's state"
            return _complain(
                f"{place} cannot be written ({error.strerror}); make room, or set TANDEM_HOME to another folder", 1
            )
        return _complain(f"unexpected {type(error).__name__}: {error}; please report it{_with_trace()}", 1)
    return exit_code or 0


def _with_trace() -> str:
    """Where the trace of the exception being handled was written, if anywhere."""
    import traceback

    with contextlib.suppress(OSError, TandemError):
        home = _session().home
        home.create()
        file = home.logs / "cli.log"
        file.write_text(traceback.format_exc(), encoding="utf-8")
        return f" with {file}"
    return ""


def _end_on_signal(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _complain(clause: str, exit_code: int, name: str | None = None) -> int:
    print(f"tandem: {as_sentence(clause, name)}", file=sys.stderr)
    return exit_code


def _clause(error: click.ClickException) -> str:
    """Click's own message, with the command whose help says more."""
    message = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "launch.sh"
    return f"{message[:1].lower()}{message[1:]}; see `./{command} --help`"


class _Commands(click.Group):
    """Commands in the order of their definition; an unknown one is told the nearest."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """Whole sentences, on as many lines as they need."""
        rows = [(name, each.get_short_help_str(_WHOLE)) for name, each in self.commands.items() if not each.hidden]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            nearest = difflib.get_close_matches(args[0], self.commands, n=1)
            asks = f"; did you mean {nearest[0]!r}?" if nearest else ";"
            raise UsageError(f"there is no command {args[0]!r}{asks} `./launch.sh --help` lists them")
        return super().resolve_command(ctx, args)


def _print_version(context: click.Context, _option: click.Parameter, is_asked: bool) -> None:  # noqa: FBT001 - click's
    from protocol.version import described

    if is_asked:
        print(described())
        context.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Which Tandem."
)
def commands() -> None:
    """Tandem answers prompts with a model whose layers are shared by several workers.

    Begin with: ./launch.sh prompt "What is a KV cache?"
    """


def _session() -> "Session":
    from cluster.cli.session import open_session

    return open_session()


def _start_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--port", type=click.IntRange(1, 65535), help="The HTTP port; 8420 by default."),
        click.option("--workers", type=click.IntRange(1, 1024), help="How many workers on this machine."),
        click.option("--model", metavar="DIR_OR_REPO", help="A model directory, or a hub id."),
        click.option("--served-model-name", metavar="NAME", help="What clients call the model."),
        click.option("--log-format", metavar="text|json", help="Of the log files' lines; text by default."),
        click.option("--kv-cache", metavar="KIND", help="The kind of KV cache; see docs/KV_CACHE.md."),
        click.option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path),
            help="A TOML file; configs/local.toml by default.",
        ),
    ):
        command = option(command)
    return command


@commands.command()
@_start_options
@click.option("--replace", is_flag=True, help="Stop a cluster that runs and start this one in its place.")
@click.option("--allow-mixed", is_flag=True, help="Let workers in whose mlx has another patch level.")
@click.option("--foreground", is_flag=True, help="Stay attached; Ctrl-C or SIGTERM stops the cluster.")
def start(config_file: Path | None, *, replace: bool, foreground: bool, **flags: Any) -> None:
    """Start a cluster, or mend one that is not whole.

    Waits until it is ready and prints which worker holds which layers.
    """
    from cluster.cli.mending import start_or_mend
    from cluster.cli.stopping import stop_cluster
    from cluster.config import Flags

    session = _session()
    resolved = session.settings(config_file, Flags(**flags))
    started, found = start_or_mend(session, resolved, replace=replace)
    if started.status is None:
        print(found)
        return
    try:
        _print_ready(started.status, must_be_read=not foreground)
        if foreground:
            _stay(session, started.process)
    except (KeyboardInterrupt, SystemExit):
        if not foreground:
            raise
        print(stop_cluster(session.home, session.terminal), flush=True)


def _print_ready(status: dict[str, Any], *, must_be_read: bool) -> None:
    from cluster.cli.showing import plan_lines

    try:
        print("\n".join(["Tandem is ready.", *plan_lines(status)]), flush=True)
    except BrokenPipeError:
        if must_be_read:
            raise


def _stay(session: "Session", process: Any) -> None:
    """Wait for the cluster to end, which is a failure when it ends badly."""
    import subprocess

    from cluster.cli.stopping import stop_cluster

    while True:
        # A short wait each: a signal that arrives in a long one is only seen at its end.
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = process.wait(_FOREGROUND_POLL_S)
            break
    if status != 0:
        stop_cluster(session.home, session.terminal)
        raise TandemError(f"the cluster ended by itself (status {status}); `./launch.sh logs` says why")


@commands.command()
def stop() -> None:
    """Drain, then stop everything that `start` started."""
    from cluster.cli.stopping import stop_cluster

    session = _session()
    print(stop_cluster(session.home, session.terminal))
    from cluster.cli.installing import kept_running  # on a busy machine this takes a second, and stopping comes first

    for name in kept_running(session):
        print(f"Worker {name} is a service and begins again; `./launch.sh worker --uninstall-service` ends that.")


for command in (status, wait, prompt, chat, explain, worker):
    commands.add_command(command)


@commands.command(hidden=True)
def hosted() -> None:
    """What a coordinator elsewhere runs here over ssh; it speaks on standard input and output."""
    from cluster.cli.hosting import serve

    serve(_session())


commands.add_command(token)
commands.add_command(models)


@commands.command()
@_start_options
def config(config_file: Path | None, **flags: Any) -> None:
    """The configuration in force, with where each value came from.

    Of the cluster that runs or, with options or where none runs, of a start with them.
    """
    from cluster.cli.configuration import config_lines
    from cluster.config import Flags

    print("\n".join(config_lines(_session(), config_file, Flags(**flags))))


@commands.command()
@click.argument("name", required=False)
@click.option("-n", "--lines", "num_lines", type=click.IntRange(1), default=20, show_default=True)
@click.option("-f", "--follow", "following", is_flag=True, help="Go on printing what is appended.")
@on_host
def logs(name: str | None, num_lines: int, host: str | None, *, following: bool) -> None:
    """The ends of the log files.

    NAME is coordinator, supervisor or a worker.
    """
    from cluster.cli.logs import follow, log_files, print_ends

    if following and name is None:
        raise UsageError("--follow needs the NAME of one log, as in ./launch.sh logs --follow coordinator")
    if host is not None:
        on_other_host(host, "logs", "-n", str(num_lines), *(["-f"] if following else []), *([name] if name else []))
    files = log_files(_session().home, name)
    position = print_ends(files, num_lines)
    if following:
        follow(files[0], position)


commands.add_command(doctor)


@commands.command()
@click.argument("seconds", type=click.IntRange(1, 600))
@click.option("-o", "--output", metavar="FILE", default="trace.json", show_default=True, help="- is standard output.")
def trace(seconds: int, output: str) -> None:
    """Record what the running cluster does for SECONDS; docs/TRACING.md says how to read it."""
    from cluster.cli.tracing import trace as record

    record(_session(), seconds, output)


@commands.command(context_settings=_PLAIN)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    """Run a benchmark, or without a NAME list them."""
    from cluster.cli.session import CHECKOUT

    known = sorted(file.stem for file in (CHECKOUT / "benchmarks").glob("[a-z]*.py"))
    names = ", ".join(known).replace("_", "-")
    if not arguments or arguments[0] in ("-h", "--help"):
        print("Usage: launch.sh bench NAME [OPTIONS]\n\nBenchmarks:")
        print(
            "\n".join(f"  {name.replace('_', '-'):<18}{_first_line(CHECKOUT / 'benchmarks' / name)}" for name in known)
        )
        return
    module = arguments[0].replace("-", "_")
    if module not in known:
        raise UsageError(f"there is no benchmark {arguments[0]!r}; there are: {names}")
    become(f"benchmarks.{module}", list(arguments[1:]), dict(os.environ))


def _first_line(module: Path) -> str:
    """What a benchmark says of itself, without running it."""
    said = ast.get_docstring(ast.parse(module.with_suffix(".py").read_text(encoding="utf-8"))) or ""
    return said.partition("\n")[0]


@commands.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Let a shell complete commands.

    As in: eval "$(./launch.sh completion bash)"
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None, shell
    print(kind(commands, {}, "launch.sh", "_LAUNCH_SH_COMPLETE").source())


@commands.command("help")
@click.argument("names", metavar="[COMMAND]", nargs=-1)
@click.pass_context
def help_(context: click.Context, names: tuple[str, ...]) -> None:
    """What a command does and takes."""
    assert context.parent is not None
    found, scope = context.parent.command, context.parent
    for name in names:
        inner = found.get_command(scope, name) if isinstance(found, click.Group) else None
        if inner is None:
            raise UsageError(f"there is no command {' '.join(names)!r}; `./launch.sh --help` lists them")
        found, scope = inner, click.Context(inner, info_name=name, parent=scope)
    print(found.get_help(scope))


@commands.command(context_settings=_PLAIN)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def test(arguments: tuple[str, ...]) -> None:  # noqa: ARG001 - for the help only
    """Run the checks and the tests. Arguments go to pytest alone."""
    raise UsageError("the tests run through the launcher: ./launch.sh test")
