"""Who is to guess next tokens: what `speculation.draft` says, as the workers are told it, and whether a draft model fits.

A draft guesses ids, so its tokenizer must be the model's. Reads tokenizers, never a tensor.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cluster.planning.model_files import resolve_model, weight_files
from cluster.planning.progress import StartProgress
from protocol.errors import ModelError, UsageError
from protocol.messages import Guessing
from protocol.model_digest import model_digest
from protocol.model_search import model_name

_BUNDLED = "tandem-demo"
# Lies beside the model that it guesses for, in the checkout.
_BUNDLED_DRAFT = "tandem-demo-draft"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tiktoken.model")


class ChosenDraft(NamedTuple):
    """guessing: as in LoadStage; path: of the draft model, where there is one, and num_bytes: of its weights."""

    guessing: Guessing | None
    path: Path | None = None
    num_bytes: int = 0

    @property
    def name(self) -> str | None:
        """For people: of the draft model, or "lookup"; None where only what requests bring is looked up, or nothing."""
        if self.path is not None:
            return model_name(self.path)
        return "lookup" if self.guessing is not None and self.guessing.lookup else None


NO_DRAFT = ChosenDraft(None)


def choose_draft(
    wanted: str, model: Path, models: Path, tell: Callable[[StartProgress], object] = lambda _: None
) -> ChosenDraft:
    """wanted: "auto", "off", "lookup", or where a draft model is; model: the directory of what is served; models: of the bundled ones.

    Raises:
        UsageError: the draft does not exist, or has another tokenizer.
        ModelError: it is none, or the hub does not give it.
    """
    match wanted:
        case "off":
            return ChosenDraft(None)
        case "lookup":
            return ChosenDraft(Guessing(lookup=True))
        case "auto":
            path = models / _BUNDLED_DRAFT
            if model.resolve() != (models / _BUNDLED).resolve() or not path.is_dir():
                return ChosenDraft(Guessing())
        case _:
            path = resolve_model(wanted, tell)
    if not _have_same_tokenizer(path, model):
        raise UsageError(
            f"the draft {path} has another tokenizer than {model}; give speculation.draft a model with the same one, "
            '"lookup" or "off"'
        )
    num_bytes = sum(file.stat().st_size for file in weight_files(path))
    return ChosenDraft(Guessing(draft=model_digest(path)), path, num_bytes)


def _have_same_tokenizer(one: Path, other: Path) -> bool:
    """By the first of the files that either has."""
    for name in _TOKENIZERS:
        files = [path / name for path in (one, other)]
        if any(file.is_file() for file in files):
            return all(file.is_file() for file in files) and _are_alike(*files)
    return False


def _are_alike(one: Path, other: Path) -> bool:
    if one.read_bytes() == other.read_bytes():
        return True
    return one.suffix == ".json" and _ids(one) == _ids(other)


def _ids(file: Path) -> list[Any]:
    """What names the ids of a tokenizer.json. Raises ModelError for one that is damaged."""
    try:
        tokenizer = json.loads(file.read_bytes())
        model = tokenizer["model"]
        added = sorted((each["id"], each["content"]) for each in tokenizer.get("added_tokens") or ())
        return [model["type"], model["vocab"], model.get("merges"), added]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file} is no tokenizer ({error}); download the model again") from None
