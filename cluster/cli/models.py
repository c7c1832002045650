"""Models on disk: what each host holds, and getting or deleting one here.

Deletes nothing but a folder of what was fetched, in this home, or one of the hub's cache, both found by looking there: a name that
somebody gives is compared and never becomes a path. What a process of this user may still need stays.
"""

import re
import shutil
from pathlib import Path
from typing import Any

import msgspec

from cluster.cli.finding import found_guests, found_homes, started_settings
from cluster.cli.joining import model_options
from cluster.cli.pulling import pulled
from cluster.cli.session import Session
from cluster.cli.showing import size_text
from cluster.cli.workers_code import run_workers_code
from cluster.membership.hosted import HostedBook
from cluster.membership.member import LOCAL
from protocol.errors import TandemError, UsageError
from protocol.messages import HeldModel

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_LEAST_OF_DIGEST = 8
_ANSWER_S = 15.0


class ModelHere(msgspec.Struct, frozen=True, kw_only=True):
    """A model of this machine, and where it lies."""

    model: HeldModel
    path: str

    @property
    def folder(self) -> Path | None:
        """What holds it and nothing else, where that may be deleted: of the hub's cache the whole repository."""
        path = Path(self.path)
        return {"fetched": path, "hub": path.parent.parent}.get(self.model.source)


def on_hosts(session: Session) -> list[dict[str, Any]]:
    """What this machine holds and, where a cluster runs, each of its other hosts; models: None for one that does not answer."""
    hosts = [{"name": LOCAL, "models": [_shown(each.model) for each in _here(session)]}]
    state = session.running_state()
    if state is None:
        return hosts
    for host in session.client(state).get("/v1/cluster/models", _ANSWER_S)["hosts"]:
        models = host["models"] and [_shown(msgspec.convert(each, HeldModel)) for each in host["models"]]
        hosts.append({"name": host["name"], "models": models})
    return hosts


def table(hosts: list[dict[str, Any]]) -> list[str]:
    """A line for each model of each host."""
    lines = [f"{'host':<16}{'size':<10}{'state':<18}{'from':<9}{'digest':<14}model"]
    for host in hosts:
        if host["models"] is None:
            lines.append(f"{host['name']:<16}did not answer")
        for model in host["models"] or ():
            state = "complete" if model["complete"] else _part_text(model)
            lines.append(
                f"{host['name']:<16}{size_text(model['bytes']):<10}{state:<18}{model['source']:<9}"
                f"{model['digest'][:12]:<14}{model['id']}"
            )
    return lines


def pull(session: Session, repo: str) -> str:
    """Have the hub's library download a model; returns a sentence. Raises UsageError or ModelError."""
    if not _REPO.fullmatch(repo):
        raise UsageError(f"{repo!r} is no repository of the hub; give one such as mlx-community/Qwen3-0.6B-4bit")
    path = pulled(repo, session.checkout, session.terminal)
    return f"{repo} is in {path}; `./launch.sh start --model {repo}` uses it."


def remove(session: Session, wanted: str, *, confirmed: bool) -> str:
    """Delete a model of this machine; returns a sentence.

    Raises:
        UsageError: there is none of that name or digest, it may not be deleted, or that was not confirmed.
        TandemError: it is in use.
    """
    found = [each for each in _here(session) if _is_meant(wanted, each.model)]
    if not found:
        raise UsageError(f"this machine holds no model {wanted!r}; `./launch.sh models list` names those that it holds")
    folders = {each.folder: each for each in found if each.folder is not None}
    if not folders:
        raise UsageError(f"{found[0].path} was put there by somebody else than Tandem; delete it there yourself")
    if not confirmed and any(each.model.source == "hub" for each in folders.values()):
        raise UsageError(
            f"{wanted} lies in the hub's cache, which other programs use, too; `./launch.sh models rm {wanted} --yes` "
            "deletes it there"
        )
    for each in folders.values():
        _check_unused(each)
    for folder in folders:
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise TandemError(f"{folder} cannot be deleted ({error.strerror}); delete it yourself") from None
    return f"Deleted {wanted}."


def _here(session: Session) -> list[ModelHere]:
    """By a process of the workers' code, which alone knows how what was fetched is kept."""
    words = ("--home", str(session.home.root), *model_options(session.checkout, session.environment))
    return run_workers_code(
        session,
        "workers.model.held_models",
        words,
        list[ModelHere],
        fails="the models of this machine cannot be listed",
    )


def _is_meant(wanted: str, model: HeldModel) -> bool:
    is_digest = len(wanted) >= _LEAST_OF_DIGEST and model.digest.startswith(wanted)
    return is_digest or (bool(model.name) and model.name == wanted)


def _check_unused(found: ModelHere) -> None:
    """Raises TandemError where a process of this user has the model open, or may have."""
    name = found.model.name or found.model.digest
    for home in found_homes():
        if found_guests(home) or HostedBook(home).read():
            raise TandemError(
                f"a worker of a cluster elsewhere runs here and may need {name}; end it with `./launch.sh stop` first"
            )
        settings = started_settings(home)
        if settings is not None and _leads_to(settings.model.path, found):
            raise TandemError(f"{name} is what the cluster in {home.root} runs; end it with `./launch.sh stop` first")


def _leads_to(place: str, found: ModelHere) -> bool:
    """place: of a model, as settings say it: a directory, or a repository of the hub."""
    if not Path(place).is_absolute():
        return place == found.model.name
    assert found.folder is not None
    return Path(place).resolve().is_relative_to(found.folder.resolve())


def _shown(model: HeldModel) -> dict[str, Any]:
    """As `models list --json` says it; known by its digest where it has no name."""
    return {
        "id": model.name or model.digest,
        "digest": model.digest,
        "held_bytes": model.held_bytes,
        "bytes": model.num_bytes,
        "complete": model.is_complete,
        "source": model.source,
    }


def _part_text(model: dict[str, Any]) -> str:
    if model["bytes"] is None:
        return f"{size_text(model['held_bytes'])}, broken off"
    return f"{model['held_bytes'] / model['bytes']:.0%} of it"
