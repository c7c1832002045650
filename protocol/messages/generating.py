"""A request between the coordinator and the head of its route."""

import msgspec

from protocol.messages.message import Message
from protocol.values import Natural, Pooling, Route, Sampling, SequenceNumber, TokenLogprobs


class Generate(Message, frozen=True, kw_only=True):
    """Start a sequence on the head that receives this. Prompt ids are buffer 0 (int32).

    request_id: the coordinator's number of whom it is for, the same again where that goes on after a loss. route: names of
    the workers in stage order; one name means that worker's full model. scope: sequences of different scopes share no prefix;
    client: whose it is, for taking turns; conversation: whose prefix to hold on to. read_by: the stages that read the prompt
    for a route of one worker; None where that reads it alone. scores_prompt: the log probabilities of the prompt's own tokens are told, for which nothing that was kept of it is of use. answered: how many of
    the prompt's last ids are already of the answer, where the request goes on after a loss. prediction: ids that the answer is likely to
    have, to be guessed. pooling: nothing is generated, what the
    last stage makes of the prompt comes back as one vector in an Embedded.
    """

    sequence: SequenceNumber
    request_id: SequenceNumber = 0
    route: Route
    cached: bool
    max_tokens: int
    end_tokens: tuple[int, ...]
    sampling: Sampling
    seed: int
    scope: str = ""
    client: str = ""
    conversation: str | None = None
    read_by: Route | None = None
    scores_prompt: bool = False
    answered: int = 0
    pooling: Pooling | None = None
    prediction: tuple[int, ...] = ()

    @property
    def reuses(self) -> bool:
        """Whether it begins with what earlier sequences left and leaves something itself. A text that is embedded is not asked again,
        and what was reused of it would be missing in a mean.
        """
        return self.cached and self.pooling is None


class Cancel(Message, frozen=True, kw_only=True):
    """Stop computing for a sequence. Unknown sequences are ignored: it may just have ended."""

    sequence: SequenceNumber


class ForgetConversation(Message, frozen=True, kw_only=True):
    """A conversation was deleted: what only it had is given back."""

    conversation: str


class Update(msgspec.Struct, frozen=True, array_like=True):
    """New token ids of one sequence; finish_reason "stop" or "length" ends it. logprobs: of each of the ids, where they are told.

    proposed: how many tokens were guessed for the step; accepted: how many of them are among the ids.
    """

    sequence: SequenceNumber
    tokens: tuple[int, ...]
    finish_reason: str | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    proposed: int = 0
    accepted: int = 0


class Tokens(Message, frozen=True, kw_only=True):
    """What one step of a head produced."""

    updates: tuple[Update, ...]


class PrefillProgress(Message, frozen=True, kw_only=True):
    """Prompt tokens of a sequence that the pipeline has taken in."""

    sequence: SequenceNumber
    processed: int
    total: int


class PromptLogprobs(Message, frozen=True, kw_only=True):
    """How likely the tokens of a sequence's prompt were, from the one at `start` on. All of them come in order, and before the
    first id that is generated; of the token at 0 there is none.
    """

    sequence: SequenceNumber
    start: Natural
    entries: tuple[TokenLogprobs, ...]


class Reused(Message, frozen=True, kw_only=True):
    """A sequence began with `num_tokens` of its prompt already in the caches."""

    sequence: SequenceNumber
    num_tokens: int


class Embedded(Message, frozen=True, kw_only=True):
    """The vector of a sequence with `pooling`, which ends it: buffer 0, float32, little endian, not normalised."""

    sequence: SequenceNumber


class SequenceFailed(Message, frozen=True, kw_only=True):
    """A sequence cannot go on; `message` is one sentence for the user."""

    sequence: SequenceNumber
    message: str
