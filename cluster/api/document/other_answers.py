"""What answers look like that are not OpenAI's: Anthropic's, Ollama's, of tokens, and of the cluster."""

from cluster.api.document.answers import ANY_OBJECT, FLAG, TEXT, WHOLE, constant, record
from cluster.api.schemas import Schema, component, list_of, or_null

# What of the request had no effect, where that is so.
_NOTED = {"tandem": record(notes=list_of(TEXT))}
_TANDEM = {"tandem": component("Tandem")}


def anthropic_schemas() -> dict[str, Schema]:
    """By the names of components."""
    used = record(
        input_tokens=WHOLE,
        cache_creation_input_tokens=WHOLE,
        cache_read_input_tokens=WHOLE,
        output_tokens=WHOLE,
    )
    return {
        "Message": record(
            _TANDEM,
            id=TEXT,
            type=constant("message"),
            role=constant("assistant"),
            model=TEXT,
            content=list_of(record(type=constant("text", "thinking", "tool_use"))),
            stop_reason=or_null(TEXT),
            stop_sequence=or_null(TEXT),
            usage=used,
        ),
        "MessageEvent": record(type=TEXT),
        "MessageTokens": record(input_tokens=WHOLE),
        "MessageError": record(type=constant("error"), error=record(type=TEXT, message=TEXT)),
    }


def ollama_schemas() -> dict[str, Schema]:
    """By the names of components."""
    head = {"model": TEXT, "created_at": TEXT, "done": FLAG}
    counts = (
        "total_duration",
        "load_duration",
        "prompt_eval_count",
        "prompt_eval_duration",
        "eval_count",
        "eval_duration",
    )
    ending = {"done_reason": TEXT, **dict.fromkeys(counts, WHOLE), **_TANDEM}
    message = record({"thinking": TEXT, "tool_calls": list_of(ANY_OBJECT)}, role=constant("assistant"), content=TEXT)
    details = record(format=TEXT, family=TEXT, families=list_of(TEXT))
    named = {"name": TEXT, "model": TEXT, "size": WHOLE, "digest": TEXT, "details": details}
    running = record({"context_length": WHOLE}, **named, expires_at=TEXT, size_vram=WHOLE)
    return {
        "OllamaChatAnswer": record(ending, **head, message=message),
        "OllamaGenerateAnswer": record({**ending, "thinking": TEXT}, **head, response=TEXT),
        "OllamaEmbedAnswer": record(
            {**dict.fromkeys(counts[:3], WHOLE), **_TANDEM}, model=TEXT, embeddings=list_of(list_of({"type": "number"}))
        ),
        "OllamaEmbeddingsAnswer": record(_TANDEM, embedding=list_of({"type": "number"})),
        "OllamaError": record(error=TEXT),
        "OllamaTags": record(models=list_of(record(**named, modified_at=TEXT))),
        "OllamaRunning": record(models=list_of(running)),
        "OllamaVersion": record(version=TEXT),
        "OllamaModel": record(
            _NOTED, details=details, model_info=ANY_OBJECT, capabilities=list_of(TEXT), modified_at=TEXT
        ),
    }


def tandem_schemas() -> dict[str, Schema]:
    """By the names of components."""
    return {
        "Tokens": record(_NOTED, tokens=list_of(WHOLE), count=WHOLE, max_model_len=or_null(WHOLE)),
        "DetokenizedText": record(_NOTED, prompt=TEXT),
        "Deleted": record(id=TEXT, object=TEXT, deleted=constant(True)),
        "Trace": list_of(record({"ts": WHOLE}, ph=TEXT, pid=WHOLE)),
        "Mending": record(mending=list_of(TEXT)),
        "ModelsElsewhere": record(hosts=list_of(component("HostModels"))),
        "Figures": record(workers=list_of(component("WorkerFigures"))),
    }
