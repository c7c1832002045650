"""Keeps what schemathesis asks for short, and right where no schema can say what is: traces take a second, and what is valid by the
document is asked with a few tokens to generate, as much time as they need (a slow machine rightly answers 504 to a second's limit),
and without structures, names of tools and sizes of vectors, of which only the API knows whether they can be followed.

SCHEMATHESIS_HOOKS=hooks st run --checks=all http://127.0.0.1:8420/openapi.json     # in this folder
"""

import schemathesis

# What can say how many; max_tokens is what each path that generates takes.
LIMITS = {"max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens", "num_predict", "n_predict"}
GENERATING = {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/api/chat", "/api/generate"}
STRUCTURES = {
    "guided_json", "guided_grammar", "guided_regex", "structured_outputs", "grammar", "json_schema",
    "response_format", "format", "output_format", "output_config", "text",
}  # fmt: skip
KNOWN_HERE = STRUCTURES | {"request_timeout_s", "tool_choice", "dimensions"}
FEW = 3


@schemathesis.hook
def before_call(_context, case, _kwargs):
    seconds = (case.query or {}).get("seconds")
    if str(seconds).isdecimal() and int(seconds) > 1:  # which a trace takes
        case.query["seconds"] = 1
    is_valid = case.meta is not None and case.meta.generation.mode.is_positive
    if not is_valid or not isinstance(case.body, dict):
        return
    left_out = KNOWN_HERE | (LIMITS if case.operation.path in GENERATING else set())
    case.body = {name: value for name, value in case.body.items() if name not in left_out}
    if case.operation.path in GENERATING:
        case.body["max_tokens"] = FEW
