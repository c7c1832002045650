"""Bytes on the wire: a golden message of each kind, and nothing but WireError from anything else."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import wire
from cluster.errors import WireError
from cluster.requests import Sampling

PEER = wire.Peer(endpoint="tcp://127.0.0.1:5000", public_key="k" * 40)
STAGE = wire.StagePlan(worker="w", peer=PEER, layers=wire.Layers(0, 4), holds_full_model=True)
EXAMPLES: dict[int, wire.Message] = {
    1: wire.Join(protocol=1, secret="s", name="w", host="h", pid=7, peer=PEER, memory_limit_bytes=9),
    2: wire.Heartbeat(
        worker="w",
        weights_bytes=1,
        kv_bytes=2,
        running=3,
        queued=0,
        prefix_bytes=0,
        shared_bytes=0,
        disk_bytes=0,
        steps=4,
        rows=5,
        busy_s=0.5,
    ),
    3: wire.Inspected(
        worker="w",
        architecture="llama",
        num_layers=2,
        legal_cuts=(1,),
        why_not=None,
        batches=True,
        last_position_only=True,
        context_tokens=None,
    ),
    4: wire.LoadProgress(worker="w", loaded_bytes=5),
    5: wire.Loaded(
        worker="w",
        weights_bytes=5,
        prefixes=(
            wire.KeptPrefix(
                route=("w",),
                needs=wire.KvNeeds(
                    fixed_bytes=1, growth=(wire.KvGrowth(2, None), wire.KvGrowth(3, 4)), snapshots=False
                ),
            ),
        ),
    ),
    6: wire.LoadFailed(worker="w", message="m"),
    7: wire.Tokens(updates=(wire.Update(1, (2, 3), "stop"), wire.Update(2, (4,)))),
    8: wire.PrefillProgress(sequence=1, processed=2, total=3),
    9: wire.SequenceFailed(sequence=1, message="m"),
    10: wire.Reused(sequence=1, num_tokens=64),
    20: wire.Welcome(coordinator="c"),
    21: wire.Rejected(reason="r"),
    22: wire.InspectModel(model_path="p", cache_dir="c"),
    23: wire.LoadStage(
        model_path="p",
        cache_dir="c",
        kv=wire.KvSettings(),
        prefix_memory_bytes=1,
        prefix_disk_bytes=2,
        stages=(STAGE,),
        last_position_only=True,
        batches=True,
        prefill_chunk_tokens=None,
    ),
    24: wire.Generate(
        sequence=1,
        route=("w",),
        cached=True,
        max_tokens=5,
        end_tokens=(0,),
        sampling=Sampling(temperature=0.5, logit_bias={3: 1.5}),
        seed=9,
    ),
    25: wire.Cancel(sequence=1),
    26: wire.Shutdown(),
    27: wire.KnownPrefix(route=("w",), capacity=4, snapshots=True),
    28: wire.ForgetConversation(conversation="c"),
    40: wire.OpenSequence(
        sequence=1, route=("w",), cached=False, sampling=Sampling(), seed=1, history=(1, 2), max_length=9
    ),
    41: wire.CloseSequence(sequence=1, route=("w",)),
    42: wire.Step(
        number=1,
        route=("a", "b"),
        slot=0,
        cached=True,
        rows=(wire.Row(1, 0, True),),
        num_tokens=1,
        payload=["a", 0],
    ),
    43: wire.Sampled(number=1, route=("a",), tokens=(5,)),
    44: wire.StepFailed(number=1, route=("a",), message="m"),
    45: wire.KeepPrefix(sequence=1, route=("a", "b"), spans=((0, 64),)),
    46: wire.DropPrefix(route=("a", "b")),
}
GOLDEN = {
    8: "83a873657175656e636501a970726f63657373656402a5746f74616c03",
    7: "81a7757064617465739293019202 03a473746f7093029104c0".replace(" ", ""),
    43: "83a66e756d62657201a5726f75746591a161a6746f6b656e739105",
}


def test_every_kind_has_an_example():
    assert set(EXAMPLES) == set(wire.KINDS)


@pytest.mark.parametrize("number", EXAMPLES)
def test_every_kind_survives_the_wire_with_its_epoch_and_buffers(number):
    frames = wire.encode(3, EXAMPLES[number], [b"raw"])
    envelope = wire.decode([bytes(frame) for frame in frames])
    assert envelope == wire.Envelope(3, EXAMPLES[number], (b"raw",))


@pytest.mark.parametrize("number", GOLDEN)
def test_bytes_are_those_that_other_versions_expect(number):
    prefix, header = wire.encode(258, EXAMPLES[number])
    assert prefix.hex() == f"0000000000000102{number:04x}"
    assert header.hex() == GOLDEN[number]


@given(st.lists(st.binary(max_size=64), max_size=4))
def test_arbitrary_frames_never_raise_anything_but_wire_error(frames):
    try:
        wire.decode(frames)
    except WireError:
        pass


@given(st.sampled_from(sorted(wire.KINDS)), st.recursive(st.none() | st.integers(-9, 9) | st.text(), st.lists))
def test_wrong_fields_of_any_kind_are_wire_errors(number, fields):
    frames = [b"\0" * 8 + number.to_bytes(2, "big"), msgpack.packb({"sequence": fields, "updates": fields})]
    try:
        wire.decode(frames)
    except WireError:
        pass


def test_header_beyond_the_limit_is_refused_before_it_is_read():
    with pytest.raises(WireError, match="oversized"):
        wire.decode([b"\0" * 10, b"\xc0" * (wire.MAX_HEADER_BYTES + 1)])
