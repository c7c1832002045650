"""INTERFACE's `status --json` in parts: what is said of the model, of one worker, and of reuse."""

from typing import Any

import msgspec

from cluster.membership.roster import Member, WorkerState
from cluster.serving.requests import ModelInfo
from strategy.memory import WorkerBudget


def model_status(model: ModelInfo) -> dict[str, Any]:
    return {
        "id": model.id,
        "layers": model.layers,
        "bytes": model.bytes,
        "context_tokens": model.context_tokens,
        "has_chat_template": model.has_chat_template,
    }


def worker_status(member: Member, budget: WorkerBudget) -> dict[str, Any]:
    """What a lost worker had is gone with it. shared_bytes: of what is kept, what running requests began with."""
    gone = member.state is WorkerState.LOST
    beat = None if gone else member.heartbeat
    return {
        "name": member.name,
        "host": "local",
        "pid": member.pid,
        "state": member.state,
        "layers": [member.layers.start, member.layers.end] if member.layers else None,
        "holds_full_model": member.holds_full_model and not gone,
        "memory": {
            "limit_bytes": member.memory_limit_bytes,
            "weights_bytes": 0 if gone else member.loaded_bytes,
            "kv_bytes": beat.kv_bytes if beat else 0,
        },
        "cache": {
            "kv_budget_bytes": budget.sequence_bytes,
            "prefix_budget_bytes": budget.prefix_bytes,
            "prefix_bytes": beat.prefix_bytes if beat else 0,
            "shared_bytes": beat.shared_bytes if beat else 0,
            "disk_bytes": beat.disk_bytes if beat else 0,
        },
        "load": msgspec.to_builtins(member.load),
    }


def reuse_status(prompt_tokens: int, cached_tokens: int) -> dict[str, Any]:
    """Of all prompt tokens of cached strategies, how many needed no computing."""
    hit_rate = round(cached_tokens / prompt_tokens, 4) if prompt_tokens else 0.0
    return {"prompt_tokens": prompt_tokens, "cached_tokens": cached_tokens, "hit_rate": hit_rate}
