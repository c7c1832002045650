"""The API of a running cluster: what clients send, what they get, and what bad input gets."""

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from tests.support.in_process_cluster import alone
from tests.support.running_cluster import wait_until

END_ID = 1  # of the tiny models' tokenizer
PROMPT = list(range(30, 60))
# Makes a random model write small letters only, and so never end by itself and never hold back half a character.
LETTERS = {str(token): 50 for token in range(69, 95)}


@pytest.fixture(scope="module")
def client(serving):
    return openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(autouse=True)
def idle(serving):
    """Every test begins and ends with nothing running."""
    yield
    wait_until(lambda: serving.api_status()["requests"]["running"] == 0, "running requests end")


def expected(model, prompt, max_tokens):
    """mlx-lm's greedy ids without the end token, as an answer gives them."""
    ids = alone(model, prompt, max_tokens, end_tokens=(END_ID,))
    return ids[:-1] if ids[-1] == END_ID else ids


def running(serving):
    return serving.api_status()["requests"]["running"]


# --- routing


@pytest.mark.parametrize(
    ("prompt_tokens", "max_tokens", "strategy"),
    [
        (100, 50, "distributed-no-cache"),
        (101, 50, "single-device-cached"),
        (100, 51, "single-device-cached"),
        (1, 1, "distributed-no-cache"),
    ],
)
def test_lengths_at_the_thresholds_decide_the_strategy(serving, prompt_tokens, max_tokens, strategy):
    body = {"prompt": list(range(30, 30 + prompt_tokens)), "max_tokens": max_tokens}
    answer = serving.post("/v1/completions", body)
    assert answer.headers["X-Tandem-Strategy"] == answer.json()["tandem"]["strategy"] == strategy
    assert answer.json()["usage"]["prompt_tokens"] == prompt_tokens
    explained = serving.post("/v1/explain", body).json()
    assert (explained["strategy"], explained["prompt_tokens"], explained["max_tokens"]) == (
        strategy,
        prompt_tokens,
        max_tokens,
    )


def test_chat_template_counts_towards_the_threshold(serving):
    """Some number of words makes exactly 100 tokens after the template, and one character more makes 101."""

    def explained(text):
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 50}
        return serving.post("/v1/explain", body).json()

    overhead = explained("Z")["prompt_tokens"] - 1
    assert overhead > 0
    for count, strategy in ((100, "distributed-no-cache"), (101, "single-device-cached")):
        choice = explained("Z" * (count - overhead))
        assert (choice["prompt_tokens"], choice["strategy"]) == (count, strategy)


@pytest.mark.parametrize("strategy", ["single-device-cached", "distributed-no-cache", "distributed-cached"])
@pytest.mark.parametrize("prompt_tokens", [1, 30, 200])
def test_greedy_ids_are_those_of_mlx_lm_alone(serving, tiny_model, strategy, prompt_tokens):
    prompt = [30 + 7 * index % 250 for index in range(prompt_tokens)]
    answer = serving.complete(prompt, 12, strategy=strategy)
    assert answer["tandem"]["strategy"] == strategy
    assert answer["tandem"]["token_ids"] == expected(tiny_model, prompt, 12)
    workers = ["worker-0", "worker-1"]
    assert (answer["tandem"]["workers"] == workers) == (strategy != "single-device-cached")


def test_mixed_requests_at_once_get_what_they_get_alone(serving, tiny_model):
    strategies = ("single-device-cached", "distributed-no-cache", "distributed-cached")

    prompts = [list(range(30 + number, 40 + 3 * number)) for number in range(12)]
    wanted = [expected(tiny_model, prompt, 10) for prompt in prompts]
    with ThreadPoolExecutor(12) as pool:
        answers = list(
            pool.map(lambda n: serving.complete(prompts[n], 10, strategy=strategies[n % 3]), range(len(prompts)))
        )
    assert [answer["tandem"]["token_ids"] for answer in answers] == wanted


def test_seeded_sampling_gives_the_same_answer_on_every_strategy(serving):
    answers = [
        serving.complete(PROMPT, 8, strategy=strategy, temperature=1.0, seed=5, top_p=0.9)["tandem"]["token_ids"]
        for strategy in ("single-device-cached", "distributed-no-cache", "distributed-cached")
    ]
    assert answers[0] == answers[1] == answers[2]


# --- the official client


def test_official_client_chats(client):
    answer = client.chat.completions.create(
        model="default", messages=[{"role": "user", "content": "hello"}], max_tokens=6, temperature=0
    )
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 6
    assert answer.model_extra["tandem"]["strategy"] == "distributed-no-cache"


def test_official_client_streams_a_chat_that_adds_up_to_the_whole_answer(client):
    asked = {"model": "default", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 20}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert chunks[-1].model_extra["tandem"]["token_ids"] == whole.model_extra["tandem"]["token_ids"]
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"


def test_official_client_completes_and_streams_completions(client):
    asked = {"model": "default", "prompt": "the worker sends", "max_tokens": 12}
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text


def test_official_client_gets_several_answers_that_are_those_of_single_requests(client, serving):
    asked = {"model": "default", "max_tokens": 8, "temperature": 1.0, "extra_body": {"strategy": "distributed-cached"}}
    prompts = [PROMPT * 5, PROMPT[:9]]
    one_by_one = [
        client.completions.create(**asked, prompt=prompt, seed=seed).choices[0].text
        for prompt in prompts
        for seed in (5, 6, 7)
    ]
    whole = client.completions.create(**asked, prompt=prompts, n=3, seed=5)
    assert [choice.index for choice in whole.choices] == list(range(6))
    assert [choice.text for choice in whole.choices] == one_by_one
    assert whole.usage.prompt_tokens == len(PROMPT) * 5 + 9
    streamed = [""] * 6
    for chunk in client.completions.create(**asked, prompt=prompts, n=3, seed=5, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == one_by_one


def test_copies_begin_with_what_the_first_computed_of_their_prompt(serving):
    before = serving.api_status()["cache"]
    prompt = [40 + 3 * index % 200 for index in range(400)]
    serving.complete(prompt, 4, n=4, temperature=1.0, strategy="distributed-cached")
    after = serving.api_status()["cache"]
    read, found = (after[name] - before[name] for name in ("prompt_tokens", "cached_tokens"))
    assert read == 4 * 400
    assert found > 3 * 350


def test_official_client_streams_several_chats(client):
    asked = {"model": "default", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 6, "n": 3}
    whole = client.chat.completions.create(**asked)
    content, ended = [""] * 3, [0] * 3
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            content[choice.index] += choice.delta.content or ""
            ended[choice.index] += choice.finish_reason is not None
    assert content == [choice.message.content for choice in whole.choices]
    assert ended == [1, 1, 1]


def test_official_client_reads_how_likely_each_token_of_a_chat_was(client):
    asked = {"model": "default", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 6, "temperature": 0}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
    told = whole.choices[0].logprobs.content
    assert len(told) == whole.usage.completion_tokens == 6
    for token in told:
        assert [token.token, token.logprob] == [token.top_logprobs[0].token, token.top_logprobs[0].logprob]
        assert [top.logprob for top in token.top_logprobs] == sorted(
            (t.logprob for t in token.top_logprobs), reverse=True
        )
    text = b"".join(bytes(token.bytes) for token in told).decode(errors="replace")
    assert text == whole.choices[0].message.content
    chunks = list(client.chat.completions.create(**asked, logprobs=True, top_logprobs=3, stream=True))
    pieces = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices and chunk.choices[0].logprobs]
    assert [token.token for piece in pieces for token in piece.content] == [token.token for token in told]


@pytest.mark.parametrize("strategy", ["single-device-cached", "distributed-no-cache", "distributed-cached"])
def test_answer_is_as_likely_as_when_it_is_asked_for_as_a_prompt(serving, strategy):
    fields = {"strategy": strategy, "ignore_eos": True, "logprobs": 2}
    answer = serving.complete(PROMPT, 8, **fields)
    whole = [*PROMPT, *answer["tandem"]["token_ids"]]
    echoed = serving.complete([whole, whole[:-1]], 0, echo=True, **fields)
    assert [choice["text"] for choice in echoed["choices"]] == [
        serving.post("/detokenize", {"tokens": ids}).json()["prompt"] for ids in (whole, whole[:-1])
    ]
    said, again = (answers["choices"][0]["logprobs"] for answers in (answer, echoed))
    assert again["token_logprobs"][0] is None
    assert again["tokens"][len(PROMPT) :] == said["tokens"]
    assert again["token_logprobs"][len(PROMPT) :] == pytest.approx(said["token_logprobs"], abs=1e-4)
    assert echoed["usage"]["completion_tokens"] == 0
    assert echoed["usage"]["prompt_tokens"] == 2 * len(whole) - 1


def test_best_of_is_the_likeliest_of_its_seeds(serving):
    fields = {"temperature": 1.0, "logprobs": 0, "ignore_eos": True}
    single = [serving.complete(PROMPT, 5, seed=seed, **fields)["choices"][0] for seed in range(3, 7)]
    likeliest = max(single, key=lambda choice: sum(choice["logprobs"]["token_logprobs"]))
    (best,) = serving.complete(PROMPT, 5, seed=3, best_of=4, **fields)["choices"]
    assert best["text"] == likeliest["text"]


def test_token_that_ends_an_answer_is_scored_behind_the_prompt(serving):
    fields = {"echo": True, "logprobs": 1, "logit_bias": {str(END_ID): 100}}
    (choice,) = serving.complete(PROMPT, 1, **fields)["choices"]
    assert choice["finish_reason"] == "stop"
    assert len(choice["logprobs"]["tokens"]) == len(PROMPT) + 1


def test_official_client_lists_the_model(client, serving):
    (model,) = client.models.list().data
    assert model.id == serving.api_status()["model"]["id"]
    assert client.models.retrieve(model.id).id == model.id


def test_official_client_raises_its_own_errors(client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="default", prompt="hi", max_tokens=0)
    assert refused.value.param == "max_tokens"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


def test_stop_string_ends_the_answer(serving):
    whole = serving.complete(PROMPT, 30, logit_bias=LETTERS)["choices"][0]["text"]
    stop = whole[10:12]
    answer = serving.complete(PROMPT, 30, stop=[stop], logit_bias=LETTERS)
    assert answer["choices"][0]["text"] == whole[: whole.index(stop)]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == whole.index(stop) + 2


# --- clients that leave, and clients that share


@pytest.mark.parametrize("strategy", ["single-device-cached", "distributed-no-cache", "distributed-cached"])
def test_client_that_disconnects_stops_costing_compute(serving, strategy):
    with serving.stream(PROMPT, 3000, strategy=strategy, logit_bias=LETTERS) as events:
        for _ in range(3):
            next(events)
        assert running(serving) == 1
    wait_until(lambda: running(serving) == 0, "the request ends", 3)
    wait_until(
        lambda: all(
            worker["memory"]["kv_bytes"] == 0 and worker["load"]["steps_per_s"] == 0
            for worker in serving.api_status()["workers"]
        ),
        "the workers come to rest",
        5,
    )


def test_client_that_leaves_without_streaming_is_noticed_too(serving):
    body = {"prompt": PROMPT, "max_tokens": 3500, "logit_bias": LETTERS}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{serving.url}/v1/completions", json=body, timeout=0.5)
    wait_until(lambda: running(serving) == 0, "the request ends", 3)


@pytest.mark.parametrize("strategy", ["single-device-cached", "distributed-no-cache", "distributed-cached"])
def test_two_long_requests_progress_together(serving, strategy):
    """From when both have begun, neither gets more than twice the other's tokens; the first one's head start is apart.

    On a single device each has a worker of its own, and the operating system decides who of them runs. There both get
    on: a worker that must wait for half a second, as on a busy machine, is not one that stands still.
    """
    apart = strategy == "single-device-cached"
    tokens = 100 if strategy == "distributed-no-cache" else 500
    enough = tokens // 10 if apart else tokens
    counts, head_start = [0, 0], []
    beginning = threading.Lock()

    def read(which):
        """Read without a rest: tokens that wait unread would be counted as made later than they were."""
        with serving.stream(PROMPT, 4 * tokens, strategy=strategy, logit_bias=LETTERS) as events:
            for event in events:
                counts[which] += len(event["choices"][0]["text"])
                with beginning:
                    if not head_start and min(counts):
                        head_start.extend(counts)
                since = [count - before for count, before in zip(counts, head_start, strict=False)]
                if since and (min(since) if apart else max(since)) >= enough:
                    return

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(read, range(2)))
    since = [count - before for count, before in zip(counts, head_start, strict=True)]
    assert min(since) >= (enough if apart else max(since) / 2), f"the two requests got {since} tokens"


def test_short_request_is_answered_while_a_long_one_runs(serving):
    long_prompt = [30 + index % 250 for index in range(1000)]
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(serving.complete, long_prompt, 300, logit_bias=LETTERS)
        wait_until(lambda: running(serving) == 1, "the long request runs")
        serving.complete(PROMPT, 5)
        assert not long.done()
        assert long.result()["usage"]["completion_tokens"] == 300


# --- bad input

REFUSED = [
    ({"max_tokens": 0}, 400, "max_tokens"),
    ({"max_tokens": -5}, 400, "max_tokens"),
    ({"max_tokens": 10**30}, 400, "max_tokens"),
    ({"max_tokens": "many"}, 400, "max_tokens"),
    ({"temperature": "hot"}, 400, "temperature"),
    ({"temperature": None, "top_p": 7}, 400, "top_p"),
    ({"prompt": [10**6]}, 400, "prompt"),
    ({"prompt": [-1]}, 400, "prompt[0]"),
    ({"prompt": [30] * 5000}, 400, "prompt"),
    ({"prompt": "word " * 5000}, 400, "prompt"),
    ({"use_distributed_inference": "sometimes"}, 400, "use_distributed_inference"),
    ({"strategy": "fastest"}, 400, "strategy"),
    ({"strategy": "tensor-parallel"}, 400, "strategy"),
    ({"logit_bias": {"99999999": 1}}, 400, "logit_bias"),
    ({"n": 129}, 400, "n"),
    ({"best_of": 2, "stream": True, "n": 1, "prompt": ["hi", "ho"]}, 400, "best_of"),
    ({"suffix": "x"}, 400, "suffix"),
    ({"guided_json": 5}, 400, "guided_json"),
]


def test_what_clients_send_in_passing_is_answered_and_told_of(serving):
    at_once = [" ", *"aeinorstl"]  # else it would go on to the end of the context
    sent = {"prompt": "", "max_tokens": 10**9, "stop": at_once, "model": "gpt-4", "keep_alive": "5m", "top_p": 0}
    answer = serving.post("/v1/completions", sent)
    assert answer.status_code == 200
    notes = answer.json()["tandem"]["notes"]
    assert notes[0] == "The field keep_alive has no effect here."
    assert notes[1].startswith("'gpt-4' is not served here")
    assert notes[2].startswith("max_tokens was cut from 1000000000 to ")


@pytest.mark.parametrize(("fields", "status", "param"), REFUSED)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_field_is_refused_by_name(serving, fields, status, param, stream):
    answer = serving.post("/v1/completions", {"prompt": "hi", "max_tokens": 5, "stream": stream} | fields)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert "Traceback" not in error["message"]
    assert error["message"].count("\n") == 0


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"hello", 400),
        (b"[1, 2]", 400),
        (b'{"prompt": "hi"', 400),
        (b'{"prompt": "\xff\xfe"}', 400),
        (b"[" * 100_000, 400),
        (b'{"prompt": "' + b"x" * (50 << 20) + b'"}', 413),
    ],
    ids=["empty", "no JSON", "an array", "cut", "invalid UTF-8", "nested", "50 MB"],
)
def test_bad_body_is_refused_with_an_error_object(serving, content, status):
    answer = httpx.post(f"{serving.url}/v1/completions", content=content, timeout=60)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_empty_chat_is_refused(serving):
    for messages in ([], [{"role": "alien", "content": "hi"}], "hi"):
        assert serving.post("/v1/chat/completions", {"messages": messages}).status_code == 400


def test_unknown_path_and_method_are_error_objects(serving):
    assert httpx.get(f"{serving.url}/v2/everything").json()["error"]["code"] == "not_found"
    assert httpx.get(f"{serving.url}/v1/completions").json()["error"]["code"] == "method_not_allowed"


def test_cluster_is_as_ready_as_before_after_all_that(serving, tiny_model):
    assert httpx.get(f"{serving.url}/health").status_code == 200
    assert serving.complete(PROMPT, 5)["tandem"]["token_ids"] == expected(tiny_model, PROMPT, 5)
