"""What every answer says of itself: what it used, and how it was routed."""

from collections.abc import Sequence
from typing import Any

import msgspec

from cluster.api.surface import ApiRequest
from cluster.serving.requests import Finished, Routed
from protocol.errors import as_sentence


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """Tokens, in OpenAI's words."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def noted(answer: dict[str, Any], notes: Sequence[str]) -> dict[str, Any]:
    """An answer for which nothing was generated, with what of its request had no effect, as clauses; as it is where all had."""
    return answer | ({"tandem": {"notes": [as_sentence(note) for note in notes]}} if notes else {})


def accounts(request: ApiRequest, routed: Routed, finished: Finished) -> dict[str, Any]:
    """OpenAI's `usage` and Tandem's own object beside it."""
    predicted = {} if routed.predicted is None else {"predicted": msgspec.to_builtins(routed.predicted)}
    return {
        "usage": usage(finished.prompt_tokens, finished.completion_tokens)
        | {"prompt_tokens_details": {"cached_tokens": finished.cached_tokens}}
        | _guessed(finished),
        "tandem": {
            "strategy": routed.strategy,
            "reason": routed.reason,
            "workers": routed.workers,
            "ttft_s": finished.ttft_s,
            "total_s": finished.total_s,
            "decode_tokens_per_s": finished.decode_tokens_per_s,
            "token_ids": finished.token_ids,
            "cached_tokens": finished.cached_tokens,
            "resumed": finished.resumed,
            "notes": [as_sentence(note) for note in (*request.notes, *finished.notes)],
            **predicted,
            **(
                {"draft": {"proposed": proposed, "accepted": finished.accepted}}
                if (proposed := finished.proposed)
                else {}
            ),
        },
    }


def _guessed(finished: Finished) -> dict[str, Any]:
    """Of tokens that were guessed before the model said them, in OpenAI's words; nothing where none were."""
    if not finished.proposed:
        return {}
    accepted, rejected = finished.accepted, finished.proposed - finished.accepted
    details = {"accepted_prediction_tokens": accepted, "rejected_prediction_tokens": rejected}
    return {"completion_tokens_details": details}
