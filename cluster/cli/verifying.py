"""Whether each worker computes its layers as this machine does from the model's files: `doctor --verify`.

Compares figures that differ by as much as hidden states do (`workers.model.figures`). What runs 16-bit numbers on another kind of
device rounds otherwise, and a choice of experts may then fall otherwise for some positions: so the bounds are wide there, and a
quarter of the positions may lie beyond them. Knows nothing of how figures are made.
"""

import math
from collections.abc import Iterator, Sequence

import msgspec

from cluster.cli.session import Session
from cluster.cli.showing import layers_text
from cluster.cli.workers_code import run_workers_code
from cluster.planning.model_files import resolve_model
from cluster.serving.findings import Finding
from protocol.errors import TandemError
from protocol.values import LayerRange

EXACT_BOUND, HALF_BOUND = 1e-3, 5e-2
_SHARE_WITHIN = 0.75
_ANSWER_S = 90.0


class Computed(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of some layers, as `protocol.messages.StageFigures`; None stands for what is no number."""

    layers: LayerRange
    rows: tuple[tuple[float | None, ...], ...]
    is_exact: bool


def verify(session: Session) -> Iterator[Finding]:
    """A finding for each worker's layers. Raises TandemError where no cluster serves here."""
    state = session.running_state()
    settings = session.running_settings()
    if state is None or settings is None:
        raise TandemError("no cluster runs here; start it first with `./launch.sh start`")
    told = session.client(state).post("/v1/cluster/figures", {}, _ANSWER_S)["workers"]
    found = {each["name"]: each["stages"] and msgspec.convert(each["stages"], list[Computed]) for each in told}
    ranges = sorted({stage.layers for stages in found.values() for stage in stages or ()})
    session.terminal.progress("computing the same layers on this machine", at_once=True)
    try:
        own = _own(session, str(resolve_model(settings.model.path)), ranges) if ranges else {}
    finally:
        session.terminal.done()
    for worker in (name for name, stages in found.items() if stages is None):
        yield Finding(verdict="problem", text=f"{worker} did not answer; `./launch.sh status` says how it is")
    compared = [compare(name, stage, own[stage.layers]) for name, stages in found.items() for stage in stages or ()]
    yield from compared
    if len(found) > 1 and all(finding.verdict == "problem" for finding in compared):
        yield Finding(verdict="warning", text="all differ: this machine's own copy of the model may be the damaged one")


def compare(worker: str, found: Computed, own: Computed) -> Finding:
    """Whether a worker's figures are those of this machine."""
    bound = EXACT_BOUND if own.is_exact else HALF_BOUND
    apart = difference(found.rows, own.rows)
    layers = f"layers {layers_text(list(found.layers))}"
    if apart <= bound:
        text = (
            f"{worker} computes {layers} as this machine does (apart by {apart:.1g} in proportion, {bound:g} at most)"
        )
        return Finding(verdict="ok", text=text)
    how = (
        f"what comes out is apart by {apart:.2g} in proportion, {bound:g} at most"
        if apart < math.inf
        else "no numbers come out"
    )
    return Finding(
        verdict="problem",
        text=f"{worker} computes {layers} wrongly: {how}; its copy of the model or its memory is damaged: put the model "
        "there anew, and start the worker again",
    )


def difference(found: Sequence[Sequence[float | None]], own: Sequence[Sequence[float | None]]) -> float:
    """How far apart most positions are at most, in proportion to what is right; infinite where there are no numbers."""
    if len(found) != len(own) or not own:
        return math.inf
    apart = sorted(_apart(one, other) for one, other in zip(found, own, strict=True))
    return apart[math.ceil(_SHARE_WITHIN * len(apart)) - 1]


def _apart(found: Sequence[float | None], own: Sequence[float | None]) -> float:
    pairs = list(zip(found, own, strict=False))
    numbers = [(one, other) for one, other in pairs if one is not None and other is not None]
    if len(numbers) < len(pairs) or len(found) != len(own):
        return math.inf
    size = math.hypot(*(other for _, other in numbers))
    distance = math.hypot(*(one - other for one, other in numbers))
    return distance / size if size else (math.inf if distance else 0.0)


def _own(session: Session, path: str, ranges: Sequence[LayerRange]) -> dict[LayerRange, Computed]:
    """What this machine computes, in a process of the workers' code."""
    words = ["--model", path, "--cache", str(session.home.cache), *(f"{start}:{end}" for start, end in ranges)]
    fails = "this machine cannot compute the model's layers itself"
    found = run_workers_code(session, "workers.model.figures", words, list[Computed], fails=fails)
    return {each.layers: each for each in found}
