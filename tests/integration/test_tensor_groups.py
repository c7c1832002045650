"""Workers that compute every layer together, also in stages: the ids are those of one device, whatever runs beside and whoever is lost."""

import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest

from tests.support.hidden_states import assert_near
from tests.support.running_cluster import RunningCluster, wait_until

TENSOR, SINGLE = "tensor-parallel", "single-device-cached"
PROMPT = [30 + 7 * index % 250 for index in range(300)]
SAMPLED = {"temperature": 0.9, "top_p": 0.95, "seed": 11}
GROUP = """
[strategy]
policy = "measured"
[engine]
prefill_chunk = 64
[[groups]]
workers = ["worker-0", "worker-1"]
"""


NUM_SUMS = 17  # for a token: two in each layer, and one for the logits
FOUR = ["worker-0", "worker-1", "worker-2", "worker-3"]
STAGES = GROUP.replace('["worker-0", "worker-1"]', f"{json.dumps(FOUR)}\nranks = 2")


# Of 1.15 MB of weights a part is 0.66 MB and a stage 0.58 MB; all of them take 1.27 MB.
PARTS = GROUP.replace('policy = "measured"', 'policy = "thresholds"') + "".join(
    f'[[workers]]\nname = "{name}"\nmemory_limit = 1250000\n' for name in FOUR[:2]
)


@contextmanager
def running(tiny_model, folder, text, *options):
    with closing(RunningCluster()) as cluster:
        config = folder / "tandem.toml"
        config.write_text(text)
        cluster.start(tiny_model, "--config", str(config), *options)
        yield cluster


@pytest.fixture(scope="module")
def grouped(tiny_model, tmp_path_factory):
    with running(tiny_model, tmp_path_factory.mktemp("grouped"), GROUP) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def staged(tiny_model, tmp_path_factory):
    text = f'{STAGES}[speculation]\ndraft = "{tiny_model}"\n'  # which guesses well what it says itself
    with running(tiny_model, tmp_path_factory.mktemp("staged"), text, "--workers", "4") as cluster:
        yield cluster


def ids(cluster, prompt, max_tokens, strategy, **fields):
    answer = cluster.complete(prompt, max_tokens, strategy=strategy, **fields)
    assert answer["tandem"]["strategy"] == strategy
    return answer["tandem"]["token_ids"]


def assert_explained(cluster, workers):
    asked = {"prompt": "Hello", "max_tokens": 9}  # which waits for no plan where a faster split takes the place of one
    found = wait_until(lambda: cluster.post("/v1/explain", asked).json().get("candidates"), "a plan is in force")
    candidate = next(each for each in found if each["strategy"] == TENSOR)
    assert (candidate["feasible"], candidate["workers"]) == (True, workers)
    assert 0 < candidate["predicted_ttft_s"] < candidate["predicted_total_s"]
    assert cluster.complete("Hello", 3, strategy=TENSOR)["tandem"]["workers"] == workers


def test_explain_and_answer_name_the_ranks(grouped):
    assert_explained(grouped, FOUR[:2])


def test_two_stages_of_two_ranks_give_the_ids_of_one_device(staged):
    assert_explained(staged, FOUR)
    (group,) = wait_until(lambda: staged.api_status()["groups"], "a plan with the group is in force")
    assert (group["workers"], group["ranks"], group["sums"]["per_token"]) == (FOUR, 2, NUM_SUMS)
    prompts = [[60 + number, *PROMPT[: 1 + 99 * number]] for number in range(4)]
    fields = [SAMPLED if number % 2 else {"temperature": 0} for number in range(4)]
    alone = [ids(staged, prompt, 24, SINGLE, **field) for prompt, field in zip(prompts, fields, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda n: ids(staged, prompts[n], 24, TENSOR, **fields[n]), range(4)))
    assert together == alone
    again = staged.complete([*prompts[3], 40, 41], 12, strategy=TENSOR)["tandem"]
    assert again["cached_tokens"] >= 256
    assert again["token_ids"] == ids(staged, [*prompts[3], 40, 41], 12, SINGLE)
    asked = [{"input": "Hello", "strategy": each} for each in (TENSOR, SINGLE)]
    assert_near(*(staged.post("/v1/embeddings", each).json()["data"][0]["embedding"] for each in asked))


def test_guesses_are_verified_by_all_ranks_and_change_no_answer(staged, grouped):
    for number, fields in enumerate(({"temperature": 0}, SAMPLED, {"temperature": 0, "frequency_penalty": 0.5})):
        prompt = [90 + number, *PROMPT[:20]]
        answer = staged.complete(prompt, 60, strategy=TENSOR, **fields)
        assert answer["usage"]["completion_tokens_details"]["accepted_prediction_tokens"] > 30
        assert answer["tandem"]["token_ids"] == ids(grouped, prompt, 60, SINGLE, **fields)


def test_prediction_that_a_request_brings_is_verified_by_all_ranks(grouped):
    asked = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 60, "temperature": 0, "strategy": TENSOR}
    plain, guessed = (
        grouped.post("/v1/chat/completions", asked | further).json()
        for further in ({}, {"prediction": {"type": "content", "content": "Hi, " * 20}})
    )
    assert guessed["tandem"]["token_ids"] == plain["tandem"]["token_ids"]
    assert plain["usage"].get("completion_tokens_details") is None
    assert guessed["usage"]["completion_tokens_details"]["rejected_prediction_tokens"] >= 0


@pytest.mark.parametrize(
    ("num_tokens", "fields"),
    [(1, {"temperature": 0}), (300, {"temperature": 0}), (30, SAMPLED), (300, {**SAMPLED, "frequency_penalty": 0.5})],
)
def test_ids_are_those_of_one_device(grouped, num_tokens, fields):
    prompt = [200 + num_tokens % 7, *PROMPT[:num_tokens]]
    assert ids(grouped, prompt, 24, TENSOR, **fields) == ids(grouped, prompt, 24, SINGLE, **fields)


def test_prompt_that_was_read_before_is_read_no_more(grouped):
    prompt = [17, *PROMPT]
    first = grouped.complete(prompt, 12, strategy=TENSOR)
    again = grouped.complete([*prompt, 40, 41], 12, strategy=TENSOR)
    assert first["tandem"]["cached_tokens"] == 0
    assert again["tandem"]["cached_tokens"] >= 256
    assert again["tandem"]["token_ids"] == ids(grouped, [*prompt, 40, 41], 12, SINGLE)


def test_batches_beside_other_strategies_give_what_each_request_gives_alone(grouped):
    strategies = (TENSOR, TENSOR, TENSOR, "distributed-cached", SINGLE)
    prompts = [[60 + number, *PROMPT[: 10 + 23 * number]] for number in range(10)]
    fields = [SAMPLED if number % 2 else {} for number in range(10)]
    alone = [ids(grouped, prompt, 20, SINGLE, **field) for prompt, field in zip(prompts, fields, strict=True)]
    with ThreadPoolExecutor(10) as pool:
        together = list(
            pool.map(lambda n: ids(grouped, prompts[n], 20, strategies[n % 5], **fields[n]), range(len(prompts)))
        )
    assert together == alone


def test_log_probabilities_and_grammars_are_those_of_one_device(grouped):
    asked = {"logprobs": 3, "temperature": 0, "prompt": PROMPT[:20], "max_tokens": 6, "echo": True}
    tensor, single = (grouped.post("/v1/completions", {**asked, "strategy": each}).json() for each in (TENSOR, SINGLE))
    told, expected = (each["choices"][0]["logprobs"] for each in (tensor, single))
    assert told["tokens"] == expected["tokens"]
    assert told["token_logprobs"][1:] == pytest.approx(expected["token_logprobs"][1:], abs=1e-3)
    held = {"prompt": PROMPT[:9], "max_tokens": 12, "response_format": {"type": "json_object"}, "seed": 3}
    tensor, single = (
        grouped.post(
            "/v1/chat/completions",
            {**held, "messages": [{"role": "user", "content": "Hi"}], "strategy": each},
        ).json()["choices"][0]["message"]["content"]
        for each in (TENSOR, SINGLE)
    )
    assert tensor == single


def test_vectors_are_those_of_one_device(grouped):
    texts = [PROMPT, PROMPT[:9]]
    tensor, single = (
        grouped.post("/v1/embeddings", {"input": texts, "strategy": each}).json() for each in (TENSOR, SINGLE)
    )
    assert (tensor["tandem"]["strategy"], tensor["tandem"]["workers"]) == (TENSOR, ["worker-0", "worker-1"])
    for found, expected in zip(tensor["data"], single["data"], strict=True):
        assert_near(found["embedding"], expected["embedding"])


def test_client_that_leaves_ends_its_sequence_on_both_ranks(grouped):
    with grouped.stream(PROMPT[:40], 400, strategy=TENSOR) as events:
        next(events)
    wait_until(
        lambda: all(not worker["memory"]["kv_bytes"] for worker in grouped.api_status()["workers"]), "both forget it"
    )
    assert ids(grouped, PROMPT[:40], 8, TENSOR) == ids(grouped, PROMPT[:40], 8, SINGLE)


def answers_while_lost(cluster, prompts, num_tokens, lost, sent):
    """The ids of these prompts, of which a worker is sent a signal when all have their first."""
    found, begun = {}, threading.Barrier(len(prompts) + 1)

    def ask(number):
        options = {"include_usage": True}
        with cluster.stream(prompts[number], num_tokens, strategy=TENSOR, stream_options=options) as events:
            next(events)
            begun.wait()
            last = list(events)[-1]
            found[number] = last["tandem"]["token_ids"] if "tandem" in last else last

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    begun.wait()
    os.kill(cluster.worker_pids()[lost], sent)
    for thread in threads:
        thread.join()
    return [found[number] for number in range(len(prompts))]


def read_their_parts(cluster):
    first, second = (worker["memory"]["read_bytes"] for worker in cluster.api_status()["workers"])
    return 0 < first == second < 700_000


def test_model_that_has_room_only_in_parts_is_served_by_its_group_alone(grouped, tiny_model, tmp_path):
    prompt = [40, *PROMPT[:10]]
    expected = ids(grouped, prompt, 60, SINGLE)
    with running(tiny_model, tmp_path, PARTS) as cluster:
        explained = cluster.post("/v1/explain", {"prompt": "Hello", "max_tokens": 9}).json()
        why_not = {each["strategy"]: each["why_not"] for each in explained["candidates"] if not each["feasible"]}
        assert (explained["strategy"], len(why_not)) == (TENSOR, 4)
        assert "worker-0+worker-1 have room for nothing but their parts" in why_not["distributed-cached"]
        assert ids(cluster, prompt, 60, TENSOR) == expected
        assert [worker["layers"] for worker in cluster.api_status()["workers"]] == [None, None]
        assert answers_while_lost(cluster, [prompt], 60, "worker-1", signal.SIGKILL) == [expected], cluster.logs()
        wait_until(lambda: read_their_parts(cluster), "each has read its part, once")


@pytest.mark.parametrize(
    ("grouping", "num_tokens", "lost", "sent"),
    [
        ("grouped", 150, "worker-0", signal.SIGSTOP),
        ("grouped", 150, "worker-1", signal.SIGKILL),
        ("staged", 50, "worker-1", signal.SIGKILL),
        ("staged", 50, "worker-2", signal.SIGKILL),
    ],
)
def test_rank_that_is_lost_in_a_step_costs_a_pause(request, grouping, num_tokens, lost, sent):
    cluster = request.getfixturevalue(grouping)
    prompts = [[50 + number, *PROMPT[:30]] for number in range(3)]
    expected = [ids(cluster, prompt, num_tokens, SINGLE) for prompt in prompts]
    assert answers_while_lost(cluster, prompts, num_tokens, lost, sent) == expected, cluster.logs()
    wait_until(cluster.ready_status, "it is whole again")


def test_ids_over_mlxs_ring_are_those_of_one_device_and_a_lost_rank_has_all_begin_anew(tiny_model, tmp_path):
    config = tmp_path / "tandem.toml"
    config.write_text('[[groups]]\nworkers = ["worker-0", "worker-1"]\ntransport = "ring"\n')
    with closing(RunningCluster()) as cluster:
        cluster.start(tiny_model, "--config", str(config))
        before = cluster.worker_pids()
        assert cluster.ready_status()["groups"][0]["sums"]["transport"] == "ring", cluster.logs()
        prompts = [[50 + number, *PROMPT[: 20 + 30 * number]] for number in range(4)]
        with ThreadPoolExecutor(len(prompts)) as pool:
            by_strategy = [
                pool.map(lambda prompt, by=by: ids(cluster, prompt, 20, by), prompts) for by in (SINGLE, TENSOR)
            ]
            assert list(by_strategy[1]) == list(by_strategy[0])
        for fields in (SAMPLED, {"repetition_penalty": 1.3}):
            assert ids(cluster, PROMPT, 20, TENSOR, **fields) == ids(cluster, PROMPT, 20, SINGLE, **fields)
        expected = ids(cluster, PROMPT[:30], 60, SINGLE)
        with cluster.stream(PROMPT[:30], 60, strategy=TENSOR, stream_options={"include_usage": True}) as events:
            next(events)
            os.kill(before["worker-1"], signal.SIGKILL)
            last = list(events)[-1]
        assert last.get("tandem", last).get("token_ids") == expected, cluster.logs()
        assert last["tandem"]["resumed"] == 1
        after = cluster.worker_pids()
        assert all(after[name] != pid for name, pid in before.items())
        what = [event["what"] for event in cluster.api_status()["events"]]
        assert any("worker-0 begins anew, as its group has to" in each for each in what)
