"""Who guesses for which sequence, as the plan says; and the draft model that is open here, from one plan to the next."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from protocol.errors import ModelError
from protocol.messages import Generate, LoadStage
from protocol.values import KvSettings, LayerRange
from strategy.memory import KvNeeds
from workers.drafting.draft_model import DraftModel
from workers.drafting.lookup import Lookup
from workers.drafting.source import GuessSource
from workers.model import loading
from workers.model.shelf import LoadProgressed, ModelShelf
from workers.model.split_model import SplitModel

log = logging.getLogger(__name__)


class Guesser(NamedTuple):
    """way: by what name it is known how often guesses of the kind come true; is_model: it is a model that guesses, whatever the text."""

    way: str
    source: GuessSource
    is_model: bool = False


class Nobody:
    """Guesses nothing."""

    def expects(self, _tokens: Sequence[int]) -> int:
        return 0

    def guess(self, _tokens: Sequence[int], _count: int, _ahead: Sequence[int] = ()) -> list[int]:
        return []


class _FirstOf:
    """The guesses of the first source that has any."""

    def __init__(self, *sources: GuessSource):
        self._sources = sources

    def expects(self, tokens: Sequence[int]) -> int:
        return next(filter(None, (source.expects(tokens) for source in self._sources)), 0)

    def guess(self, tokens: Sequence[int], count: int, ahead: Sequence[int] = ()) -> list[int]:
        return next(filter(None, (source.guess(tokens, count, ahead) for source in self._sources)), [])


class Guessers:
    """draft: None where no model guesses; lookup: whether texts are looked through that bring no prediction. uncached_only: what the
    model computes depends on how a sequence is cut into passes, which guesses change where there is a cache.
    """

    def __init__(self, draft: DraftModel | None, *, lookup: bool, uncached_only: bool = False):
        self._draft = draft
        self._lookup = lookup
        self._uncached_only = uncached_only

    def __repr__(self) -> str:
        return f"Guessers({self._draft}, lookup={self._lookup})"

    @property
    def needs(self) -> KvNeeds | None:
        """What the caches of a sequence take that has some, beside its own; None where no model guesses for such."""
        return None if self._draft is None or self._uncached_only else self._draft.needs

    @property
    def kv_bytes(self) -> int:
        """Of all caches here."""
        return 0 if self._draft is None else self._draft.kv_bytes

    def of(self, request: Generate) -> Guesser | None:
        """For one sequence; None where nobody guesses. A prediction that comes with the request is asked first."""
        if self._uncached_only and request.cached:
            return None
        draft = None if self._draft is None else self._draft.source(request.sampling, request.seed)
        if request.prediction:
            found = Lookup(request.prediction)
            return Guesser("prediction", found if draft is None else _FirstOf(found, draft))
        if self._lookup:
            return Guesser("lookup", Lookup())
        return None if draft is None else Guesser("draft", draft, is_model=True)


class GuessersLoader:
    """shelf: where models lie."""

    def __init__(self, shelf: ModelShelf):
        self._shelf = shelf
        self._open: tuple[str, DraftModel] | None = None

    def __repr__(self) -> str:
        return f"GuessersLoader({self._open})"

    def load(self, plan: LoadStage, vocabulary_size: int, progress: LoadProgressed) -> Guessers | None:
        """What the plan wants, for the heads of its routes; None where nothing is guessed. A draft model that cannot be had is done
        without.
        """
        guessing = plan.guessing
        if guessing is None or guessing.draft is None:
            self._open = None
        elif self._open is None or self._open[0] != guessing.draft:
            self._open = None
            try:
                path = self._whole(guessing.draft, plan, progress)
                self._open = guessing.draft, DraftModel(loading.load(path), vocabulary_size)
            except (ModelError, RuntimeError, ValueError) as error:
                log.warning("goes on without a draft model: %s", error)
        if guessing is None:
            return None
        draft = None if self._open is None else self._open[1]
        return Guessers(draft, lookup=guessing.lookup, uncached_only=plan.whole_prompts or _keeps_first(plan.kv))

    def _whole(self, digest: str, plan: LoadStage, progress: LoadProgressed) -> Path:
        """Where a model is with all of its weights; how many layers those are is known once its small files are there."""
        path = self._shelf.ensure(digest, (), plan.sources, progress)
        layers = LayerRange(0, SplitModel.load(path).num_layers)
        return self._shelf.ensure(digest, (layers,), plan.sources, progress)


def _keeps_first(kv: KvSettings) -> bool:
    """Whether caches forget tokens behind their first ones: mlx-lm hides those from the later tokens of a longer pass."""
    return kv.kind == "rotating" and kv.keep != 0
