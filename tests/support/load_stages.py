"""Plans as workers are told of them, of which only the little matters that a test says."""

from protocol.messages import LoadStage
from protocol.values import KvSettings, Peer


def load_stage(model: str, reply_to: Peer) -> LoadStage:
    """With nobody in it."""
    return LoadStage(
        model=model,
        reply_to=reply_to,
        kv=KvSettings(),
        prefix_memory_bytes=0,
        prefix_disk_bytes=0,
        stages=(),
        pipeline=None,
        last_position_only=True,
        batches=True,
        prefill_chunk_tokens=None,
    )
