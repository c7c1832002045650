"""The parameters that OpenAI's generating surfaces share, and what other servers' clients send in their place.

A field that would change an answer is used, or refused unless its value asks for nothing (n=1, tools=[]). One that is a hint
(billing, caching, storage, tracing, the sizes of another server) is accepted, as is one that nobody knows; both are named in
the answer's notes. Nothing is silently ignored.
"""

from collections.abc import Iterable
from typing import Any

from cluster.api.fields import (
    MAX_TOKEN_ID,
    Check,
    Notes,
    check_all,
    flag,
    hint,
    integer,
    mapping_of,
    number,
    one_of,
    only,
    refuse,
    strings,
    text,
    token_biases,
)
from cluster.api.predicted import prediction
from cluster.api.schemas import Schema, any_of, component, described, object_schema
from cluster.api.structured import STRUCTURED, structure_of
from cluster.api.surface import ApiRequest
from cluster.serving.requests import ChatPrompt, GenerationRequest, Prompt, Structure
from protocol.errors import BadRequest
from protocol.values import Sampling
from strategy.situation import Strategy
from strategy.wishes import Mode

# Below it nothing but the largest logit has a chance anyway: the same as greedy.
LEAST_TEMPERATURE = 1e-3


_LIMIT = integer(1, MAX_TOKEN_ID)
# "As many as you like" elsewhere.
_NO_LIMIT = (-1, -2, "-1", "-2")
_REPETITION_PENALTY = number(0.1, 10)
_TOP_K = integer(-1, MAX_TOKEN_ID)


@described(lambda: any_of({"enum": list(_NO_LIMIT)}, _LIMIT.schema))
def token_limit(name: str, value: Any) -> int | None:
    """How many tokens to generate at most; None for as many as there can be."""
    if type(value) in (int, float, str) and value in _NO_LIMIT:
        return None
    try:
        return _LIMIT(name, value)
    except BadRequest:
        raise refuse(name, f"an integer from 1 to {MAX_TOKEN_ID}, or -1", value) from None


@described(lambda: _TOP_K.schema)
def top_k(name: str, value: Any) -> int:
    """0 and -1 leave all tokens."""
    return max(_TOP_K(name, value), 0)


STREAM_OPTIONS: dict[str, Check] = {
    "include_usage": flag,
    "continuous_usage_stats": flag,
    "include_obfuscation": hint(False),
}

# How other servers call what is known here.
SYNONYMS = {
    "repetition_penalty": ("repeat_penalty",),
    "max_tokens": ("max_new_tokens", "num_predict", "n_predict"),
}

_HINTS: dict[str, Check] = {
    "user": hint(""),
    "metadata": hint({}),
    "store": hint(False),
    "service_tier": hint("auto", "default"),
    "safety_identifier": hint(""),
    "prompt_cache_key": hint(""),
    "prompt_cache_retention": hint(),
    "verbosity": hint("medium"),
    "usage": hint(),
    "ttl": hint(),
    "keep_alive": hint(),
    "num_ctx": hint(),
    "cache_prompt": hint(True),
    "draft_model": hint(),
    "num_draft_tokens": hint(),
    "repetition_context_size": hint(),
    "repeat_last_n": hint(),
    "xtc_threshold": hint(),
}

_OF_OTHER_SAMPLERS: dict[str, Check] = {
    "xtc_probability": only("leaving out the likeliest tokens", 0, 0.0),
    "typical_p": only("typical sampling", 1, 1.0),
    "tfs_z": only("tail-free sampling", 1, 1.0),
    "mirostat": only("mirostat sampling", 0),
    "dynatemp_range": only("a temperature that changes", 0, 0.0),
    "dry_multiplier": only("the DRY penalty", 0, 0.0),
    "length_penalty": only("beam search", 1, 1.0),
    "use_beam_search": only("beam search", False),
    "adapters": only("adapters"),
}

COMMON: dict[str, Check] = {
    "model": text(0, 4096),
    "max_tokens": token_limit,
    **dict.fromkeys(SYNONYMS["max_tokens"], token_limit),
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "top_k": top_k,
    "min_p": number(0, 1),
    "seed": integer(-(2**63), 2**64 - 1),
    "stop": strings(16, 1024),
    "repetition_penalty": _REPETITION_PENALTY,
    "repeat_penalty": _REPETITION_PENALTY,
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "logit_bias": token_biases,
    "ignore_eos": flag,
    "min_tokens": integer(0, MAX_TOKEN_ID),
    "stream": flag,
    "stream_options": mapping_of(STREAM_OPTIONS),
    # Of those that there are, a cluster can run some.
    "strategy": described(component("FeasibleStrategy"))(one_of(*(item.value for item in Strategy))),
    "use_distributed_inference": one_of(*(item.value for item in Mode)),
    "conversation": text(1, 128),
    "prediction": prediction,
    "request_timeout_s": number(0.001, 86400),
    "n": only("several answers", 1),
    **STRUCTURED,
    **_OF_OTHER_SAMPLERS,
    **_HINTS,
}

_SAMPLING = (*Sampling.__struct_fields__, "max_tokens", "stop", "ignore_eos")
# What may stand in `options`: how tokens are chosen, and how many.
OPTIONS: dict[str, Check] = {
    **{name: COMMON[name] for field in _SAMPLING if field in COMMON for name in (field, *SYNONYMS.get(field, ()))},
    **_OF_OTHER_SAMPLERS,
}


def understood(body: dict[str, Any], checks: dict[str, Check], notes: Notes) -> dict[str, Any]:
    """The checked fields of a body, and of its `options` where Ollama's clients send them. What is said beside `options` counts more."""
    options = body.get("options")
    if type(options) is not dict:
        return check_all(body, checks, notes)
    further = check_all(options, OPTIONS, notes)
    return further | check_all({name: value for name, value in body.items() if name != "options"}, checks, notes)


def understood_schema(checks: dict[str, Check], required: Iterable[str]) -> Schema:
    """What `understood` takes."""
    schema = object_schema(checks, required)
    schema["properties"]["options"] = component("Options")
    return schema


def options_schema() -> Schema:
    """What `options` may be; one that is no object has no effect."""
    return {"properties": object_schema(OPTIONS)["properties"]}


def said_by(fields: dict[str, Any], names: Iterable[str], notes: Notes) -> Any:
    """What is said by the first of several names for one thing, None where by none. Others that say something else have no effect."""
    said = None
    for name in names:
        value = fields.get(name)
        if said is None:
            said = value
        elif value not in (None, said):
            notes.without_effect(name, ())
    return said


def api_request(
    fields: dict[str, Any], prompt: Prompt, prompt_field: str, notes: Notes, forced: Structure | None = None
) -> ApiRequest:
    """The request of checked common `fields`. forced: a call that the answer has to be, whatever else is said of it."""
    fields = fields | {name: said_by(fields, (name, *synonyms), notes) for name, synonyms in SYNONYMS.items()}
    stream = fields.get("stream", False)
    if fields.get("stream_options") and not stream:
        notes.without_effect("stream_options", ())
    chosen, structure = _sampling(fields), structure_of(fields, notes)
    streamed = check_all(fields.get("stream_options", {}), STREAM_OPTIONS, notes, "stream_options.")
    return ApiRequest(
        generation=GenerationRequest(
            prompt=prompt,
            prompt_field=prompt_field,
            max_tokens=fields.get("max_tokens"),
            stop=fields.get("stop", ()),
            sampling=Sampling(**chosen),
            mode=fields.get("use_distributed_inference"),
            strategy=fields.get("strategy"),
            conversation=fields.get("conversation"),
            timeout_s=fields.get("request_timeout_s"),
            ignores_end_tokens=fields.get("ignore_eos", False) and (forced or structure) is None,
            given=frozenset(chosen),
            structure=forced or structure,
            prediction=fields.get("prediction", ""),
        ),
        model=fields.get("model") or None,
        stream=stream,
        include_usage=streamed.get("include_usage", False),
        counts_each=streamed.get("continuous_usage_stats", False),
        notes=(*notes.clauses, *_not_called(prompt, structure)),
    )


def _not_called(prompt: Prompt, structure: Structure | None) -> tuple[str, ...]:
    """What is to be said where an answer that has to be something leaves no room for a call."""
    if structure is None or not isinstance(prompt, ChatPrompt) or not prompt.tools or prompt.forced is not None:
        return ()
    return (f"no tool is called, since the answer is held to {structure.field}",)


def _sampling(fields: dict[str, Any]) -> dict[str, Any]:
    """What is said of sampling; for the rest the model's own defaults count."""
    named = set(Sampling.__struct_fields__) - {"logprobs", "grammar"}  # which are said in several ways
    chosen = {name: fields[name] for name in fields if name in named and fields[name] is not None}
    if "seed" in chosen:
        chosen["seed"] %= 2**64  # a negative seed by its 64 bits: random keys are made of unsigned integers
    # It divides logits: what is left of the numbers otherwise is noise. And no share of the likeliest tokens is the likeliest one.
    if chosen.get("temperature", 1.0) < LEAST_TEMPERATURE or chosen.get("top_p", 1.0) == 0:
        chosen |= {"temperature": 0.0, "top_p": 1.0}
    return chosen
