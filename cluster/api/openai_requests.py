"""OpenAI request bodies into GenerationRequests: every field is known, checked and either used or refused.

Fields that ask for something Tandem does not do are refused unless their value asks for nothing (n=1, tools=[]); a
field that no table names is refused with the nearest known name. Nothing that changes an answer is silently ignored.
"""

from typing import Any

import msgspec

from cluster.api.fields import (
    Check,
    check_all,
    flag,
    ignored,
    integer,
    mapping,
    number,
    one_of,
    only,
    refuse,
    strings,
    text,
    token_biases,
    unknown,
)
from cluster.serving.requests import GenerationRequest
from protocol.errors import BadRequest
from protocol.values import Sampling
from strategy.decision import Mode, Strategy

MAX_TOKEN_ID = 2**31 - 1
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class ApiRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A validated body. model: the name asked for, None for the one that is loaded."""

    generation: GenerationRequest
    model: str | None
    stream: bool
    include_usage: bool


def chat_messages(name: str, value: Any) -> tuple[dict[str, str], ...]:
    """A non-empty list of messages, their content flattened to text and "developer" called "system"."""
    if type(value) is not list or not value:
        raise refuse(name, "a list of at least one message", value)
    return tuple(_message(f"{name}[{index}]", item) for index, item in enumerate(value))


def raw_prompt(name: str, value: Any) -> str | tuple[int, ...]:
    """One prompt: a string, a list of token ids, or a list that holds exactly one of these."""
    if type(value) is list and len(value) == 1 and type(value[0]) in (str, list):
        value = value[0]
    if type(value) is str and value:
        return value
    if type(value) is not list or not value:
        raise refuse(name, "a string that is not empty or a list of token ids", value)
    if type(value[0]) in (str, list):
        raise BadRequest(f"{name} holds {len(value)} prompts; send one prompt in each request.", param=name)
    token = integer(0, MAX_TOKEN_ID)
    return tuple(token(f"{name}[{index}]", item) for index, item in enumerate(value))


def response_format(name: str, value: Any) -> None:
    if value != {"type": "text"}:
        raise BadRequest(f'{name} must be {{"type": "text"}}: other formats are not supported.', param=name)


def stream_options(name: str, value: Any) -> dict[str, Any]:
    checks = {"include_usage": flag, "include_obfuscation": only("padding of the stream", False)}
    return check_all(mapping(name, value), checks, f"{name}.")


_BOOKKEEPING: dict[str, Check] = {
    "user": ignored(text(0, 1024)),
    "metadata": ignored(mapping),
    "store": only("storing the answer", False),
    "service_tier": only("another service tier", "auto", "default"),
    "safety_identifier": ignored(text(0, 1024)),
    "prompt_cache_key": ignored(text(0, 1024)),
}

_COMMON: dict[str, Check] = {
    "model": text(1, 4096),
    "max_tokens": integer(1, MAX_TOKEN_ID),
    "temperature": number(0, 2),
    "top_p": number(0, 1, above_low=True),
    "top_k": integer(0, MAX_TOKEN_ID),
    "min_p": number(0, 1),
    "seed": integer(-(2**63), 2**64 - 1),
    "stop": strings(16, 1024),
    "repetition_penalty": number(0, 1000, above_low=True),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "logit_bias": token_biases,
    "stream": flag,
    "stream_options": stream_options,
    "strategy": one_of(*(item.value for item in Strategy)),
    "use_distributed_inference": one_of(*(item.value for item in Mode)),
    "conversation": text(1, 128),
    "n": only("several answers", 1),
    **_BOOKKEEPING,
}

_CHAT: dict[str, Check] = {
    **_COMMON,
    "messages": chat_messages,
    "max_completion_tokens": integer(1, MAX_TOKEN_ID),
    "logprobs": only("log probabilities", False),
    "top_logprobs": only("log probabilities", 0),
    "tools": only("tool calls", []),
    "tool_choice": only("tool calls", "none"),
    "parallel_tool_calls": ignored(flag),
    "functions": only("function calls", []),
    "function_call": only("function calls", "none"),
    "response_format": response_format,
    "modalities": only("other modalities than text", ["text"], []),
    "audio": only("audio"),
    "prediction": only("a predicted output"),
    "reasoning_effort": only("reasoning", "none"),
    "verbosity": only("another verbosity", "medium"),
    "web_search_options": only("web search"),
}

_COMPLETION: dict[str, Check] = {
    **_COMMON,
    "prompt": raw_prompt,
    "logprobs": only("log probabilities"),
    "echo": only("the prompt in the answer", False),
    "suffix": only("text to insert before", ""),
    "best_of": only("several answers", 1),
}


def parse_chat(body: dict[str, Any]) -> ApiRequest:
    """The body of /v1/chat/completions. Raises BadRequest naming the field."""
    fields = check_all(body, _CHAT)
    if "messages" not in fields:
        raise BadRequest("messages is missing; send a list of chat messages.", param="messages")
    return _request(fields, messages=fields["messages"])


def parse_completion(body: dict[str, Any]) -> ApiRequest:
    """The body of /v1/completions. Raises BadRequest naming the field."""
    fields = check_all(body, _COMPLETION)
    if "prompt" not in fields:
        raise BadRequest("prompt is missing; send a string or a list of token ids.", param="prompt")
    prompt = fields["prompt"]
    return _request(fields, **({"text": prompt} if isinstance(prompt, str) else {"tokens": prompt}))


def parse_explain(body: dict[str, Any]) -> ApiRequest:
    """The body of /v1/explain: one of the two others, told apart by `prompt`. Raises BadRequest naming the field."""
    if body.get("prompt") is not None and body.get("messages") is not None:
        raise BadRequest("Send either messages or prompt, not both.", param="prompt")
    return parse_completion(body) if body.get("prompt") is not None else parse_chat(body)


def _request(fields: dict[str, Any], **prompt: Any) -> ApiRequest:
    stream = fields.get("stream", False)
    if "stream_options" in fields and not stream:
        raise BadRequest("stream_options is only allowed when stream is true.", param="stream_options")
    return ApiRequest(
        generation=GenerationRequest(
            **prompt,
            max_tokens=_max_tokens(fields),
            stop=fields.get("stop", ()),
            sampling=_sampling(fields),
            mode=fields.get("use_distributed_inference"),
            strategy=fields.get("strategy"),
            conversation=fields.get("conversation"),
        ),
        model=fields.get("model"),
        stream=stream,
        include_usage=fields.get("stream_options", {}).get("include_usage", False),
    )


def _max_tokens(fields: dict[str, Any]) -> int | None:
    older, newer = fields.get("max_tokens"), fields.get("max_completion_tokens")
    if older is not None and newer is not None and older != newer:
        raise BadRequest("max_tokens and max_completion_tokens differ; send one of them.", param="max_tokens")
    return older if newer is None else newer


def _sampling(fields: dict[str, Any]) -> Sampling:
    chosen = {name: fields[name] for name in Sampling.__struct_fields__ if name in fields}
    if "seed" in chosen:
        chosen["seed"] %= 2**64  # a negative seed by its 64 bits: random keys are made of unsigned integers
    return Sampling(**chosen)


_MESSAGE: dict[str, Check] = {
    "role": one_of(*ROLES),
    "content": lambda _name, value: value,
    "name": text(1, 64),
    # What the official client puts into an assistant message that is sent back.
    "refusal": only("a refusal"),
    "audio": only("audio"),
    "function_call": only("function calls"),
    "tool_calls": only("tool calls", []),
    "annotations": only("annotations", []),
}


def _message(name: str, value: Any) -> dict[str, str]:
    fields = check_all(mapping(name, value), _MESSAGE, f"{name}.")
    if "role" not in fields:
        raise BadRequest(f"{name}.role is missing.", param=f"{name}.role")
    if "content" not in fields and fields["role"] != "assistant":
        raise BadRequest(f"{name}.content is missing.", param=f"{name}.content")
    message = {"role": ROLES[fields["role"]], "content": _content(f"{name}.content", fields.get("content", ""))}
    return message | ({"name": fields["name"]} if "name" in fields else {})


def _content(name: str, value: Any) -> str:
    if type(value) is str:
        return value
    if type(value) is not list:
        raise refuse(name, "a string or a list of text parts", value)
    return "".join(_text_part(f"{name}[{index}]", part) for index, part in enumerate(value))


def _text_part(name: str, part: Any) -> str:
    kind = mapping(name, part).get("type")
    if kind != "text":
        raise BadRequest(
            f'{name}.type must be "text": images, audio and files are not supported.', param=f"{name}.type"
        )
    if type(part.get("text")) is not str:
        raise refuse(f"{name}.text", "a string", part.get("text"))
    for key in part:
        if key not in ("type", "text"):
            raise unknown(key, ("type", "text"), f"{name}.")
    return part["text"]
