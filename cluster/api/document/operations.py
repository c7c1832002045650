"""What there is to ask: each operation of the API with its body, its answers, and the errors that it can have."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from cluster.api.embedding_routes import EMBEDDING_BODIES
from cluster.api.explain import EXPLAIN_BODIES
from cluster.api.kept_responses import PAGE_PARAMETERS, READING_PARAMETERS
from cluster.api.ollama_routes import show_body
from cluster.api.parameters import options_schema
from cluster.api.schemas import Schema
from cluster.api.surfaces import SURFACES
from cluster.api.surfaces.messages import Messages
from cluster.api.token_routes import TOKENIZE_BODIES, detokenize_body
from cluster.api.trace_route import TRACE_PARAMETERS, TRACE_PATH

JSON = "application/json"
EVENTS = "text/event-stream"
LINES = "application/x-ndjson"
# What can go wrong with any answer of the model, and with a body.
_OF_BODIES = (400, 413)
_OF_ANSWERS = (404, 429, 499, 503, 504)
_OF_COUNTS = (*_OF_BODIES, 404, 503, 504)


class Operation(NamedTuple):
    """One of them. tag: whose API it is of; body: components of which the body is one; answer: the component of its JSON, or the
    media type of what else it is; streamed: how a stream is written, and the component of its pieces; statuses: of its errors, beside
    those that all have; error: the component of their JSON; parameters: of the query; also:
    further statuses with the same answer; is_open: it asks for no key.
    """

    method: str
    path: str
    tag: str
    summary: str
    answer: str
    body: tuple[str, ...] = ()
    streamed: tuple[str, str] | None = None
    statuses: tuple[int, ...] = ()
    error: str = "Error"
    status: int = 200
    parameters: dict[str, Schema] = {}  # noqa: RUF012  it is of a tuple, which is a value
    also: tuple[int, ...] = ()
    is_open: bool = False


def _asked(
    tag: str, path: str, summary: str, kinds: tuple[str, str, tuple[str, str]], error: str = "Error"
) -> Operation:
    """A request for a generation. kinds: of its body, its answer and its stream."""
    body, answer, streamed = kinds
    return Operation("post", path, tag, summary, answer, (body,), streamed, _OF_BODIES + _OF_ANSWERS, error)


def _embedded(tag: str, path: str, summary: str, kinds: tuple[str, str], error: str = "Error") -> Operation:
    """A request for vectors. kinds: of its body and its answer."""
    body, answer = kinds
    return Operation("post", path, tag, summary, answer, (body,), statuses=_OF_BODIES + _OF_ANSWERS, error=error)


def operations() -> Iterator[Operation]:
    """All of them, as a page shows them."""
    yield from _openai()
    yield from _anthropic()
    yield from _ollama()
    yield from _tokens()
    yield from _tandem()


def _openai() -> Iterator[Operation]:
    tag = "OpenAI"
    chat = ("ChatRequest", "ChatCompletion", (EVENTS, "ChatCompletionChunk"))
    yield _asked(tag, "/v1/chat/completions", "A chat's next message", chat)
    completion = ("CompletionRequest", "Completion", (EVENTS, "CompletionChunk"))
    yield _asked(tag, "/v1/completions", "A text that goes on", completion)
    response = ("ResponseRequest", "Response", (EVENTS, "ResponseEvent"))
    yield _asked(tag, "/v1/responses", "A response to items", response)
    kept = "/v1/responses/{response_id}"
    yield Operation(
        "get", kept, tag, "A response that is kept", "Response", statuses=(400, 404), parameters=READING_PARAMETERS
    )
    yield Operation("delete", kept, tag, "Forget a response", "Deleted", statuses=(404,))
    yield Operation(
        "get",
        f"{kept}/input_items",
        tag,
        "What a response was asked with",
        "ResponseItems",
        statuses=(400, 404),
        parameters=PAGE_PARAMETERS,
    )
    yield _embedded(tag, "/v1/embeddings", "Texts as vectors", ("EmbeddingRequest", "Embeddings"))
    yield Operation("get", "/v1/models", tag, "The models that are served", "Models")
    yield Operation("get", "/v1/models/{model_id}", tag, "One of them", "Model", statuses=(404, 503))


def _anthropic() -> Iterator[Operation]:
    tag, error, counting_path = "Anthropic", "MessageError", Messages.counting_path
    assert counting_path is not None
    kinds = ("MessageRequest", "Message", (EVENTS, "MessageEvent"))
    yield _asked(tag, Messages.path, "A conversation's next message", kinds, error)
    yield Operation(
        "post",
        counting_path,
        tag,
        "How many tokens a request has",
        "MessageTokens",
        ("MessageRequest",),
        statuses=_OF_COUNTS,
        error=error,
    )


def _ollama() -> Iterator[Operation]:
    tag, error = "Ollama", "OllamaError"
    chat = ("OllamaChatRequest", "OllamaChatAnswer", (LINES, "OllamaChatAnswer"))
    yield _asked(tag, "/api/chat", "A chat's next message", chat, error)
    generate = ("OllamaGenerateRequest", "OllamaGenerateAnswer", (LINES, "OllamaGenerateAnswer"))
    yield _asked(tag, "/api/generate", "An answer to a prompt", generate, error)
    embed = ("OllamaEmbedRequest", "OllamaEmbedAnswer")
    yield _embedded(tag, "/api/embed", "Texts as vectors", embed, error)
    embeddings = ("OllamaEmbeddingsRequest", "OllamaEmbeddingsAnswer")
    yield _embedded(tag, "/api/embeddings", "One text as a vector", embeddings, error)
    yield Operation("get", "/api/tags", tag, "The models that are there", "OllamaTags", error=error)
    yield Operation("get", "/api/ps", tag, "The models that are loaded", "OllamaRunning", error=error)
    yield Operation("get", "/api/version", tag, "A version, for clients that ask", "OllamaVersion", error=error)
    yield Operation(
        "post",
        "/api/show",
        tag,
        "What is known of a model",
        "OllamaModel",
        ("OllamaShowRequest",),
        statuses=_OF_COUNTS,
        error=error,
    )


def _tokens() -> Iterator[Operation]:
    statuses = _OF_COUNTS
    yield Operation(
        "post", "/tokenize", "Tokens", "The tokens of a prompt", "Tokens", tuple(TOKENIZE_BODIES), statuses=statuses
    )
    yield Operation(
        "post",
        "/detokenize",
        "Tokens",
        "The text of tokens",
        "DetokenizedText",
        ("DetokenizeRequest",),
        statuses=statuses,
    )


def _tandem() -> Iterator[Operation]:
    tag = "Tandem"
    yield Operation(
        "post",
        "/v1/explain",
        tag,
        "How a request would run, and why",
        "Explanation",
        tuple(EXPLAIN_BODIES),
        statuses=_OF_COUNTS,
    )
    yield Operation(
        "delete", "/v1/conversations/{conversation}", tag, "Forget what a conversation is remembered by", "Deleted"
    )
    yield Operation("delete", "/v1/requests/{request_id}", tag, "Cancel a request", "Deleted", statuses=(404,))
    yield Operation("get", "/health", tag, "Whether requests are answered", "HealthReport", also=(503,), is_open=True)
    yield Operation("get", "/status", tag, "The cluster as it is now", "Status")
    yield Operation("get", "/metrics", tag, "The same for Prometheus", "text/plain")
    yield Operation("get", "/v1/cluster/models", tag, "The models on other hosts", "ModelsElsewhere", statuses=(503,))
    yield Operation("post", "/v1/cluster/figures", tag, "What the workers' layers compute", "Figures", statuses=(503,))
    yield Operation(
        "post", "/v1/cluster/mend", tag, "Bring back missing workers", "Mending", status=202, statuses=(503,)
    )
    yield Operation(
        "get", TRACE_PATH, tag, "What the cluster does meanwhile", "Trace", statuses=(400,), parameters=TRACE_PARAMETERS
    )
    yield Operation("get", "/", tag, "The dashboard", "text/html", is_open=True)
    yield Operation("get", "/openapi.json", tag, "This document", JSON, is_open=True)
    yield Operation("get", "/docs", tag, "This document as a page", "text/html", is_open=True)


def bodies() -> dict[str, Schema]:
    """What bodies may be, by the names of their components."""
    surfaces = {surface.path: surface for surface in SURFACES}
    named = {operation.path: operation.body[0] for operation in operations() if operation.path in surfaces}
    made: dict[str, Any] = {name: surfaces[path].schema for path, name in named.items()}
    more = {
        **EMBEDDING_BODIES,
        **EXPLAIN_BODIES,
        **TOKENIZE_BODIES,
        "DetokenizeRequest": detokenize_body,
        "OllamaShowRequest": show_body,
        "Options": options_schema,
    }
    return {name: make() for name, make in (made | more).items()}
