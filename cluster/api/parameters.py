"""The parameters that OpenAI's generating surfaces share: every field is known, checked and either used or refused.

Fields that ask for something Tandem does not do are refused unless their value asks for nothing (n=1, tools=[]); a
field that no table names is refused with the nearest known name. Nothing that changes an answer is silently ignored.
"""

from typing import Any

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
    strings,
    text,
    token_biases,
)
from cluster.api.surface import ApiRequest
from cluster.serving.requests import GenerationRequest, Prompt
from protocol.errors import BadRequest
from protocol.values import Sampling
from strategy.situation import Mode, Strategy

MAX_TOKEN_ID = 2**31 - 1
# Below it nothing but the largest logit has a chance anyway: the same as greedy.
LEAST_TEMPERATURE = 1e-3


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

COMMON: dict[str, Check] = {
    "model": text(1, 4096),
    "max_tokens": integer(1, MAX_TOKEN_ID),
    "temperature": number(0, 2),
    "top_p": number(0, 1, above_low=True),
    "top_k": integer(0, MAX_TOKEN_ID),
    "min_p": number(0, 1),
    "seed": integer(-(2**63), 2**64 - 1),
    "stop": strings(16, 1024),
    "repetition_penalty": number(0.1, 10),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "logit_bias": token_biases,
    "stream": flag,
    "stream_options": stream_options,
    "strategy": one_of(*(item.value for item in Strategy)),
    "use_distributed_inference": one_of(*(item.value for item in Mode)),
    "conversation": text(1, 128),
    "request_timeout_s": number(0, 86400, above_low=True),
    "n": only("several answers", 1),
    **_BOOKKEEPING,
}


def api_request(fields: dict[str, Any], prompt: Prompt, prompt_field: str) -> ApiRequest:
    """The request of checked common `fields`. Raises BadRequest where they contradict each other."""
    stream = fields.get("stream", False)
    if "stream_options" in fields and not stream:
        raise BadRequest("stream_options is only allowed when stream is true", param="stream_options")
    return ApiRequest(
        generation=GenerationRequest(
            prompt=prompt,
            prompt_field=prompt_field,
            max_tokens=fields.get("max_tokens"),
            stop=fields.get("stop", ()),
            sampling=_sampling(fields),
            mode=fields.get("use_distributed_inference"),
            strategy=fields.get("strategy"),
            conversation=fields.get("conversation"),
            timeout_s=fields.get("request_timeout_s"),
        ),
        model=fields.get("model"),
        stream=stream,
        include_usage=fields.get("stream_options", {}).get("include_usage", False),
    )


def _sampling(fields: dict[str, Any]) -> Sampling:
    chosen = {name: fields[name] for name in Sampling.__struct_fields__ if name in fields}
    if "seed" in chosen:
        chosen["seed"] %= 2**64  # a negative seed by its 64 bits: random keys are made of unsigned integers
    if chosen.get("temperature", 1.0) < LEAST_TEMPERATURE:
        chosen["temperature"] = 0.0  # it divides logits: what is left of the numbers otherwise is noise
    return Sampling(**chosen)
