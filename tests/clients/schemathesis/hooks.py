"""Keeps what schemathesis asks for short: what is valid by the document is asked with a few tokens to generate, and as much time as they
need, since a slow machine rightly answers 504 to a second's limit.

SCHEMATHESIS_HOOKS=hooks st run --checks=all http://127.0.0.1:8420/openapi.json     # in this folder
"""

import schemathesis

# What can say how many; max_tokens is what each path that generates takes.
LIMITS = {"max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens", "num_predict", "n_predict"}
GENERATING = {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/api/chat", "/api/generate"}
TIME = {"request_timeout_s"}
FEW = 3


@schemathesis.hook
def before_call(_context, case, _kwargs):
    is_valid = case.meta is not None and case.meta.generation.mode.is_positive
    if is_valid and case.operation.path in GENERATING and isinstance(case.body, dict):
        case.body = {name: value for name, value in case.body.items() if name not in LIMITS | TIME} | {
            "max_tokens": FEW
        }
