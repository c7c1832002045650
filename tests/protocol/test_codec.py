"""Bytes on the wire: a golden message of each kind, and nothing but WireError from anything else."""

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import codec, messages
from protocol.errors import WireError
from protocol.values import KvSettings, LayerRange, Peer, Route, Sampling, TokenLogprobs
from strategy.chunking import ChunkCost
from strategy.group_sums import GroupSums
from strategy.layer_speeds import LayerSpeeds, PartSpeed
from strategy.memory import KvGrowth, KvNeeds
from strategy.stage_speed import StageSpeed

PEER = Peer(endpoint="tcp://127.0.0.1:5000", public_key="k" * 40)
STAGE = messages.StagePlan(worker="w", peer=PEER, layers=LayerRange(0, 4), holds_full_model=True)
SCORED = TokenLogprobs(-1.5, ((3, -0.25), (4, -1.5)))
EXAMPLES: dict[int, messages.Message] = {
    1: messages.Join(protocol=1, secret="s", name="w", host="h", pid=7, peer=PEER, data=PEER, memory_limit_bytes=9),
    2: messages.Heartbeat(
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
    3: messages.Inspected(
        worker="w",
        architecture="llama",
        num_layers=2,
        legal_cuts=(1,),
        why_not=None,
        batches=True,
        last_position_only=True,
        context_tokens=None,
        rank_cuts=(
            messages.RankCut(ranks=2, plan="{}", shares=(0.5, 0.5)),
            messages.RankCut(ranks=3, why_not="its 2 heads are fewer"),
        ),
    ),
    4: messages.LoadProgress(worker="w", loaded_bytes=5),
    5: messages.Loaded(
        worker="w",
        weights_bytes=5,
        vocabulary_size=400,
        prefixes=(
            messages.KeptPrefix(
                route=Route(("w",)),
                needs=KvNeeds(fixed_bytes=1, growth=(KvGrowth(2, None), KvGrowth(3, 4)), snapshots=False),
                speed=StageSpeed(
                    decode=((1, 0.5), (2, 0.75)),
                    decode_context_s=0.25,
                    chunk=ChunkCost(0.5, 0.125),
                    chunk_context_s=0.0,
                    payload_bytes=8,
                ),
            ),
            messages.KeptPrefix(
                route=Route(("w", "v"), ranks=2),
                needs=KvNeeds(fixed_bytes=1, growth=(), snapshots=True),
                sums=GroupSums(num_sums=17, row_bytes=512, row_s=0.25, chunk_bytes=1024, chunk_s=0.5),
            ),
        ),
        layers=LayerSpeeds(
            decode_s=(0.5, None),
            chunk_s=(2.0, None),
            chunk_tokens=64,
            overhead=PartSpeed(0.0, 0.5),
            head=PartSpeed(1.0, 2.0),
        ),
        draft=KvNeeds(fixed_bytes=2, growth=(KvGrowth(1, None),), snapshots=False),
    ),
    6: messages.LoadFailed(worker="w", message="m"),
    7: messages.Tokens(updates=(messages.Update(1, (2, 3), "stop"), messages.Update(2, (4,), None, (SCORED,)))),
    8: messages.PrefillProgress(sequence=1, processed=2, total=3),
    9: messages.SequenceFailed(sequence=1, message="m"),
    10: messages.Reused(sequence=1, num_tokens=64),
    11: messages.Prepared(worker="w", layers=LayerRange(0, 4), read_bytes=7),
    12: messages.LinkLost(worker="w", peer="v", why="closed"),
    13: messages.StepOverdue(worker="w", route=Route(("w", "v")), number=3, seconds=5.5),
    14: messages.Leave(worker="w"),
    15: messages.LinksMeasured(
        worker="w",
        links=(
            messages.LinkFigures(
                to="v",
                interface="en0",
                kind="wifi",
                address="tcp://10.0.0.1:5",
                round_trip_us=9,
                bytes_per_s=None,
                in_use=True,
            ),
        ),
        move="idle",
    ),
    16: messages.ModelsListed(
        worker="w",
        number=3,
        models=(messages.HeldModel(digest="d", name="n", held_bytes=5, num_bytes=None, source="hub"),),
    ),
    17: messages.FiguresComputed(
        worker="w",
        number=3,
        stages=(messages.StageFigures(layers=LayerRange(0, 4), rows=((0.5, -1.0),), is_exact=True),),
    ),
    18: messages.PromptLogprobs(sequence=1, start=1, entries=(SCORED, TokenLogprobs(-0.5))),
    19: messages.Embedded(sequence=1),
    20: messages.Welcome(inbox=PEER, door=PEER),
    21: messages.Rejected(reason="r"),
    22: messages.InspectModel(model="d", reply_to=PEER, ranks=(2,)),
    23: messages.LoadStage(
        model="d",
        reply_to=PEER,
        pipeline=Route(("w",)),
        kv=KvSettings(),
        prefix_memory_bytes=1,
        prefix_disk_bytes=2,
        stages=(STAGE,),
        last_position_only=True,
        batches=True,
        prefill_chunk_tokens=None,
        groups=(
            messages.GroupPlan(route=Route(("w", "v"), ranks=2), layers=(LayerRange(0, 4),), cut="{}", secret="00ff"),
        ),
    ),
    24: messages.Generate(
        sequence=1,
        request_id=2,
        route=Route(("w",)),
        cached=True,
        max_tokens=5,
        end_tokens=(0,),
        sampling=Sampling(temperature=0.5, logit_bias={3: 1.5}),
        seed=9,
    ),
    25: messages.Cancel(sequence=1),
    26: messages.Shutdown(),
    27: messages.KnownPrefix(route=Route(("w",)), capacity=4, snapshots=True),
    28: messages.ForgetConversation(conversation="c"),
    29: messages.Beat(members=("w", "v"), watches_steps=True),
    30: messages.PrepareStage(model="d", layers=LayerRange(0, 4), reply_to=PEER),
    31: messages.ListModels(number=3),
    32: messages.ComputeFigures(number=3),
    33: messages.StepsRecorded(worker="w", clock=2.5),
    40: messages.OpenSequence(
        sequence=1,
        request_id=2,
        route=Route(("w",)),
        cached=False,
        sampling=Sampling(),
        seed=1,
        history=(1, 2),
        max_length=9,
    ),
    41: messages.CloseSequence(sequence=1, route=Route(("w",))),
    42: messages.Step(
        number=1,
        route=Route(("a", "b")),
        slot=0,
        cached=True,
        rows=(messages.Row(1, 0, 1),),
        num_tokens=1,
        payload=["a", 0],
    ),
    43: messages.Sampled(number=1, route=Route(("a",)), tokens=((5,),), logprobs=(SCORED,), scored=((), (SCORED,))),
    44: messages.StepFailed(number=1, route=Route(("a",)), message="m"),
    45: messages.KeepPrefix(sequence=1, route=Route(("a", "b")), spans=((0, 64),)),
    46: messages.DropPrefix(route=Route(("a", "b"))),
    47: messages.CopyPrefix(
        route=Route(("a", "b")), worker="a", layers=LayerRange(0, 4), part=["a", 0], is_earlier=True
    ),
    48: messages.CopyArrived(route=Route(("a", "b"))),
    49: messages.ReadPrompt(sequence=1, route=Route(("a", "b")), holder="b", start=64, scope="s", client="c"),
    50: messages.StopReading(sequence=1, route=Route(("a", "b"))),
    51: messages.HandOver(sequence=2, route=Route(("a", "b")), holder="b", request=1, start=64, end=128),
    52: messages.HandedOver(sequence=1, route=Route(("a", "b")), worker="a", start=64, end=128, part=["a", 0]),
    53: messages.ReadingFailed(sequence=1, message="m"),
    54: messages.Pooled(sequence=1, route=Route(("a", "b"))),
}
GOLDEN = {
    8: "83a873657175656e636501a970726f63657373656402a5746f74616c03",
    7: "81a775706461746573929601920203a473746f70900000"
    "96029104c09192cbbff8000000000000929203cbbfd00000000000009204cbbff80000000000000000",
    18: "83a873657175656e636501a5737461727401a7656e7472696573"
    "9292cbbff8000000000000929203cbbfd00000000000009204cbbff800000000000092cbbfe000000000000090",
    19: "81a873657175656e636501",
    29: "83a76d656d6265727392a177a176a46b65797390ad776174636865735f7374657073c3",
    33: "82a6776f726b6572a177a5636c6f636bcb4004000000000000",
    54: "82a873657175656e636501a5726f7574659292a161a16201",
    43: "85a66e756d62657201a5726f7574659291a16101a6746f6b656e73919105"
    "a86c6f6770726f62739192cbbff8000000000000929203cbbfd00000000000009204cbbff8000000000000"
    "a673636f72656492909192cbbff8000000000000929203cbbfd00000000000009204cbbff8000000000000",
}


def test_every_kind_has_an_example():
    assert set(EXAMPLES) == set(codec.KINDS)


@pytest.mark.parametrize("number", EXAMPLES)
def test_every_kind_survives_the_wire_with_its_epoch_and_buffers(number):
    frames = codec.encode(3, EXAMPLES[number], [b"raw"], sender=2, number=9)
    envelope = codec.decode([bytes(frame) for frame in frames])
    assert envelope == codec.Envelope(3, EXAMPLES[number], (b"raw",), 2, 9)


@pytest.mark.parametrize("number", GOLDEN)
def test_bytes_are_those_that_other_versions_expect(number):
    prefix, header = codec.encode(258, EXAMPLES[number])
    assert prefix.hex() == f"0000000000000102{number:04x}000000000000"
    assert header.hex() == GOLDEN[number]


def test_log_probabilities_that_nobody_asked_for_take_no_room():
    message = messages.Sampled(number=1, route=Route(("a",)), tokens=((5,),))
    assert codec.encode(1, message)[1].hex() == "83a66e756d62657201a5726f7574659291a16101a6746f6b656e73919105"


def test_buffer_whose_last_piece_is_missing_is_no_message(monkeypatch):
    monkeypatch.setattr(codec, "MAX_FRAME_BYTES", 16)
    frames = codec.encode(1, EXAMPLES[8], [b"x" * 40, b"y" * 16])
    assert [len(frame) for frame in frames[2:]] == [16, 16, 8, 16, 0]
    assert codec.decode(frames).buffers == (b"x" * 40, b"y" * 16)
    with pytest.raises(WireError):
        codec.decode(frames[:-1])


@given(st.lists(st.binary(max_size=64), max_size=4))
def test_arbitrary_frames_never_raise_anything_but_wire_error(frames):
    try:
        codec.decode(frames)
    except WireError:
        pass


@given(st.sampled_from(sorted(codec.KINDS)), st.recursive(st.none() | st.integers(-9, 9) | st.text(), st.lists))
def test_wrong_fields_of_any_kind_are_wire_errors(number, fields):
    frames = [b"\0" * 8 + number.to_bytes(2, "big") + b"\0" * 6, msgpack.packb({"sequence": fields, "updates": fields})]
    try:
        codec.decode(frames)
    except WireError:
        pass


def generate(**changes):
    return msgspec.structs.replace(EXAMPLES[24], **changes)


@pytest.mark.parametrize("sequence", [-1, -(1 << 63), (1 << 60) + 1, (1 << 64) - 1])
def test_sequence_whose_answer_would_be_refused_is_refused_itself(sequence):
    with pytest.raises(WireError, match="does not decode"):
        codec.decode([bytes(frame) for frame in codec.encode(1, generate(sequence=sequence))])


def test_bias_for_every_id_of_a_large_vocabulary_survives_the_wire():
    message = generate(sampling=Sampling(logit_bias=dict.fromkeys(range(300_000), -1.5)))
    assert codec.decode([bytes(frame) for frame in codec.encode(1, message)]).message == message


@pytest.mark.parametrize("buffers", [[], [b""] * (codec.MAX_BUFFERS + 1)])
def test_what_would_be_refused_where_it_arrives_is_not_sent(buffers):
    message = generate() if buffers else generate(scope="x" * (codec.MAX_HEADER_BYTES + 1))
    with pytest.raises(WireError, match="is too large to send"):
        codec.encode(1, message, buffers)


def test_header_beyond_the_limit_is_refused_before_it_is_read():
    with pytest.raises(WireError, match="oversized"):
        codec.decode([b"\0" * 16, b"\xc0" * (codec.MAX_HEADER_BYTES + 1)])
