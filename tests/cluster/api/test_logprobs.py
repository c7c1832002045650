"""Log probabilities in answers, and prompts that are echoed with theirs."""

import msgspec
import pytest

from cluster.serving.requests import Delta, Likelihood, PromptScored, Scored, TextPrompt
from tests.support.fake_service import FINISHED, ROUTED, FakeService, chat, completion, sse_events

HI = Scored(Likelihood(1, b"Hi", -0.25), (Likelihood(1, b"Hi", -0.25), Likelihood(2, b"Ho", -1.5)))
HALVES = (Scored(Likelihood(3, b"\xc3", -0.5)), Scored(Likelihood(4, b"\xa9!", -0.75)))
ANSWER = (
    ROUTED,
    Delta(text="Hi", token_ids=(1,), scores=(HI,)),
    Delta(text="", token_ids=(3,), scores=HALVES[:1]),
    Delta(text="é!", token_ids=(4,), scores=HALVES[1:]),
    msgspec.structs.replace(FINISHED, token_ids=(1, 3, 4), completion_tokens=3),
)
PROMPT = PromptScored(
    scores=(
        Scored(Likelihood(9, b"<s>", None)),
        Scored(Likelihood(8, b"on", -2.0), (Likelihood(7, b"un", -1.0),)),
        Scored(Likelihood(6, b"ce", -3.0), (Likelihood(6, b"ce", -3.0),)),
    )
)


def echoed(*answer):
    return FakeService(ROUTED, PROMPT, *(answer or ANSWER[1:]))


CHAT = [
    {
        "token": "Hi",
        "logprob": -0.25,
        "bytes": [72, 105],
        "top_logprobs": [
            {"token": "Hi", "logprob": -0.25, "bytes": [72, 105]},
            {"token": "Ho", "logprob": -1.5, "bytes": [72, 111]},
        ],
    },
    {"token": "\\xc3", "logprob": -0.5, "bytes": [0xC3], "top_logprobs": []},
    {"token": "\\xa9\\x21", "logprob": -0.75, "bytes": [0xA9, 0x21], "top_logprobs": []},
]


def test_chat_says_of_each_token_how_likely_it_was():
    service = FakeService(*ANSWER)
    (choice,) = chat(service, logprobs=True, top_logprobs=2).json()["choices"]
    assert service.requests[0].sampling.logprobs == 2
    assert choice["logprobs"] == {"content": CHAT, "refusal": None}
    assert choice["message"]["content"] == "Hié!"


def test_streamed_chat_says_it_beside_the_pieces():
    events = sse_events(chat(FakeService(*ANSWER), logprobs=True, top_logprobs=2, stream=True).text)
    choices = [event["choices"][0] for event in events]
    beside = [choice["logprobs"] for choice in choices]
    assert (beside[0], beside[-1]) == (None, None)
    assert [entry for piece in beside[1:-1] for entry in piece["content"]] == CHAT
    assert {piece["refusal"] for piece in beside[1:-1]} == {None}
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "Hié!"


END = Scored(Likelihood(0, b"<|end|>", -0.125))


@pytest.mark.parametrize("stream", [False, True])
def test_token_that_ends_an_answer_is_scored_in_completions_and_no_part_of_a_chat(stream):
    """Who measures how likely a prompt is asks for one more token, and counts on it."""
    service = FakeService(*ANSWER[:-1], Delta(text="", token_ids=(), scores=(END,)), ANSWER[-1])
    chatted, completed = (
        ask(service, logprobs=fields, stream=stream) for ask, fields in ((chat, True), (completion, 2))
    )
    if stream:
        pieces = [event["choices"][0]["logprobs"] for event in sse_events(chatted.text)]
        _, lists = in_one(sse_events(completed.text))
    else:
        pieces = [chatted.json()["choices"][0]["logprobs"]]
        lists = completed.json()["choices"][0]["logprobs"]
    assert [entry["token"] for piece in pieces if piece for entry in piece["content"]] == ["Hi", "\\xc3", "\\xa9\\x21"]
    assert lists["tokens"] == [*OF_ANSWER["tokens"], "<|end|>"]
    assert lists["text_offset"] == [0, 2, 2, 4]


def test_thoughts_and_calls_are_scored_too():
    thought = Delta(text="", reasoning="hm", token_ids=(1,), scores=(HI,))
    service = FakeService(ROUTED, thought, FINISHED)
    assert len(chat(service, logprobs=True).json()["choices"][0]["logprobs"]["content"]) == 1
    pieces = sse_events(chat(service, logprobs=True, stream=True).text)
    (piece,) = [event["choices"][0] for event in pieces if "reasoning_content" in event["choices"][0]["delta"]]
    assert piece["logprobs"]["content"] == CHAT[:1]


def test_the_likeliest_are_only_said_beside_the_chosen():
    alone = FakeService()
    answer = chat(alone, top_logprobs=3).json()
    assert answer["choices"][0]["logprobs"] is alone.requests[0].sampling.logprobs is None
    assert "The field top_logprobs has no effect here." in answer["tandem"]["notes"]
    assert chat(FakeService(), top_logprobs=0).json()["choices"][0]["logprobs"] is None
    service = FakeService(*ANSWER)
    chat(service, logprobs=True)
    assert service.requests[0].sampling.logprobs == 0


@pytest.mark.parametrize("name", ["logprobs", "top_logprobs"])
@pytest.mark.parametrize("value", [21, -1, "all", [], 1.5])
def test_wrong_numbers_of_the_likeliest_are_refused(name, value):
    ask = completion if name == "logprobs" else chat
    fields = {"logprobs": True} | {name: value}
    response = ask(FakeService(), **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, name)


OF_ANSWER = {
    "tokens": ["Hi", "bytes:\\xc3", "bytes:\\xa9\\x21"],
    "token_logprobs": [-0.25, -0.5, -0.75],
    "top_logprobs": [{"Hi": -0.25, "Ho": -1.5}, {"bytes:\\xc3": -0.5}, {"bytes:\\xa9\\x21": -0.75}],
    "text_offset": [0, 2, 2],
}


def test_completion_says_it_in_lists():
    (choice,) = completion(FakeService(*ANSWER), logprobs=2).json()["choices"]
    assert (choice["text"], choice["logprobs"]) == ("Hié!", OF_ANSWER)


def in_one(events):
    """The text and the lists of a stream's pieces."""
    choices = [event["choices"][0] for event in events]
    lists = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    text = "".join(choice["text"] for choice in choices)
    return text, {name: [entry for piece in lists for entry in piece[name]] for name in lists[0]}


def test_streamed_completion_says_it_piece_by_piece():
    events = sse_events(completion(FakeService(*ANSWER), logprobs=2, stream=True).text)
    assert in_one(events) == ("Hié!", OF_ANSWER)


OF_ECHO = {
    "tokens": ["<s>", "on", "ce"],
    "token_logprobs": [None, -2.0, -3.0],
    "top_logprobs": [None, {"un": -1.0, "on": -2.0}, {"ce": -3.0}],
    "text_offset": [0, 0, 2],  # the first is no part of the text
}
OF_BOTH = {name: OF_ECHO[name] + OF_ANSWER[name] for name in OF_ECHO} | {"text_offset": [0, 0, 2, 4, 6, 6]}


@pytest.mark.parametrize("stream", [False, True])
def test_echo_has_the_prompt_and_its_log_probabilities_in_front(stream):
    service = echoed()
    response = completion(service, prompt="once", echo=True, logprobs=2, stream=stream)
    assert service.requests[0].scores_prompt
    if stream:
        assert in_one(sse_events(response.text)) == ("onceHié!", OF_BOTH)
    else:
        (choice,) = response.json()["choices"]
        assert (choice["text"], choice["logprobs"]) == ("onceHié!", OF_BOTH)


@pytest.mark.parametrize("stream", [False, True])
def test_echo_alone_is_text(stream):
    for prompt in ("once", list(b"once"), [list(b"once")]):
        service = FakeService(*ANSWER)
        response = completion(service, prompt=prompt, echo=True, stream=stream)
        assert not service.requests[0].scores_prompt
        assert service.requests[0].sampling.logprobs is None
        choices = [event["choices"][0] for event in sse_events(response.text)] if stream else response.json()["choices"]
        assert "".join(choice["text"] for choice in choices) == "onceHié!"
        assert {choice["logprobs"] for choice in choices} == {None}


def test_offsets_of_a_prompt_without_a_mark_in_front_are_those_of_its_text():
    scores = (Scored(Likelihood(5, "é".encode(), None)), Scored(Likelihood(6, b"t", -1.0)))
    service = FakeService(ROUTED, PromptScored(scores=scores), *ANSWER[1:])
    (choice,) = completion(service, prompt="ét", echo=True, logprobs=0).json()["choices"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 4, 4]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("logprobs", [None, 1])
def test_nothing_but_the_prompt_may_be_asked_for(stream, logprobs):
    """As it is to measure how likely a text is."""
    nothing = FINISHED.__class__(
        finish_reason="length",
        token_ids=(),
        prompt_tokens=3,
        completion_tokens=0,
        ttft_s=0.5,
        total_s=0.5,
        decode_tokens_per_s=None,
    )
    service = echoed(nothing)
    response = completion(service, prompt="once", echo=True, max_tokens=0, logprobs=logprobs, stream=stream)
    (request,) = service.requests
    assert (request.max_tokens, request.scores_prompt) == (0, True)
    assert request.sampling.logprobs == (logprobs or 0)
    if stream:
        *_, last = events = sse_events(response.text)
        text = "".join(event["choices"][0]["text"] for event in events)
        assert last["choices"][0]["finish_reason"] == "length"
        logprobs_said = events[0]["choices"][0]["logprobs"]
    else:
        (choice,) = response.json()["choices"]
        text, logprobs_said = choice["text"], choice["logprobs"]
        assert response.json()["usage"]["completion_tokens"] == 0
    assert text == "once"
    assert logprobs_said == (OF_ECHO if logprobs else None)


@pytest.mark.parametrize("value", [0, 0.0, "0"])
def test_nothing_may_not_be_asked_for_without_the_prompt(value):
    response = completion(FakeService(), max_tokens=value)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "max_tokens")


@pytest.mark.parametrize("stream", [False, True])
def test_prompt_is_scored_once_and_echoed_before_each_answer(stream):
    service = ScoredOnce()
    response = completion(service, prompt="once", echo=True, logprobs=2, n=2, stream=stream)
    assert [request.scores_prompt for request in service.requests] == [True, False]
    for index in (0, 1):
        if stream:
            pieces = [event for event in sse_events(response.text) if event["choices"][0]["index"] == index]
            assert in_one(pieces) == ("onceHié!", OF_BOTH)
        else:
            choice = response.json()["choices"][index]
            assert (choice["index"], choice["text"], choice["logprobs"]) == (index, "onceHié!", OF_BOTH)


class ScoredOnce(FakeService):
    """Tells of the prompt where that is asked for."""

    async def generate(self, request):
        self.requests.append(request)
        for event in (ROUTED, *([PROMPT] if request.scores_prompt else []), *ANSWER[1:]):
            yield event


def test_of_two_tokens_with_one_text_the_likelier_counts():
    twice = Scored(Likelihood(1, b"a", -2.0), (Likelihood(2, b"a", -1.0), Likelihood(3, b"b", -1.5)))
    service = FakeService(ROUTED, Delta(text="a", token_ids=(1,), scores=(twice,)), FINISHED)
    (choice,) = completion(service, logprobs=2).json()["choices"]
    assert choice["logprobs"]["top_logprobs"] == [{"a": -1.0, "b": -1.5}]


def test_suffix_reaches_the_prompt_and_wants_text():
    service = FakeService()
    completion(service, prompt="a", suffix="z")
    assert service.requests[0].prompt == TextPrompt("a", suffix="z")
    response = completion(FakeService(), prompt=[1], suffix="z")
    assert (response.status_code, response.json()["error"]["param"]) == (400, "suffix")
