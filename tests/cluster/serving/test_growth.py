"""Room that grows with an answer: nobody gets more than there is, who came last gives way, and everybody comes to an end."""

import asyncio

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.serving.live_request import USUAL_TOKENS
from protocol.messages import Cancel, Generate
from strategy.memory import AHEAD_TOKENS, GROWTH_TOKENS
from tests.support.fake_cluster import (
    BYTES_PER_TOKEN,
    CONTEXT_TOKENS,
    Client,
    FakeCluster,
    plan_of,
    requests_of,
    service_of,
    settle,
    tokens_request,
)
from tests.support.virtual_time import run

BLOCK = BYTES_PER_TOKEN * GROWTH_TOKENS


def one_worker(blocks, **changes):
    """A cluster of one worker with room for so many blocks of cache."""
    return FakeCluster(plan_of(("alpha",), room=blocks * BLOCK, **changes))


class Head:
    """Generates, for each sequence that it was sent and that was not cancelled, the tokens that its prompt and their places say."""

    def __init__(self, cluster, lengths):
        self._cluster = cluster
        self._lengths = lengths  # of whole answers, by the first token of the prompt
        self._num_seen = 0
        self.sequences = {}  # what each has: prompt and answer

    def look(self):
        """Hear what was sent since."""
        for _, message, buffers in self._cluster.sent[self._num_seen :]:
            if isinstance(message, Generate):
                self.sequences[message.sequence] = list(memoryview(buffers[0]).cast("i"))
            elif isinstance(message, Cancel):
                self.sequences.pop(message.sequence, None)
        self._num_seen = len(self._cluster.sent)

    def generate(self, sequence, count):
        """Some further tokens; the last one ends the sequence."""
        tokens = self.sequences[sequence]
        end = self._lengths[tokens[0]]
        new = [token_at(tokens[0], place) for place in range(len(tokens), min(len(tokens) + count, end))]
        tokens += new
        reason = "length" if len(tokens) == end else None
        if reason:
            del self.sequences[sequence]
        self._cluster.report(sequence, new, reason)

    @property
    def num_bytes(self):
        """Of all caches, which grow by blocks."""
        return sum(-(-len(tokens) // GROWTH_TOKENS) * BLOCK for tokens in self.sequences.values())


def token_at(first, place):
    return 20 + (first * 31 + place * 7) % 300


def request_of(first, prompt_tokens, **fields):
    request = tokens_request(prompt_tokens, **fields)
    return msgspec.structs.replace(request, prompt=type(request.prompt)((first, *request.prompt.tokens[1:])))


def test_requests_without_a_length_run_beside_each_other_where_the_longest_answers_would_not(prompts):
    async def scenario():
        cluster = one_worker(8)
        service = service_of(prompts, cluster)
        clients = [Client(service, tokens_request()) for _ in range(8)]
        for client in clients:
            await client.routed()
        assert {message.max_tokens for _, message in cluster.generates()} == {CONTEXT_TOKENS - 5}
        ninth = Client(service, tokens_request())
        await settle()
        assert not ninth.events
        cluster.report(1, (20,), "length")
        await ninth.routed()

    run(scenario())


def test_youngest_gives_way_to_an_answer_that_grows_and_goes_on_with_the_same_tokens(prompts):
    async def scenario():
        cluster = one_worker(3)
        service, head = service_of(prompts, cluster), Head(cluster, {30: 600, 31: 300})
        old, young = Client(service, request_of(30, 5)), Client(service, request_of(31, 5))
        await young.routed()
        head.look()
        head.generate(2, 100)
        for _ in range(9):
            head.generate(1, 50)
        assert cluster.cancelled() == [("alpha", 2)]  # three blocks for the old one
        await settle()
        assert (requests_of(service)["running"], requests_of(service)["waiting"]) == (1, 1)
        late = Client(service, request_of(32, 5))
        await settle()
        head.look()
        assert list(head.sequences) == [1]
        head.generate(1, 600)
        await old.task
        await settle()
        head.look()
        assert len(head.sequences[3]) == 105  # the prompt, and what the young one had
        head.generate(3, 600)
        await young.task
        assert young.ids == tuple(token_at(31, place) for place in range(5, 300))
        assert (young.finished.resumed, young.finished.notes) == (0, ())
        await late.leave()

    run(scenario())


def test_who_grows_gives_way_itself_where_it_came_last(prompts):
    async def scenario():
        cluster = one_worker(2)
        service, head = service_of(prompts, cluster), Head(cluster, {30: 100, 31: 300})
        old, young = Client(service, request_of(30, 5)), Client(service, request_of(31, 5))
        await young.routed()
        head.look()
        for _ in range(4):
            head.generate(2, 50)
        head.look()
        assert list(head.sequences) == [1]
        head.generate(1, 100)
        await old.task
        await settle()
        head.look()
        head.generate(3, 300)
        await young.task
        assert young.ids == tuple(token_at(31, place) for place in range(5, 300))

    run(scenario())


def test_stop_waits_for_who_gave_way(prompts):
    async def scenario():
        cluster = one_worker(2)
        service, head = service_of(prompts, cluster), Head(cluster, {30: 100, 31: 300})
        old, young = Client(service, request_of(30, 5)), Client(service, request_of(31, 5))
        await young.routed()
        head.look()
        for _ in range(4):
            head.generate(2, 50)
        draining = asyncio.create_task(service.drain(1000.0))
        head.look()
        head.generate(1, 100)
        await old.task
        await settle()
        assert not draining.done()
        head.look()
        head.generate(3, 300)
        await young.task
        await draining

    run(scenario())


def test_client_that_leaves_while_it_waits_for_memory_leaves_nothing(prompts):
    async def scenario():
        cluster = one_worker(2)
        service, head = service_of(prompts, cluster), Head(cluster, {30: 100, 31: 300})
        old, young = Client(service, request_of(30, 5)), Client(service, request_of(31, 5))
        await young.routed()
        head.look()
        for _ in range(4):
            head.generate(2, 50)
        await settle()
        await young.leave()
        head.generate(1, 100)
        await old.task
        assert (service.is_idle, requests_of(service)["waiting"], requests_of(service)["running"]) == (True, 0, 0)

    run(scenario())


def test_answer_goes_on_as_far_as_there_can_be_memory_without_a_note(prompts):
    async def scenario():
        cluster = one_worker(3)
        client = Client(service_of(prompts, cluster), tokens_request(5))
        await client.routed()
        assert cluster.generates()[0][1].max_tokens == 3 * GROWTH_TOKENS - 5
        cluster.report(1, (20,), "length")
        await client.task
        assert client.finished.notes == ()

    run(scenario())


def test_strategy_is_chosen_as_for_an_answer_of_the_usual_length(prompts):
    """All stages together would hold a longer answer than the one worker, which is asked all the same."""

    async def scenario():
        plan = plan_of(room=4 * BLOCK)
        more = {"beta": msgspec.structs.replace(plan.budgets["beta"], sequence_bytes=1000 * BLOCK)}
        plan = msgspec.structs.replace(plan, budgets=plan.budgets | more)
        client = Client(service_of(prompts, FakeCluster(plan)), tokens_request(200))
        assert (await client.routed()).strategy == "single-device-cached"
        client.task.cancel()

    run(scenario())


def test_caches_that_are_made_at_once_are_reserved_whole_and_answers_have_the_usual_length(prompts):
    async def scenario():
        cluster = one_worker(5)
        service = service_of(prompts, cluster, kv="static")
        first, second = Client(service, tokens_request(5)), Client(service, tokens_request(5))
        await first.routed()
        await settle()
        assert not second.events
        assert cluster.generates()[0][1].max_tokens == USUAL_TOKENS
        cluster.report(1, (20,) * 400)
        cluster.report(1, (20,), "length")
        await second.routed()
        await second.leave()

    run(scenario())


@pytest.mark.parametrize("with_limits", [False, True])
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_nobody_gets_more_than_there_is_and_everybody_finishes(prompts, with_limits, data):
    asked = data.draw(st.lists(st.tuples(st.integers(1, 700), st.integers(1, 900)), min_size=1, max_size=8))
    blocks = data.draw(st.integers(7, 12))  # the longest that there may be has seven
    lengths = {30 + number: prompt + answer for number, (prompt, answer) in enumerate(asked)}

    async def scenario():
        cluster = one_worker(blocks)
        service, head = service_of(prompts, cluster, use_distributed_inference="never"), Head(cluster, lengths)
        clients, waiting, num_steps = {}, list(enumerate(asked)), 0
        while waiting or not all(client.task.done() for client in clients.values()):
            if waiting and (not head.sequences or data.draw(st.booleans())):
                number, (prompt, answer) = waiting.pop(0)
                limit = {"max_tokens": answer} if with_limits else {}
                clients[number] = Client(service, request_of(30 + number, prompt, **limit))
            await settle()
            head.look()
            assert head.num_bytes <= blocks * BLOCK
            for sequence in [*head.sequences]:
                if sequence in head.sequences:
                    head.generate(sequence, AHEAD_TOKENS)
                    head.look()  # what gave way is gone
                    assert head.num_bytes <= blocks * BLOCK
            num_steps += 1
            assert num_steps < 500, "it does not end"
        for number, (prompt, answer) in enumerate(asked):
            expected = tuple(token_at(30 + number, place) for place in range(prompt, prompt + answer))
            assert clients[number].ids == expected
        assert service._admission._room == {"alpha": blocks * BLOCK}

    run(scenario())
