"""The commands `prompt`, `chat` and `explain`, with what may be asked of an answer."""

import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from cluster.cli.options import Options

STRATEGIES = (
    "single-device-cached",
    "distributed-no-cache",
    "distributed-cached",
    "distributed-prefill",
    "tensor-parallel",
)


def _finite(_ctx: click.Context, _parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number")
    return value


def _share(name: str, text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(name, type=click.FloatRange(0.0, 1.0), callback=_finite, help=text)


def _generation_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--conversation", metavar="ID", help="Requests with one ID may share a cache."),
        click.option("--strategy", type=click.Choice(STRATEGIES), help="Ask for one strategy."),
        click.option("--raw", is_flag=True, help="No chat template."),
        click.option("--model", metavar="NAME", help="By what name the model is asked for."),
        click.option("--stop", metavar="TEXT", multiple=True, help="Where an answer ends; several times for several."),
        click.option("--seed", type=click.IntRange(0), help="Make sampling repeatable."),
        _share("--min-p", "Of the likeliest token's probability, what others need."),
        click.option("--top-k", type=click.IntRange(0), help="So many of the likeliest tokens; 0 for all."),
        _share("--top-p", "The likeliest tokens with this probability together."),
        click.option(
            "--temperature", type=click.FloatRange(0.0), callback=_finite, help="0 takes the likeliest token."
        ),
        click.option("--max-tokens", type=click.IntRange(1), help="How many tokens to generate at most."),
        click.option("--system", metavar="TEXT", help="What the model is told before all else."),
    ):
        command = option(command)
    return command


def _options(**given: Any) -> "Options":
    from cluster.cli.options import Options

    return Options(**given)


def _words(text: tuple[str, ...]) -> str:
    from cluster.cli.reading import read_prompt
    from cluster.cli.terminal import standard_terminal

    return read_prompt(text, sys.stdin.buffer, standard_terminal())


@click.command()
@click.argument("text", nargs=-1, required=True)
@_generation_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object at the end and nothing else.")
def prompt(text: tuple[str, ...], *, as_json: bool, **options: Any) -> None:
    """Answer one prompt. A file or a pipe on standard input goes in front of TEXT, and for - in its place. Starts the last cluster
    again when none runs, at first the default.
    """
    from cluster.cli import generating
    from cluster.cli.session import open_session

    words = _words(text)
    generating.prompt(open_session(), words, _options(**options), as_json=as_json)


@click.command()
@_generation_options
def chat(**options: Any) -> None:
    """A conversation in the terminal."""
    from cluster.cli import generating
    from cluster.cli.session import open_session

    generating.chat(open_session(), _options(**options))


@click.command()
@click.argument("text", nargs=-1, required=True)
@_generation_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def explain(text: tuple[str, ...], *, as_json: bool, **options: Any) -> None:
    """Which strategy a prompt would take and why; generates nothing."""
    from cluster.cli import generating
    from cluster.cli.session import open_session

    words = _words(text)
    generating.explain(open_session(), words, _options(**options), as_json=as_json)
