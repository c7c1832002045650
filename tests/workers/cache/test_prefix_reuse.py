"""What earlier sequences left is used again, on every stage alike, and never changes an answer."""

import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from strategy.prefix import BLOCK_TOKENS
from strategy.vocabulary import Route
from tests.support.in_process_cluster import InProcessCluster, alone, heartbeat_of
from workers.zoo import make_tiny_model

# Plain attention shares blocks; a sliding window and state-space layers keep snapshots.
BLOCKS, SNAPSHOTS = ("llama",), ("gemma3_text", "nemotron_h")
STRATEGIES = ("single-device-cached", "distributed-cached")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: make_tiny_model(name, root / name) for name in BLOCKS + SNAPSHOTS}


@pytest.fixture
def cluster_of(models, tmp_path):
    def make(architecture, num_stages=2, **options):
        return InProcessCluster(
            models[architecture], num_stages=num_stages, cache_dir=tmp_path, chunk_tokens=50, **options
        )

    return make


@cache
def text(seed, length):
    return np.random.default_rng(seed).integers(5, 300, length).tolist()


def answered(cluster, prompt, strategy, model, max_tokens=6, **options):
    """Run one request to its end; its tokens must be mlx-lm's. Returns its number and the whole sequence."""
    number = cluster.generate(prompt, max_tokens, strategy=strategy, **options)
    cluster.run()
    assert cluster.failures == {}
    assert cluster.tokens[number] == alone(model, prompt, max_tokens)
    return number, prompt + cluster.tokens[number]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("architecture", BLOCKS + SNAPSHOTS)
@pytest.mark.parametrize("num_stages", [1, 3])
def test_each_turn_of_a_conversation_computes_only_what_is_new(architecture, strategy, num_stages, models, cluster_of):
    cluster = cluster_of(architecture, num_stages)
    said = text(1, 200)
    for turn in range(4):
        number, said = answered(cluster, said, strategy, models[architecture])
        if turn:
            assert cluster.reused[number] >= len(said) - 6 - 20 - BLOCK_TOKENS
        said += text(turn + 10, 20)
    cluster.assert_nothing_is_left()


@pytest.mark.parametrize("architecture", BLOCKS + SNAPSHOTS)
def test_retry_and_edited_last_message_reuse_what_is_unchanged(architecture, models, cluster_of):
    cluster = cluster_of(architecture)
    system = text(2, 150)
    answered(cluster, system, "distributed-cached", models[architecture])
    first, _ = answered(cluster, system + text(3, 30), "distributed-cached", models[architecture])
    edited, _ = answered(cluster, system + text(4, 30), "distributed-cached", models[architecture])
    retried, _ = answered(cluster, system + text(4, 30), "distributed-cached", models[architecture])
    assert cluster.reused[first] >= 2 * BLOCK_TOKENS
    assert cluster.reused[edited] >= 2 * BLOCK_TOKENS
    assert cluster.reused[retried] >= 2 * BLOCK_TOKENS


def test_shared_bytes_are_those_that_a_running_request_began_with(models, cluster_of):
    cluster = cluster_of("llama")
    _, said = answered(cluster, text(1, 200), "distributed-cached", models["llama"])
    number = cluster.generate(said, 50)
    while len(cluster.tokens[number]) < 3:
        cluster.turn()
    for engine in cluster.engines.values():
        stats = heartbeat_of(engine)
        assert 0 < stats.shared_bytes <= stats.prefix_bytes
    cluster.cancel(number)
    cluster.run()
    assert [heartbeat_of(engine).shared_bytes for engine in cluster.engines.values()] == [0, 0]


def test_scopes_share_nothing(models, cluster_of):
    cluster = cluster_of("llama")
    answered(cluster, text(1, 200), "distributed-cached", models["llama"], scope="alice")
    other, _ = answered(cluster, text(1, 200), "distributed-cached", models["llama"], scope="bob")
    same, _ = answered(cluster, text(1, 200), "distributed-cached", models["llama"], scope="alice")
    assert other not in cluster.reused
    assert cluster.reused[same] == 3 * BLOCK_TOKENS


def test_stages_keep_exactly_what_the_head_knows_within_capacity(models, cluster_of):
    cluster = cluster_of("llama", prefix_capacity=4)
    for seed in range(6):
        answered(cluster, text(seed, 150), "distributed-cached", models["llama"])
    for name in cluster.names:
        assert len(cluster.stores_of(name)[Route(cluster.names)]) == 4


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_reuse_changes_no_answer_under_random_trees_of_conversations(data, models, tmp_path_factory):
    architecture = data.draw(st.sampled_from(BLOCKS + SNAPSHOTS))
    cluster = InProcessCluster(
        models[architecture],
        num_stages=data.draw(st.integers(1, 3)),
        cache_dir=tmp_path_factory.mktemp("cache"),
        chunk_tokens=data.draw(st.sampled_from([16, 64, 200])),
        prefix_capacity=data.draw(st.sampled_from([2, 5, 64])),
        disk=data.draw(st.booleans()),
    )
    known = [[]]
    for _ in range(data.draw(st.integers(2, 4))):
        running = []
        for _ in range(data.draw(st.integers(1, 3))):
            before = data.draw(st.sampled_from(known))
            prompt = before[:400] + text(data.draw(st.integers(0, 3)), data.draw(st.sampled_from([1, 40, 64, 150])))
            strategy = data.draw(st.sampled_from(STRATEGIES))
            number = cluster.generate(
                prompt, 5, strategy=strategy, conversation=data.draw(st.sampled_from([None, "c"]))
            )
            running.append((number, prompt))
        cluster.run()
        assert cluster.failures == {}
        for number, prompt in running:
            assert cluster.tokens[number] == alone(models[architecture], prompt, 5)
            known.append(prompt + cluster.tokens[number])
    cluster.assert_nothing_is_left()


# --- the disk


def files_of(cache_dir: Path) -> list[Path]:
    return sorted(cache_dir.glob("kv/*/*.safetensors"))


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_conversation_goes_on_without_prefill_after_a_restart(architecture, models, cluster_of):
    before = cluster_of(architecture, disk=True)
    _, said = answered(before, text(1, 200), "distributed-cached", models[architecture])
    before.settle_disk()
    after = cluster_of(architecture, disk=True)
    number, _ = answered(after, said + text(2, 10), "distributed-cached", models[architecture])
    assert after.reused[number] >= 200 - BLOCK_TOKENS


def spoilt(kind: str, files: list[Path]) -> None:
    """Damage every file in one way."""
    if kind == "swapped":
        contents = [file.read_bytes() for file in files]
        for file, content in zip(files, contents[1:] + contents[:1], strict=True):
            file.write_bytes(content)
        return
    for file in files:
        content = bytearray(file.read_bytes())
        if kind == "flipped":
            content[-3] ^= 0x40
        elif kind == "truncated":
            del content[len(content) // 2 :]
        elif kind == "emptied":
            content.clear()
        elif kind == "of another version":
            content = bytearray(bytes(content).replace(b'"format":"1"', b'"format":"2"').replace(b'"1"', b'"2"'))
            assert bytes(content) != file.read_bytes()
        file.write_bytes(bytes(content))


@pytest.mark.parametrize("kind", ["flipped", "truncated", "emptied", "swapped", "of another version", "renamed"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_spoilt_files_are_ignored_and_the_answer_is_right(kind, architecture, models, cluster_of, tmp_path):
    before = cluster_of(architecture, disk=True)
    _, said = answered(before, text(1, 200), "distributed-cached", models[architecture])
    before.settle_disk()
    files = files_of(tmp_path)
    assert files
    if kind == "renamed":
        for file in files:
            key, checksum, length = file.name.split("-")
            shutil.move(file, file.with_name(f"{key[::-1]}-{checksum}-{length}"))
    else:
        spoilt(kind, files)
    after = cluster_of(architecture, disk=True)
    number, _ = answered(after, said + text(2, 10), "distributed-cached", models[architecture])
    assert after.reused.get(number, 0) == 0
