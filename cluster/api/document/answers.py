"""What answers look like, as JSON schemas: OpenAI's, and what all of them say of how they ran.

Further fields may follow anywhere. Where an answer is a struct, its schema comes from there.
"""

from typing import Any

import msgspec

from cluster.api.schemas import Schema, any_of, component, list_of, or_null
from cluster.serving.requests import Explanation
from cluster.serving.status import HealthReport, HostModels, Status, WorkerFigures

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}
ANY_OBJECT: Schema = {"type": "object"}
_STRUCTS = (Status, HealthReport, Explanation, HostModels, WorkerFigures)


def record(optional: dict[str, Schema] | None = None, **fields: Schema) -> Schema:
    """An object that has these fields, and may have the `optional` ones."""
    return {"type": "object", "properties": {**fields, **(optional or {})}, "required": list(fields)}


def constant(*values: Any) -> Schema:
    return {"enum": list(values)}


def struct_schemas() -> dict[str, Schema]:
    """Those of the structs that are answers, and of what they consist of, by name."""
    _, schemas = msgspec.json.schema_components(_STRUCTS, ref_template=component("{name}")["$ref"])
    return schemas


def openai_schemas() -> dict[str, Schema]:
    """By the names of components."""
    return {
        "Tandem": record(
            {
                "predicted": record(ttft_s=NUMBER, total_s=NUMBER),
                "draft": record(proposed=WHOLE, accepted=WHOLE),
            },
            strategy=TEXT,
            reason=TEXT,
            workers=list_of(TEXT),
            ttft_s=NUMBER,
            total_s=NUMBER,
            decode_tokens_per_s=or_null(NUMBER),
            token_ids=list_of(any_of(WHOLE, list_of(WHOLE))),
            cached_tokens=WHOLE,
            resumed=WHOLE,
            notes=list_of(TEXT),
        ),
        "Usage": record(
            {
                "prompt_tokens_details": record(cached_tokens=WHOLE),
                "completion_tokens_details": record(accepted_prediction_tokens=WHOLE, rejected_prediction_tokens=WHOLE),
            },
            prompt_tokens=WHOLE,
            completion_tokens=WHOLE,
            total_tokens=WHOLE,
        ),
        "Error": record(
            error=record(message=TEXT, type=TEXT, param=or_null(TEXT), code=or_null(TEXT)),
        ),
        "ToolCall": record(
            {"index": WHOLE, "id": TEXT, "type": constant("function")},
            function=record({"name": TEXT, "arguments": TEXT}),
        ),
        **_chats(),
        **_completions(),
        **_models(),
    }


def _models() -> dict[str, Schema]:
    return {
        "Model": record(
            id=TEXT,
            object=constant("model"),
            created=WHOLE,
            owned_by=TEXT,
            root=TEXT,
            max_model_len=or_null(WHOLE),
            capabilities=list_of(TEXT),
        ),
        "Models": record(object=constant("list"), data=list_of(component("Model"))),
    }


# As numbers, or as their bytes in base64.
_VECTOR = any_of(list_of({"type": "number"}), TEXT)
_USED = {"usage": or_null(component("Usage")), "tandem": component("Tandem")}
_REASON = constant("stop", "length", "tool_calls", "content_filter", None)
_LOGPROBS: Schema = {"type": ["object", "null"]}


def _head(kind: str) -> dict[str, Schema]:
    return {"id": TEXT, "object": constant(kind), "created": WHOLE, "model": TEXT}


def _chats() -> dict[str, Schema]:
    said = {"reasoning_content": TEXT, "tool_calls": list_of(component("ToolCall"))}
    message = record(
        {**said, "refusal": or_null(TEXT)},
        role=constant("assistant"),
        content=or_null(TEXT),
    )
    delta = record({**said, "role": constant("assistant"), "content": or_null(TEXT)})
    return {
        "ChatCompletion": record(
            **_head("chat.completion"),
            choices=list_of(record({"logprobs": _LOGPROBS}, index=WHOLE, message=message, finish_reason=_REASON)),
            **_USED,
        ),
        "ChatCompletionChunk": record(
            _USED,
            **_head("chat.completion.chunk"),
            choices=list_of(record({"logprobs": _LOGPROBS}, index=WHOLE, delta=delta, finish_reason=_REASON)),
        ),
    }


def _completions() -> dict[str, Schema]:
    choices = list_of(record({"logprobs": _LOGPROBS}, index=WHOLE, text=TEXT, finish_reason=_REASON))
    return {
        "Completion": record(**_head("text_completion"), choices=choices, **_USED),
        "CompletionChunk": record(_USED, **_head("text_completion"), choices=choices),
        "Embeddings": record(
            {"tandem": component("Tandem")},
            object=constant("list"),
            data=list_of(record(object=constant("embedding"), index=WHOLE, embedding=_VECTOR)),
            model=TEXT,
            usage=record(prompt_tokens=WHOLE, total_tokens=WHOLE),
        ),
    }


def response_schemas() -> dict[str, Schema]:
    """Of OpenAI's responses."""
    item = record({"id": TEXT, "status": TEXT}, type=TEXT)
    used = record(
        input_tokens=WHOLE,
        input_tokens_details=record(cached_tokens=WHOLE),
        output_tokens=WHOLE,
        output_tokens_details=record(reasoning_tokens=WHOLE),
        total_tokens=WHOLE,
    )
    return {
        "ResponseItem": item,
        "Response": record(
            {"tandem": component("Tandem"), "incomplete_details": {"type": ["object", "null"]}},
            id=TEXT,
            object=constant("response"),
            created_at=WHOLE,
            status=constant("completed", "incomplete", "failed", "in_progress"),
            model=TEXT,
            output=list_of(component("ResponseItem")),
            usage=or_null(used),
            error={"type": ["object", "null"]},
        ),
        "ResponseEvent": record({"response": component("Response")}, type=TEXT, sequence_number=WHOLE),
        "ResponseItems": record(
            object=constant("list"),
            first_id=or_null(TEXT),
            last_id=or_null(TEXT),
            has_more=FLAG,
            data=list_of(component("ResponseItem")),
        ),
    }
