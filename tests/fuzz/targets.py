"""Where bytes from strangers enter, one function each: any bytes are taken, or refused as its documentation says.

Whatever else is raised is a bug. `corpus/NAME` holds bytes that were one, and some that are taken.
"""

import tempfile
from contextlib import suppress
from pathlib import Path

from cluster.api.body import decode_object
from cluster.api.explain import parse_explain
from cluster.api.fields import Notes
from cluster.api.surfaces import SURFACES
from cluster.api.token_routes import parse_tokenize
from cluster.membership.checks import can_be_reached, check_member, check_stranger
from cluster.planning.model_files import read_config, read_header, read_sizes
from protocol.codec import decode
from protocol.errors import ApiError, ModelError, WireError
from protocol.messages import KeptPrefix
from protocol.values import LayerRange, Peer, Route
from strategy.memory import KvGrowth, KvNeeds
from workers.cache.disk_tier import _named
from workers.engine.checks import Checks
from workers.engine.fitness import UnfitMessage
from workers.model.stage_loading import LoadedStages

CORPUS = Path(__file__).parent / "corpus"
_FOLDER = Path(tempfile.mkdtemp(prefix="tandem-fuzz-"))
_MOST_FRAMES = 6
_ROUTES = (Route(("w", "v")), Route(("w",)))
_NEEDS = KvNeeds(fixed_bytes=1, growth=(KvGrowth(2, None),), snapshots=False)
_CHECKS = [
    Checks(
        name,
        lambda: LoadedStages(
            executors=dict.fromkeys(_ROUTES),  # type: ignore[arg-type]
            prefixes=tuple(KeptPrefix(route=route, needs=_NEEDS) for route in _ROUTES),
            layers={"w": LayerRange(0, 4), "v": LayerRange(4, 8)},
            max_rows=4,
            vocabulary_size=400,
        ),
    )
    for name in ("w", "v")
]


def wire(data: bytes) -> None:
    """Frames from another process, and what they say, to the coordinator and to a worker. A 0xFF separates frames."""
    frames = data.split(b"\xff\xff", _MOST_FRAMES)
    try:
        envelope = decode(frames, key="k")
    except WireError:
        return
    for check in (check_stranger, lambda envelope: check_member(envelope, "w")):
        with suppress(WireError):
            check(envelope)
    for checks in _CHECKS:
        with suppress(
            UnfitMessage, ValueError, OverflowError
        ):  # the boundary of one message takes these as its failure
            checks.check(envelope.message, envelope.buffers)


def request(data: bytes) -> None:
    """A request's body, for every path that takes one."""
    for parse in (parse_explain, parse_tokenize, *(surface.parse for surface in SURFACES)):
        try:
            parse(decode_object(data), Notes())
        except ApiError as error:
            error.body()
            if error.status >= 500:
                raise
        except RecursionError:  # the boundary of one request takes it as its failure
            continue


def header(data: bytes) -> None:
    """A file of weights."""
    (_FOLDER / "model.safetensors").write_bytes(data)
    with suppress(ModelError):
        read_header(_FOLDER / "model.safetensors")
        sizes = read_sizes(_FOLDER, 4)
        assert min((*sizes.layers, sizes.embedding, sizes.head)) >= 0


def config(data: bytes) -> None:
    """A model's configuration."""
    (_FOLDER / "config.json").write_bytes(data)
    with suppress(ModelError):
        read_config(_FOLDER)


def names(data: bytes) -> None:
    """Names: of files in the folder of kept prefixes, and of where a worker says that it is."""
    text = data.decode(errors="replace").replace("\0", "").replace("/", "")
    _named(_FOLDER / f"{text}.safetensors")
    can_be_reached(Peer(endpoint=text, public_key=""))


TARGETS = {target.__name__: target for target in (wire, request, header, config, names)}
