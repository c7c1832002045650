"""Weights that come from other hosts: exactly those of the layers, checked, resumed, and never a plausible zero."""

import errno
import os
import random
import shutil
import threading

import mlx.core as mx
import msgspec
import pytest
from mlx.utils import tree_flatten

from benchmarks.support.mutation import mutated_question
from protocol.errors import ModelError
from protocol.model_digest import model_digest
from protocol.values import LayerRange
from protocol.weight_pieces import AskHashes, AskManifest, AskPiece, Manifest, piece_hash
from tests.support.weights_hosts import PATIENCE_S, SourceHost, fetch, fetcher
from workers.model.inspection import inspect
from workers.model.needed_tensors import needed_tensors
from workers.model.shelf import Overtaken
from workers.model.sparse_model import SparseModel
from workers.model.split_model import SplitModel
from workers.model.weights_source import ABSENT, GIVEN, WeightsSource, manifest_of
from workers.zoo import make_tiny_model

ARCHITECTURES = ("llama", "qwen3_moe", "gpt2", "mamba2", "gemma3n", "deepseek_v3")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Of so many tensors that breaks and faults have something between them."""
    return make_tiny_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def digest(llama):
    return model_digest(llama)


def held_by(path, layers):
    """The weights that a range reads, by the bytes that they are."""
    model = SplitModel.load(path)
    model.read(layers)
    arrays = [array for index in range(*layers) for _, array in tree_flatten(model.layers[index].parameters())]
    mx.eval(arrays)
    return [bytes(memoryview(array.reshape(-1).view(mx.uint8))) for array in arrays]


def needed_bytes(path, *ranges):
    """Of the tensors that layers need."""
    needed = needed_tensors(path, [LayerRange(*each) for each in ranges])
    tensors = {name: array for file in path.glob("model*.safetensors") for name, array in mx.load(str(file)).items()}
    return sum(tensors[name].nbytes for name in needed)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("part", ["first", "middle", "last"])
def test_layers_that_were_fetched_are_those_of_the_source_and_no_other_tensor_came(architecture, part, tmp_path):
    source = make_tiny_model(architecture, tmp_path / "source")
    found = inspect(source, None)
    cuts = (0, *found.legal_cuts, found.num_layers)
    number = {"first": 0, "middle": (len(cuts) - 1) // 2, "last": len(cuts) - 2}[part]
    bounds = cuts[number : number + 2]
    host = SourceHost("a", source)
    path = fetch(fetcher(tmp_path / "models", host), model_digest(source), [host], bounds)
    assert model_digest(path) == model_digest(source)
    assert held_by(path, LayerRange(*bounds)) == held_by(source, LayerRange(*bounds))
    first_bytes = sum(file.header_bytes or file.num_bytes for file in manifest_of(source).files)
    assert host.num_bytes - first_bytes == needed_bytes(source, bounds)


def test_absent_tensors_are_not_a_number_until_they_are_fetched(llama, digest, tmp_path):
    host = SourceHost("a", llama)
    fetching = fetcher(tmp_path, host)
    path = fetch(fetching, digest, [host], (0, 2))
    model = SplitModel.load(path)
    for index, layer in enumerate(model.layers):
        for _, array in tree_flatten(layer.parameters()):
            assert mx.isnan(array).any().item() == (index >= 2)
    fetch(fetching, digest, [host], (0, 4))
    model = SplitModel.load(path)
    assert not any(mx.isnan(array).any().item() for _, array in tree_flatten(model.layers[3].parameters()))
    assert mx.isnan(model.layers[4].self_attn.q_proj.weight).any().item()


def test_model_that_is_open_reads_what_was_fetched_since(llama, digest, tmp_path):
    host = SourceHost("a", llama)
    fetching = fetcher(tmp_path, host)
    opened = SplitModel.load(fetch(fetching, digest, [host], (0, 2)))
    opened.read(LayerRange(0, 2))
    fetch(fetching, digest, [host], (0, 3))
    opened.read(LayerRange(2, 3))
    whole = SplitModel.load(llama)
    pairs = zip(tree_flatten(opened.layers[2].parameters()), tree_flatten(whole.layers[2].parameters()), strict=True)
    assert all(mx.array_equal(ours, theirs).item() for (_, ours), (_, theirs) in pairs)


def flipped(answer):
    data = bytearray(answer[1])
    data[len(data) // 2] ^= 1
    return GIVEN, bytes(data)


def test_flipped_byte_is_found_and_fetched_again(llama, digest, tmp_path):
    first = len(manifest_of(llama).files)
    host = SourceHost("a", llama, lambda number, answer: flipped(answer) if number == first + 5 else answer)
    path = fetch(fetcher(tmp_path, host), digest, [host], (0, 6))
    assert held_by(path, LayerRange(0, 6)) == held_by(llama, LayerRange(0, 6))
    pieces = [span for spans in SparseModel.open(path).spans for span in spans if span.tensor]
    assert host.num_given == first + len(pieces) + 1


def test_byte_that_changed_on_the_disk_is_found_and_its_piece_fetched_again(llama, digest, tmp_path):
    host = SourceHost("a", llama)
    path = fetch(fetcher(tmp_path, host), digest, [host], (0, 3))
    before = host.num_bytes
    span = flip_tensor(path)
    opened_before = SparseModel.open(path)
    fetch(fetcher(tmp_path, host), digest, [host], (0, 3))
    assert host.num_bytes - before == span.num_bytes
    assert held_by(path, LayerRange(0, 3)) == held_by(llama, LayerRange(0, 3))
    for model in (opened_before, SparseModel.open(path)):
        model.reread()
        assert model.forget_damaged() == 0
        assert all(model.hash_of(file, piece) == piece_hash(model.read(file, piece)) for file, piece in whole(model))


def test_damaged_piece_is_taken_back_for_everybody_even_if_it_cannot_be_fetched_again(llama, digest, tmp_path):
    host = SourceHost("a", llama)
    path = fetch(fetcher(tmp_path, host), digest, [host], (0, 3))
    opened_before = SparseModel.open(path)
    flip_tensor(path)
    silent = SourceHost("a", llama, lambda *_: None)
    with pytest.raises(ModelError, match="no host that has it answers"):
        fetch(fetcher(tmp_path, silent, patience_s=0.2), digest, [silent], (0, 3))
    opened_before.reread()
    assert whole(opened_before) == whole(SparseModel.open(path))
    assert opened_before.missing(frozenset()) == []
    assert len(opened_before.missing(needed_tensors(path, [LayerRange(0, 3)]))) == 1


def whole(model):
    """The pieces of tensors that are there."""
    pieces = ((file, piece) for file, spans in enumerate(model.spans) for piece in range(len(spans)))
    return [each for each in pieces if model.spans[each[0]][each[1]].tensor and model.hash_of(*each) is not None]


def flip_tensor(path):
    """A bit in one of the pieces that were fetched."""
    model = SparseModel.open(path)
    file, piece = whole(model)[len(whole(model)) // 2]
    span = model.spans[file][piece]
    with (path / model.manifest.files[file].name).open("r+b") as opened:
        opened.seek(span.start)
        first = opened.read(1)
        opened.seek(span.start)
        opened.write(bytes([first[0] ^ 1]))
    return span


def test_host_that_gives_nothing_but_wrong_bytes_is_left_for_another(llama, digest, tmp_path):
    first = len(manifest_of(llama).files)
    bad = SourceHost("bad", llama, lambda number, answer: flipped(answer) if number > first else answer)
    good = SourceHost("good", llama)
    path = fetch(fetcher(tmp_path, bad, good), digest, [bad, good], (0, 6))
    assert held_by(path, LayerRange(0, 6)) == held_by(llama, LayerRange(0, 6))


def test_wrong_bytes_alone_end_with_a_sentence(llama, digest, tmp_path):
    first = len(manifest_of(llama).files)
    bad = SourceHost("bad", llama, lambda number, answer: flipped(answer) if number > first else answer)
    with pytest.raises(ModelError, match="what comes is not what it should be"):
        fetch(fetcher(tmp_path, bad, patience_s=0.5), digest, [bad], (0, 2))


def test_copy_with_other_weights_under_the_same_headers_is_not_mixed_in(llama, digest, tmp_path):
    other = shutil.copytree(llama, tmp_path / "other")
    file = other / "model.safetensors"
    data = bytearray(file.read_bytes())
    for at in range(len(data) // 2, len(data), 64):
        data[at] ^= 1
    file.write_bytes(data)
    assert model_digest(other) == digest
    hosts = [SourceHost("right", llama), SourceHost("other", other)]
    path = fetch(fetcher(tmp_path / "models", *hosts), digest, hosts, (0, 6))
    assert held_by(path, LayerRange(0, 6)) == held_by(llama, LayerRange(0, 6))


def test_break_costs_only_what_was_not_on_the_disk(llama, digest, tmp_path):
    first, total = len(manifest_of(llama).files), needed_bytes(llama, (0, 6))
    broken = SourceHost("a", llama, lambda number, answer: answer if number <= first + 30 else None)
    with pytest.raises(ModelError, match="no host that has it answers"):
        fetch(fetcher(tmp_path, broken, patience_s=0.5), digest, [broken], (0, 6))
    kept = sum(
        span.num_bytes
        for file, spans in enumerate(SparseModel.open(tmp_path / digest).spans)
        for piece, span in enumerate(spans)
        if span.tensor and SparseModel.open(tmp_path / digest).hash_of(file, piece) is not None
    )
    assert 0 < kept < total
    whole = SourceHost("a", llama)
    path = fetch(fetcher(tmp_path, whole), digest, [whole], (0, 6))
    assert whole.num_bytes == total - kept
    assert held_by(path, LayerRange(0, 6)) == held_by(llama, LayerRange(0, 6))


def test_journal_that_a_break_cut_short_is_read_up_to_there_and_written_on(llama, digest, tmp_path):
    host = SourceHost("a", llama)
    path = fetch(fetcher(tmp_path, host), digest, [host], (0, 3))
    journal = path / ".journal"
    journal.write_bytes(journal.read_bytes()[:-7])
    before = host.num_bytes
    fetch(fetcher(tmp_path, host), digest, [host], (0, 3))
    again = host.num_bytes - before
    fetch(fetcher(tmp_path, host), digest, [host], (0, 3))
    assert again > 0
    assert host.num_bytes == before + again


def test_beginning_that_a_break_cut_short_is_begun_anew(llama, digest, tmp_path):
    host = SourceHost("a", llama)
    path = fetch(fetcher(tmp_path, host), digest, [host], (0, 2))
    (path / ".manifest").unlink()
    assert fetcher(tmp_path, host).find(digest) is None
    fetch(fetcher(tmp_path, host), digest, [host], (0, 2))
    assert held_by(path, LayerRange(0, 2)) == held_by(llama, LayerRange(0, 2))


def test_two_hosts_share_the_work_and_what_one_lacks_comes_from_the_other(llama, digest, tmp_path):
    part = SourceHost("part", fetch(fetcher(tmp_path / "b", host := SourceHost("a", llama)), digest, [host], (0, 3)))
    whole = SourceHost("whole", llama)
    path = fetch(fetcher(tmp_path / "c", part, whole), digest, [part, whole], (1, 6))
    assert held_by(path, LayerRange(1, 6)) == held_by(llama, LayerRange(1, 6))
    assert part.num_bytes > 0
    assert whole.num_bytes >= needed_bytes(llama, (3, 6))


def test_silent_host_holds_nobody_up(llama, digest, tmp_path):
    first = len(manifest_of(llama).files)
    lost = []
    was_asked = threading.Event()

    def says_nothing(number, answer):
        if number > first:
            was_asked.set()
            return None
        return answer

    def waits_for_that(_, answer):
        was_asked.wait(PATIENCE_S)
        return answer

    silent, good = SourceHost("silent", llama, says_nothing), SourceHost("good", llama, waits_for_that)
    hosts = [silent, good]
    path = fetch(fetcher(tmp_path, *hosts, lost=lost.append, answer_s=0.2), digest, hosts, (0, 6))
    assert held_by(path, LayerRange(0, 6)) == held_by(llama, LayerRange(0, 6))
    assert silent.peer in lost


def test_disk_that_is_full_is_one_sentence_and_what_came_before_stays(llama, digest, tmp_path):
    first = len(manifest_of(llama).files)
    host = SourceHost("a", llama)

    def write(descriptor, data, offset):
        if host.num_given > first + 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.pwrite(descriptor, data, offset)

    with pytest.raises(ModelError, match=r"cannot be kept in .*No space left.*make room there"):
        fetch(fetcher(tmp_path, host, write=write), digest, [host], (0, 6))
    path = fetch(fetcher(tmp_path, host), digest, [host], (0, 6))
    assert held_by(path, LayerRange(0, 6)) == held_by(llama, LayerRange(0, 6))


def test_disk_without_room_for_it_is_refused_before_anything_is_fetched(llama, digest, tmp_path):
    host = SourceHost("a", llama)
    with pytest.raises(ModelError, match="GB free, and this part of the model takes"):
        fetch(fetcher(tmp_path, host, free_bytes=lambda _: 1000), digest, [host], (0, 6))
    first_bytes = sum(file.header_bytes or file.num_bytes for file in manifest_of(llama).files)
    assert host.num_bytes == first_bytes


def test_newer_wish_ends_a_fetch(llama, digest, tmp_path):
    first = len(manifest_of(llama).files)
    host = SourceHost("a", llama, lambda number, answer: answer if number <= first + 3 else None)
    fetching = fetcher(tmp_path, host, is_overtaken=lambda: host.num_given > first + 3, patience_s=60.0)
    with pytest.raises(Overtaken):
        fetch(fetching, digest, [host], (0, 6))


def test_nobody_has_it(digest, tmp_path):
    with pytest.raises(ModelError, match="no other one that answers can give it"):
        fetch(fetcher(tmp_path), digest, [], (0, 2))


MALICIOUS = {
    "a path": [["../../evil.json", 10, 0]],
    "an absolute path": [["/etc/passwd", 10, 0]],
    "a hidden file": [[".manifest", 10, 0]],
    "a program": [["model.py", 10, 0]],
    "a path as weights": [["model/../../x.safetensors", 100, 20]],
    "the same twice": [["config.json", 10, 0], ["config.json", 10, 0]],
    "the same but for case": [["model-A.safetensors", 100, 20], ["model-a.safetensors", 100, 20]],
    "endless": [["model.safetensors", 1 << 60, 20]],
    "an endless header": [["model.safetensors", 1 << 40, 1 << 39]],
    "a header beyond its file": [["model.safetensors", 10, 20]],
    "negative": [["config.json", -1, 0]],
    "an endless configuration": [["config.json", 1 << 40, 0]],
    "too many": [[f"model-{number}.safetensors", 100, 20] for number in range(5000)],
}


@pytest.mark.parametrize("files", MALICIOUS.values(), ids=MALICIOUS.keys())
def test_manifest_that_no_model_has_is_refused_and_nothing_is_written(files, llama, digest, tmp_path):
    class Liar(SourceHost):
        def answer(self, asked):
            return (GIVEN, msgspec.msgpack.encode([files])) if b"manifest" in asked else super().answer(asked)

    host = Liar("liar", llama)
    with pytest.raises(ModelError):
        fetch(fetcher(tmp_path / "models", host), digest, [host], (0, 2))
    assert {file.name for file in tmp_path.rglob("*") if file.is_file()} <= {".lock"}


def test_manifest_that_is_no_text_is_asked_for_elsewhere(llama, digest, tmp_path):
    class Mumbler(SourceHost):
        def answer(self, asked):
            return (GIVEN, b"\x91\x91\x93\xa1\xff\x0a\x00")

    hosts = [Mumbler("mumbler", llama), SourceHost("a", llama)]
    path = fetch(fetcher(tmp_path / "models", *hosts), digest, hosts, (0, 2))
    assert held_by(path, LayerRange(0, 2)) == held_by(llama, LayerRange(0, 2))


def test_another_model_under_the_wanted_digest_is_refused(llama, digest, tmp_path):
    other = make_tiny_model("gpt2", tmp_path / "gpt2")

    class Liar(SourceHost):
        def answer(self, asked):
            return super().answer(asked.replace(digest.encode(), model_digest(other).encode()))

    host = Liar("liar", other)
    fetching = fetcher(tmp_path / "models", host)
    with pytest.raises(ModelError, match="not the model that was asked for"):
        fetch(fetching, digest, [host], (0, 2))
    assert fetching.find(digest) is None


ASKED = (
    b"",
    b"\xc1",
    b"x" * 5000,
    msgspec.msgpack.encode(["piece", "a digest", 0, 0]),
    msgspec.msgpack.encode(["piece", "../..", 0, 0]),
)


@pytest.mark.parametrize("asked", ASKED)
def test_source_answers_nonsense_with_nothing(asked, llama):
    assert SourceHost("a", llama).source.answer(asked) == ABSENT


@pytest.mark.parametrize(("file", "piece"), [(99, 0), (-1, 0), (0, 99), (0, -1)])
def test_source_has_no_files_or_pieces_beyond_its_manifest(file, piece, llama, digest):
    assert SourceHost("a", llama).source.answer(msgspec.msgpack.encode(AskPiece(digest, file, piece))) == ABSENT


def test_source_answers_whatever_somebody_makes_of_a_question(llama, digest):
    source, generator = SourceHost("a", llama).source, random.Random(0)
    asks = [
        msgspec.msgpack.encode(ask) for ask in (AskManifest(digest), AskHashes(digest, 0, (0,)), AskPiece(digest, 0, 0))
    ]
    for _ in range(2000):
        for asked in mutated_question(generator.choice(asks), generator)[1:]:
            assert source.answer(asked)[0] in (GIVEN, *ABSENT)


def test_source_gives_no_file_that_is_no_part_of_a_model(llama, digest, tmp_path):
    copy = shutil.copytree(llama, tmp_path / "copy")
    (copy / "secret.txt").write_text("x")
    (copy / "model.py").write_text("x")
    given = SourceHost("a", copy).source.answer(msgspec.msgpack.encode(AskManifest(digest)))
    names = {file.name for file in msgspec.msgpack.decode(given[1], type=Manifest).files}
    assert "config.json" in names
    assert not names & {"secret.txt", "model.py"}


def test_source_does_not_search_this_host_for_every_digest_that_somebody_makes_up(llama, digest):
    searched, clock = [], [10.0]
    source = WeightsSource(
        lambda wanted: searched.append(wanted) or (llama if wanted == digest else None), lambda: clock[0]
    )
    for number in range(50):
        assert source.answer(msgspec.msgpack.encode(AskManifest(f"{number:032x}"))) == ABSENT
    assert len(searched) == 1
    clock[0] += 2
    assert source.answer(msgspec.msgpack.encode(AskManifest(digest)))[0] == GIVEN


def test_copy_that_was_written_again_is_hashed_again(llama, digest, tmp_path):
    copy = shutil.copytree(llama, tmp_path / "copy")
    source = SourceHost("a", copy).source
    number = [file.name for file in manifest_of(copy).files].index("model.safetensors")
    before = source.answer(msgspec.msgpack.encode(AskHashes(digest, number, (3,))))
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[manifest_of(copy).files[number].header_bytes :] = bytes(
        len(data) - manifest_of(copy).files[number].header_bytes
    )
    (copy / "model.safetensors").write_bytes(data)
    os.utime(copy / "model.safetensors", (1, 1))
    after = source.answer(msgspec.msgpack.encode(AskHashes(digest, number, (3,))))
    assert (before[0], after[0]) == (GIVEN, GIVEN)
    assert before[1] != after[1]
