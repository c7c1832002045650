"""Runs a model's chat template where it harms nobody: in a process of its own, which may be ended at any time.

See `template_process` for what it may use.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from cluster.serving.apart import Apart, EndedApart, StoppedApart

# One rendering may take this long of a processor, see `template_process`, and twice that on a machine that is busy.
LIMIT_S = 5.0
COMMAND = (sys.executable, "-m", "cluster.serving.template_process")


class TemplateFailed(Exception):
    """A chat template made nothing of some messages; it says why."""


class Rendered(msgspec.Struct, omit_defaults=True):
    """What the process answers. text: what the template makes of the messages; error: why it makes nothing."""

    text: str | None = None
    error: str | None = None


class Templates:
    """See the module. checkout: where the process finds Tandem's code."""

    def __init__(self, model_path: Path, checkout: Path, command: Sequence[str] = COMMAND):
        self._apart = Apart((*command, str(model_path)), checkout)

    def __repr__(self) -> str:
        return f"Templates({self._apart})"

    def render(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any] = MappingProxyType({})) -> str:
        """The text that the template makes of messages and further variables, with the beginning of an answer.

        Raises:
            TemplateFailed: it refuses them, or takes too long or too much memory for them.
        """
        try:
            answer = self._apart.ask(msgspec.json.encode((messages, dict(variables))), 2 * LIMIT_S)
        except EndedApart as error:
            raise TemplateFailed(f"it takes longer than {LIMIT_S:g} s, or ends its process") from error
        except StoppedApart as error:
            raise TemplateFailed("the cluster is stopping") from error
        rendered = msgspec.json.decode(answer, type=Rendered)
        if rendered.text is None:
            raise TemplateFailed(rendered.error or "")
        return rendered.text

    def begin(self) -> None:
        """Start the process, so that nobody waits for it later."""
        self._apart.begin()

    def close(self) -> None:
        """End the process; nothing is rendered any more."""
        self._apart.close()
