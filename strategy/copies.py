"""Who holds copies of what a stage keeps of past sequences, so that whoever takes its layers over need not compute it anew.

One worker of the ring for each stage: one that holds the layers next to it, since stages are contiguous ranges. Pure.
"""

from strategy.vocabulary import Route


def copy_holder(pipeline: Route, worker: str) -> str | None:
    """Who is given copies of what a worker keeps on a route: the worker behind it, and for the last one the one before it;
    None where it is alone. Raises ValueError for a worker that is not on the route.
    """
    if pipeline.is_single:
        return None
    return pipeline.next_after(worker) or pipeline.workers[-2]


def copied_by(pipeline: Route, holder: str) -> tuple[str, ...]:
    """The workers whose copies a worker is given."""
    return tuple(worker for worker in pipeline if copy_holder(pipeline, worker) == holder)


def share(num_bytes: int, pipeline: Route, worker: str) -> int:
    """Of its room for what it keeps on a route, what a worker has for its own where the rest is for copies."""
    return num_bytes // (1 + len(copied_by(pipeline, worker)))
