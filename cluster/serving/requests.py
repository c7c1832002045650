"""One generation request as the HTTP layer hands it to the coordinator, and the events that come back.

Owns the types between HTTP and coordinator and nothing else: no OpenAI field names, no wire format, no tokenizer.
"""

from collections.abc import AsyncIterator, Collection
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from cluster.planning.watched_steps import Hear
from cluster.serving.measures import Measures
from cluster.serving.status import HealthReport, HostModels, Status, WorkerFigures
from cluster.serving.tally import Tally
from protocol.errors import BadRequest
from protocol.values import Pooling, Sampling
from strategy.decision import Verdict

if TYPE_CHECKING:  # which knows requests
    from cluster.serving.ledger import Ledger

# A fast tokenizer takes about a tenth of a second for these.
LONG_CHARACTERS = 1 << 17


class ForcedCall(msgspec.Struct, frozen=True):
    """The answer is a call of one of these tools. reason: why such an answer is said to have ended."""

    names: tuple[str, ...]
    reason: Literal["tool_calls", "stop"] = "tool_calls"


class Structure(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer has to be. source: a JSON schema; a regular expression; a list of texts, as JSON; a grammar in GBNF or Lark; or, for
    calls, the schema of each tool's arguments by its name, as JSON. field: what the caller called it.
    """

    kind: Literal["json", "regex", "choice", "grammar", "calls"]
    source: str
    field: str


class ChatPrompt(msgspec.Struct, frozen=True, tag=True):
    """Messages (`role`, `content`, perhaps more) for the model's chat template, as it takes them. tools: that may be called, in OpenAI's
    form, at most once where `one_call`; options: further variables of the template; forced: the call that the answer has to be.
    """

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()
    options: dict[str, Any] = {}
    one_call: bool = False
    forced: ForcedCall | None = None


class TextPrompt(msgspec.Struct, frozen=True, tag=True):
    """Text that is taken as it is, without a template. bare: also without the tokens that the model wants around a text; suffix: what
    follows the answer, for a model that fills in between.
    """

    text: str
    bare: bool = False
    suffix: str = ""


class TokensPrompt(msgspec.Struct, frozen=True, tag=True):
    """Token ids that are taken as they are."""

    tokens: tuple[int, ...]


Prompt = ChatPrompt | TextPrompt | TokensPrompt


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A validated request.

    prompt_field: what the caller called the prompt, for errors about it. max_tokens: None for as many as the
    context leaves. scope: requests of different scopes share no cached prefix. mode: an override of
    USE_DISTRIBUTED_INFERENCE ("auto" | "always" | "never"); strategy: a strategy name. client: who asks, for taking
    turns; key: the name of its key, where that has one; tally: of the HTTP request that it belongs to; timeout_s: how long it may take, None for what the settings say. ignores_end_tokens: it goes on to max_tokens.
    given: which fields of `sampling` the caller named, for the others the model's own defaults count; None for all of them.
    scores_prompt: how likely the prompt's own tokens were is told as well; then, and only then, max_tokens may be 0. structure: what the
    answer has to be; as `sampling.grammar` once that is compiled. pooling: nothing is generated, the prompt becomes one Vector. follows: it
    is part of a request that was let in, which waits for a place but is not turned away where many wait. prediction: what the answer is
    likely to have in it, which makes it sooner and no other; predicted: its ids, once they are known.
    """

    prompt: Prompt
    prompt_field: str = "prompt"
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    sampling: Sampling = Sampling()
    mode: str | None = None
    strategy: str | None = None
    conversation: str | None = None
    scope: str = ""
    client: str = ""
    key: str = ""
    tally: Tally | None = None
    timeout_s: float | None = None
    ignores_end_tokens: bool = False
    given: frozenset[str] | None = None
    scores_prompt: bool = False
    structure: Structure | None = None
    pooling: Pooling | None = None
    follows: bool = False
    prediction: str = ""
    predicted: tuple[int, ...] = ()

    def with_defaults(self, sampling: Sampling) -> "GenerationRequest":
        """With the model's own, where the caller says nothing."""
        if self.given is None:
            return self
        named = {name: getattr(self.sampling, name) for name in (*self.given, "logprobs")}
        return msgspec.structs.replace(self, sampling=msgspec.structs.replace(sampling, **named), given=None)

    @property
    def num_characters(self) -> int:
        """Of the prompt's text; 0 for token ids."""
        match self.prompt:
            case ChatPrompt(messages=messages):
                return sum(len(message["content"]) for message in messages)
            case TextPrompt(text=text, suffix=suffix):
                return len(text) + len(suffix)
            case TokensPrompt():
                return 0

    @property
    def is_long(self) -> bool:
        """Whether its text takes long to encode."""
        return self.num_characters > LONG_CHARACTERS

    def require_known(self, tokens: Collection[int], vocabulary_size: int) -> None:
        """Every token id, of the prompt's `tokens` and in logit_bias, has an embedding. Raises BadRequest."""
        for ids, field in ((self.sampling.logit_bias or (), "logit_bias"), (tokens, self.prompt_field)):
            for token in (min(ids, default=0), max(ids, default=0)):
                if not 0 <= token < vocabulary_size:
                    raise BadRequest(
                        f"token id {token} in {field} is outside the model's vocabulary of {vocabulary_size}",
                        param=field,
                    )


class Predicted(msgspec.Struct, frozen=True):
    """Seconds from arrival to the first token, and to the last."""

    ttft_s: float
    total_s: float


class Routed(msgspec.Struct, frozen=True, kw_only=True):
    """The request was accepted, and this is how it will run; once, also where it later goes on elsewhere. predicted: None where
    nothing was measured.
    """

    request_id: str
    strategy: str
    reason: str
    workers: tuple[str, ...]
    prompt_tokens: int
    predicted: Predicted | None = None


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Prefill of a long prompt: `processed` of `total` prompt tokens are read."""

    processed: int
    total: int


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """No plan can serve the request at the moment: it waits for these workers to come back, or for a plan to be made."""

    workers: tuple[str, ...]


class ToolCall(msgspec.Struct, frozen=True):
    """A call that the model makes. arguments: a JSON object, as text."""

    id: str
    name: str
    arguments: str


class Likelihood(msgspec.Struct, frozen=True):
    """A token, its own text as bytes, and the natural logarithm of its probability; None for the first of a prompt."""

    token: int
    text: bytes
    logprob: float | None


class Scored(msgspec.Struct, frozen=True):
    """A token where it stands, and the likeliest there, best first."""

    chosen: Likelihood
    top: tuple[Likelihood, ...] = ()


class PromptScored(msgspec.Struct, frozen=True, kw_only=True):
    """How likely each token of the prompt was, in order and once, before the first Delta; where that was asked for."""

    scores: tuple[Scored, ...]


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """New text (may be empty while a stop string or a character is incomplete) and the token ids behind it; or, of a chat, what the
    model thinks before it answers, or calls of tools. scores: of each of the ids, and of the token that ends the answer behind its
    last, where log probabilities were asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    scores: tuple[Scored, ...] = ()
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()


class Vector(msgspec.Struct, frozen=True):
    """What a prompt with `pooling` became: float32, little endian, as the model made it; once, before Finished."""

    values: bytes


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """Last event of a request that ended well.

    finish_reason: "stop" (end token or stop string), "length", or "tool_calls" where it stopped after calls. completion_tokens counts generated tokens, the end
    token included as mlx-lm counts it; `token_ids` are the generated ids without the end token. ttft_s: seconds from
    arrival to the first token; total_s: to the last; decode_tokens_per_s: rate after the first token, None where all came at once.
    cached_tokens: prompt tokens whose KV was already there. proposed: tokens that were guessed before the model said them; accepted:
    of these, how many are in the answer. first_gaps_s: of the first tokens but the very first, seconds since the one before. resumed: how many times it went on after a loss. notes: what
    else the client should know, as clauses.
    """

    finish_reason: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    completion_tokens: int
    total_s: float
    cached_tokens: int = 0
    proposed: int = 0
    accepted: int = 0
    first_gaps_s: tuple[float, ...] = ()
    resumed: int = 0
    notes: tuple[str, ...] = ()
    ttft_s: float
    decode_tokens_per_s: float | None


Event = Routed | Progress | Waiting | PromptScored | Delta | Vector | Finished


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the API says of the model. context_tokens: prompt and answer together; created: Unix seconds; abilities: "tools" where it
    calls them, "thinking" where it thinks before it answers, "insert" where it fills in between texts; architecture: as its config.json calls it; vocabulary_size: every token id lies below it.

    None stands for what is not known before the first plan.
    """

    id: str
    layers: int | None
    bytes: int | None
    context_tokens: int | None
    has_chat_template: bool
    created: int
    abilities: tuple[str, ...] = ()
    architecture: str | None = None
    vocabulary_size: int | None = None

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What can be asked of it."""
        return ("completion", *(("chat",) if self.has_chat_template else ()), *self.abilities)


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Texts to embed, at least one. asked: how, for all of them, whatever its prompt is; fields: what the caller called each of the
    `prompts`. dimensions: how many numbers of each vector to keep, all where None; truncate: of texts beyond the context their
    beginning is embedded.
    """

    asked: GenerationRequest
    prompts: tuple[Prompt, ...]
    fields: tuple[str, ...]
    dimensions: int | None = None
    truncate: bool = False


class Embeddings(msgspec.Struct, frozen=True, kw_only=True):
    """One vector of unit length for each text, in float32, little endian. routed: as the first of them ran; finished: as if all of
    them were one answer without a token.
    """

    vectors: tuple[bytes, ...]
    routed: Routed
    finished: Finished


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """How a request would run, with nothing generated: INTERFACE's `explain --json`."""

    strategy: str
    reason: str
    prompt_tokens: int
    max_tokens: int
    candidates: tuple[Verdict, ...]


class Service(Protocol):
    """What HTTP needs of the coordinator. Methods raise `ApiError`s; all run on one asyncio loop.

    `generate` yields Routed, then Progress, PromptScored and Delta in order, then one Finished; Waiting at any time before
    Finished, also before Routed, every few seconds while no plan can serve the request. An error ends it as a raised ApiError at any point.
    Errors of the request itself (400, 404, 413, 429) are raised before Routed. Closing the iterator early (`aclose`) cancels
    the request on the workers. `mend` brings back workers that are missing; it gives their names. `models_elsewhere`: what
    lies on the disks of other hosts. `figures`: what the workers' layers make of a fixed input. `encode`: the token ids of a request's
    prompt, of which nothing is generated; `decode`: the text of token ids, BadRequest for those outside the vocabulary. `embed`:
    many prompts at once as vectors; cancelling it cancels them on the workers. `cancel` ends the request of that id, which raises
    RequestCancelled to whoever reads it; NotFound where none runs or waits. `ledger`: the requests that there are and were. `watch_steps`:
    while the block lasts `hear` is told what the workers do when.
    """

    def generate(self, request: GenerationRequest) -> AsyncIterator[Event]: ...

    async def embed(self, request: EmbeddingRequest) -> Embeddings: ...

    async def explain(self, request: GenerationRequest) -> Explanation: ...

    async def encode(self, request: GenerationRequest) -> tuple[int, ...]: ...

    async def decode(self, tokens: tuple[int, ...]) -> str: ...

    def forget_conversation(self, conversation: str) -> None: ...

    def cancel(self, request_id: str) -> None: ...

    def ledger(self) -> "Ledger": ...

    def mend(self) -> tuple[str, ...]: ...

    def status(self) -> Status: ...

    def health(self) -> HealthReport: ...

    def measures(self) -> Measures: ...

    def watch_steps(self, hear: Hear) -> AbstractContextManager[None]: ...

    def models(self) -> tuple[ModelInfo, ...]: ...

    async def models_elsewhere(self) -> tuple[HostModels, ...]: ...

    async def figures(self) -> tuple[WorkerFigures, ...]: ...
