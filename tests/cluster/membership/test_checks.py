"""Who may say what to the coordinator: strangers a Join with their own key, members what is theirs, nobody nonsense."""

import math

import msgspec
import pytest

from cluster.membership.checks import OF_MEMBERS, can_be_reached, check_member, check_stranger
from protocol.codec import Envelope
from protocol.errors import WireError
from protocol.messages import (
    Embedded,
    FiguresComputed,
    Heartbeat,
    Join,
    Loaded,
    ModelsListed,
    PromptLogprobs,
    StepsRecorded,
    Tokens,
    Update,
)
from protocol.values import MAX_TOP_LOGPROBS, Address, LayerRange, Peer, TokenLogprobs
from strategy.chunking import ChunkCost
from strategy.layer_speeds import PartSpeed
from tests.protocol.test_codec import EXAMPLES

KEY, OTHER = "k" * 40, "o" * 40
AT = Peer(endpoint="tcp://127.0.0.1:5000", public_key=KEY)
JOIN = Join(protocol=1, secret="s", name="w", host="h", pid=7, peer=AT, data=AT, memory_limit_bytes=9)
BEAT = EXAMPLES[2]
REPORT = b'{"worker":"w","steps":[]}'


def of(kind):
    return next(message for message in EXAMPLES.values() if type(message) is kind)


def changed(message, **changes):
    return msgspec.structs.replace(message, **changes)


def test_stranger_may_join():
    assert check_stranger(Envelope(0, JOIN, key=KEY)) is JOIN


@pytest.mark.parametrize("message", [message for message in EXAMPLES.values() if not isinstance(message, Join)])
def test_stranger_may_say_nothing_else(message):
    with pytest.raises(WireError):
        check_stranger(Envelope(0, message, key=KEY))


@pytest.mark.parametrize(
    "changes",
    [
        {"peer": changed(AT, public_key=OTHER)},
        {"data": changed(AT, public_key=OTHER)},
        {"peer": changed(AT, public_key=OTHER), "data": changed(AT, public_key=OTHER)},
        {"pid": 0},
        {"memory_limit_bytes": -1},
        {"memory_limit_bytes": 1 << 62},
        {"held": (LayerRange(3, 1),)},
        {"held": (LayerRange(0, 1 << 40),)},
    ],
)
def test_stranger_s_join_has_its_own_key_and_possible_numbers(changes):
    with pytest.raises(WireError):
        check_stranger(Envelope(0, changed(JOIN, **changes), key=KEY))


@pytest.mark.parametrize("message", [message for message in EXAMPLES.values() if type(message) in OF_MEMBERS])
def test_member_speaks_for_itself(message):
    buffers = (b"", b"") * len(message.prefixes) if isinstance(message, Loaded) else ()
    buffers = (b"\0\0\0\0",) if isinstance(message, Embedded) else buffers
    buffers = (REPORT,) if isinstance(message, StepsRecorded) else buffers
    check_member(Envelope(1, message, buffers, key=KEY), "w")
    if hasattr(message, "worker"):
        with pytest.raises(WireError):
            check_member(Envelope(1, message, buffers, key=KEY), "another")


@pytest.mark.parametrize(
    "buffers",
    [(), (b"",), (b"\0\0\0",), (b"\0" * 4, b"\0" * 4), (bytes(4 * ((1 << 20) + 1)),)],
    ids=["none", "empty", "no whole number", "two", "too large"],
)
def test_vector_is_one_buffer_of_numbers(buffers):
    with pytest.raises(WireError, match="a vector that is none"):
        check_member(Envelope(1, of(Embedded), buffers, key=KEY), "w")


def test_both_ends_of_a_link_may_say_that_it_is_lost():
    lost = EXAMPLES[12]
    assert (lost.worker, lost.peer) == ("w", "v")
    for end in ("w", "v"):
        check_member(Envelope(1, lost, key=KEY), end)


@pytest.mark.parametrize("message", [message for message in EXAMPLES.values() if type(message) not in OF_MEMBERS])
def test_member_says_nothing_that_is_the_coordinator_s_or_the_stages(message):
    with pytest.raises(WireError):
        check_member(Envelope(1, message, key=KEY), "w")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, -1, 1 << 63])
@pytest.mark.parametrize("field", ["busy_s", "oldest_step_s", "overdue_s", "kv_bytes", "steps"])
def test_heartbeat_has_numbers_that_can_be_counted_with(field, value):
    assert isinstance(BEAT, Heartbeat)
    with pytest.raises(WireError):
        check_member(Envelope(0, changed(BEAT, **{field: value}), key=KEY), "w")


def test_what_was_loaded_and_found_fits_a_model():
    prepared, inspected, loaded = EXAMPLES[11], EXAMPLES[3], EXAMPLES[5]
    for message, buffers in (
        (changed(prepared, layers=LayerRange(4, 4)), ()),
        (changed(inspected, num_layers=0), ()),
        (changed(inspected, num_layers=10**8), ()),
        (changed(inspected, legal_cuts=(2,)), ()),
        (changed(loaded, vocabulary_size=0), (b"", b"") * 2),
        (loaded, (b"",)),
        (loaded, ()),
    ):
        with pytest.raises(WireError):
            check_member(Envelope(1, message, buffers, key=KEY), "w")


@pytest.mark.parametrize(
    "changes",
    [
        {"decode": ()},
        {"decode": ((2, 0.5), (1, 0.5))},
        {"decode": ((0, 0.5),)},
        {"decode": ((1, math.nan),)},
        {"decode": tuple((rows, 0.5) for rows in range(1, 99))},
        {"decode_context_s": -0.5},
        {"chunk": ChunkCost(0.5, 0.0)},
        {"chunk": ChunkCost(math.inf, 0.5)},
        {"chunk_context_s": 1e30},
        {"payload_bytes": 1 << 63},
    ],
)
def test_speed_of_a_stage_has_numbers_that_can_be_counted_with(changes):
    loaded = of(Loaded)
    first, second = loaded.prefixes
    slower = changed(first, speed=changed(first.speed, **changes))
    with pytest.raises(WireError, match="speeds of no stage"):
        check_member(Envelope(1, changed(loaded, prefixes=(slower, second)), (b"",) * 4, key=KEY), "w")


@pytest.mark.parametrize(
    "changes", [{"num_sums": -1}, {"row_bytes": 1 << 63}, {"row_s": math.nan}, {"chunk_s": -0.5}, {"transport": "\n"}]
)
def test_sums_of_a_group_can_be_counted_with(changes):
    loaded = of(Loaded)
    first, second = loaded.prefixes
    strange = changed(second, sums=changed(second.sums, **changes))
    with pytest.raises(WireError, match="sums of no group"):
        check_member(Envelope(1, changed(loaded, prefixes=(first, strange)), (b"",) * 4, key=KEY), "w")


@pytest.mark.parametrize(
    "changes",
    [
        {"decode_s": (0.5,)},
        {"decode_s": (), "chunk_s": ()},
        {"chunk_s": (-0.5, None)},
        {"chunk_tokens": 0},
        {"overhead": PartSpeed(math.inf, 0.5)},
        {"head": PartSpeed(0.5, math.nan)},
    ],
)
def test_speeds_of_layers_are_of_a_model_and_can_be_counted_with(changes):
    loaded = of(Loaded)
    told = changed(loaded, layers=changed(loaded.layers, **changes))
    with pytest.raises(WireError, match="speeds of no layers"):
        check_member(Envelope(1, told, (b"",) * 4, key=KEY), "w")


@pytest.mark.parametrize(
    "changes", [{"name": "\x1b[2J"}, {"digest": "d" * 999}, {"held_bytes": -1}, {"num_bytes": 1 << 63}]
)
def test_models_of_a_host_can_be_shown_and_counted(changes):
    listed = of(ModelsListed)
    with pytest.raises(WireError):
        check_member(Envelope(0, changed(listed, models=(changed(listed.models[0], **changes),)), key=KEY), "w")
    with pytest.raises(WireError):
        check_member(Envelope(0, changed(listed, models=listed.models * 5000), key=KEY), "w")


@pytest.mark.parametrize(
    "score",
    [
        TokenLogprobs(math.nan),
        TokenLogprobs(-math.inf),
        TokenLogprobs(-0.5, ((1, math.inf),)),
        TokenLogprobs(-0.5, ((1, -0.5),) * (MAX_TOP_LOGPROBS + 1)),
    ],
)
def test_log_probabilities_are_finite_and_few(score):
    of_prompt = changed(of(PromptLogprobs), entries=(score,))
    for message in (of_prompt, Tokens(updates=(Update(1, (2,), None, (score,)),))):
        with pytest.raises(WireError, match="log probabilities of no token"):
            check_member(Envelope(1, message, key=KEY), "w")


def test_log_probabilities_are_of_each_id_or_of_none():
    one = TokenLogprobs(-0.5)
    with pytest.raises(WireError, match="log probabilities of no token"):
        check_member(Envelope(1, Tokens(updates=(Update(1, (2, 3), None, (one,)),)), key=KEY), "w")
    check_member(Envelope(1, Tokens(updates=(Update(1, (2, 3), None, (one, one)),)), key=KEY), "w")


@pytest.mark.parametrize("changes", [{"layers": LayerRange(3, 1)}, {"rows": ((0.0,) * 2000,) * 50}])
def test_figures_are_of_layers_and_few(changes):
    told = of(FiguresComputed)
    with pytest.raises(WireError):
        check_member(Envelope(0, changed(told, stages=(changed(told.stages[0], **changes),)), key=KEY), "w")
    with pytest.raises(WireError):
        check_member(Envelope(0, changed(told, stages=told.stages * 20), key=KEY), "w")


@pytest.mark.parametrize("buffers", [(), (b"{}",), (b'{"worker":"v","steps":[]}',), (REPORT, REPORT), (b"\xff",)])
def test_steps_are_the_worker_s_own_in_one_report(buffers):
    check_member(Envelope(0, of(StepsRecorded), (REPORT,), key=KEY), "w")
    with pytest.raises(WireError):
        check_member(Envelope(0, of(StepsRecorded), buffers, key=KEY), "w")


@pytest.mark.parametrize(
    "endpoint",
    ["ipc:///tmp/socket", "inproc://door", "tcp://*:*", "tcp://host", "tcp://host:x", "", "tcp://a:1/b", "pgm://a:1"],
)
def test_only_hosts_and_ports_are_addresses(endpoint):
    right = Address(endpoint="tcp://[fe80::1]:5000", interface="en0")
    assert not can_be_reached(Peer(endpoint=endpoint, public_key=KEY))
    wrong = msgspec.structs.replace(right, endpoint=endpoint)
    assert not can_be_reached(msgspec.structs.replace(AT, addresses=(right, wrong)))
    assert can_be_reached(msgspec.structs.replace(AT, addresses=(right,)))
    assert not can_be_reached(msgspec.structs.replace(AT, addresses=(right,) * 100))


@pytest.mark.parametrize("name", ["", "../x", "a b", "-a", "x" * 65, "a/b", "a\nb"])
def test_stranger_without_a_proper_name_is_refused(name):
    with pytest.raises(WireError, match="a name that is none"):
        check_stranger(Envelope(0, msgspec.structs.replace(JOIN, name=name), key=KEY))
