"""The service over a control plane that a test plays: routing, limits, endings and what clients are told."""

import asyncio
from array import array
from contextlib import aclosing
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.membership.roster import Member, WorkerEvent
from cluster.planning.kept_prefixes import KeptPrefixes
from cluster.serving.prompts import Prompts
from cluster.serving.requests import Delta, Finished, GenerationRequest, Progress, Routed, TextPrompt, TokensPrompt
from cluster.serving.service import DEFAULT_MAX_TOKENS, GenerationService
from cluster.settings import ApiSettings, ModelSettings, Settings, StrategySettings, WorkerSettings
from protocol.errors import ApiError, BadRequest, QueueFull, TooLarge, Unavailable, UsageError
from protocol.messages import Cancel, Generate, Inspected, PrefillProgress, SequenceFailed, Tokens, Update
from protocol.values import LayerRange, Sampling
from strategy.cache_use import MeasuredUse, PayingRange
from strategy.memory import KvGrowth, KvNeeds, WorkerBudget
from strategy.partition import ModelSizes, Stage
from strategy.vocabulary import Route
from tests.support.tiny_tokenizer import write_tokenizer

CONTEXT_TOKENS = 2000
SHORTAGE = "the full model needs 9 GB on one worker, and the largest, alpha, has 5 GB"


@pytest.fixture(scope="session")
def prompts(tmp_path_factory):
    return Prompts.load(write_tokenizer(tmp_path_factory.mktemp("model")))


class FakeControl:
    """Three ready workers; `full` names those with the full model. `sent` is every message to a worker."""

    def __init__(self, full=("alpha", "beta"), context_tokens=CONTEXT_TOKENS, room=10**9):
        self.sizes = ModelSizes(layers=(10, 10, 10), embedding=5, head=5, tied=False)
        self.inspected = Inspected(
            worker="alpha",
            architecture="llama",
            num_layers=3,
            legal_cuts=(1, 2),
            why_not=None,
            batches=True,
            last_position_only=True,
            context_tokens=context_tokens,
        )
        self.pipeline = Route(("alpha", "beta", "gamma"))
        self.stages = [
            Stage(worker=name, layers=LayerRange(at, at + 1), weights_bytes=10, holds_full_model=name in full)
            for at, name in enumerate(self.pipeline)
        ]
        needs = KvNeeds(fixed_bytes=0, growth=(KvGrowth(10, None),), snapshots=False)
        self.budgets = {name: WorkerBudget(prefix_bytes=0, sequence_bytes=room) for name in self.pipeline}
        self.kept = KeptPrefixes()
        self.kept.needs[self.pipeline] = dict.fromkeys(self.pipeline, needs)
        self.kept.needs |= {Route((name,)): {name: needs} for name in full}
        self.members = {stage.worker: ready_member(stage) for stage in self.stages}
        self.listener = None
        self.sent = []

    def send(self, worker, message, buffers=()):
        self.sent.append((worker, message, buffers))

    @property
    def lost(self):
        return [name for name, member in self.members.items() if member.state == "lost"]

    @property
    def full_model_holders(self):
        return [member for member in self.members.values() if member.holds_full_model and member.is_ready]

    def shortage(self):
        return None if any(stage.holds_full_model for stage in self.stages) else SHORTAGE

    def lose(self, name):
        self.members[name].apply(WorkerEvent.LOSE)
        self.listener.worker_lost(name)

    # --- what the test reads

    def generates(self):
        return [(worker, message) for worker, message, _ in self.sent if isinstance(message, Generate)]

    def cancelled(self):
        return [(worker, message.sequence) for worker, message, _ in self.sent if isinstance(message, Cancel)]


def ready_member(stage):
    member = Member(stage.worker, memory_limit_bytes=100)
    for event in (WorkerEvent.JOIN, WorkerEvent.LOAD, WorkerEvent.LOADED):
        member.apply(event)
    member.layers = stage.layers
    member.holds_full_model = stage.holds_full_model
    return member


def service_of(prompts, control, *, max_queue=256, **strategy):
    configured = Settings(
        model=ModelSettings(path="/model"),
        api=ApiSettings(max_queue=max_queue),
        strategy=StrategySettings(**strategy),
        workers=tuple(WorkerSettings(name=name) for name in control.pipeline),
    )
    return GenerationService(control, prompts, configured, "tiny", "http://here", 4711)


def tokens_request(count=5, **fields):
    return GenerationRequest(prompt=TokensPrompt(tuple([20] * count)), **fields)


async def until(condition):
    """Let others run until `condition` holds; prompts are encoded on a thread, so a number of turns is not enough."""
    async with asyncio.timeout(5):
        while True:
            if condition():
                return
            await asyncio.sleep(0.001)


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


class Client:
    """Reads one request's events in the background."""

    def __init__(self, service, request):
        self.events = []
        self.task = asyncio.create_task(self._read(service, request))

    async def _read(self, service, request):
        async with aclosing(service.generate(request)) as events:
            async for event in events:
                self.events.append(event)

    async def routed(self) -> Routed:
        await until(lambda: self.events or self.task.done())
        if not self.events:
            await self.task
        return self.events[0]

    @property
    def text(self):
        return "".join(event.text for event in self.events if isinstance(event, Delta))

    @property
    def ids(self):
        return tuple(token for event in self.events if isinstance(event, Delta) for token in event.token_ids)

    @property
    def finished(self) -> Finished:
        assert isinstance(self.events[-1], Finished)
        return self.events[-1]


def update(control, sequence, tokens, reason=None):
    control.listener.tokens(Tokens(updates=(Update(sequence, tuple(tokens), reason),)))


async def answered(prompts, request, *updates, control=None, **strategy) -> Client:
    """A request whose head reports these (tokens, finish reason)."""
    control = control or FakeControl()
    client = Client(service_of(prompts, control, **strategy), request)
    routed = await client.routed()
    for tokens, reason in updates:
        update(control, int(routed.request_id), tokens, reason)
        await settle()
    async with asyncio.timeout(5):
        await client.task
    return client


def words(prompts, text):
    return prompts.encode(GenerationRequest(prompt=TextPrompt(text)))[1:]


# --- routing


@pytest.mark.parametrize(
    ("prompt_tokens", "max_tokens", "strategy", "reason"),
    [
        (100, 50, "distributed-no-cache", "100 prompt tokens and 50 to generate are at most 100 and 50"),
        (101, 50, "single-device-cached", "101 prompt tokens are more than 100"),
        (100, 51, "single-device-cached", "51 tokens to generate are more than 50"),
    ],
)
def test_request_goes_by_the_thresholds_and_its_head_gets_it(prompts, prompt_tokens, max_tokens, strategy, reason):
    async def scenario():
        control = FakeControl()
        client = Client(service_of(prompts, control), tokens_request(prompt_tokens, max_tokens=max_tokens))
        routed = await client.routed()
        assert (routed.strategy, routed.prompt_tokens) == (strategy, prompt_tokens)
        assert reason in routed.reason
        ((worker, message),) = control.generates()
        assert worker == message.route.head == routed.workers[0]
        assert message.route == (Route(("alpha",)) if strategy == "single-device-cached" else control.pipeline)
        assert message.cached == (strategy == "single-device-cached")
        assert message.max_tokens == max_tokens
        assert control.sent[0][2] == (array("i", [20] * prompt_tokens).tobytes(),)
        client.task.cancel()

    asyncio.run(scenario())


def test_single_device_requests_go_to_the_least_busy_holder_of_the_full_model(prompts):
    async def scenario():
        control = FakeControl(full=("alpha", "gamma"))
        service = service_of(prompts, control, use_distributed_inference="never")
        clients = [Client(service, tokens_request()) for _ in range(4)]
        routes = [(await client.routed()).workers for client in clients]
        assert sorted(routes) == [("alpha",), ("alpha",), ("gamma",), ("gamma",)]
        for client in clients:
            client.task.cancel()
        await asyncio.wait([client.task for client in clients])
        assert [member.num_assigned for member in control.members.values()] == [0, 0, 0]

    asyncio.run(scenario())


def test_request_overrides_mode_and_strategy(prompts):
    async def scenario():
        control = FakeControl()
        service = service_of(prompts, control, use_distributed_inference="never")
        for fields, strategy in [
            ({}, "single-device-cached"),
            ({"mode": "always"}, "distributed-no-cache"),
            ({"strategy": "distributed-cached"}, "distributed-cached"),
            ({"mode": "never", "strategy": "distributed-no-cache"}, "distributed-no-cache"),
        ]:
            client = Client(service, tokens_request(**fields))
            assert (await client.routed()).strategy == strategy
            client.task.cancel()

    asyncio.run(scenario())


def test_model_that_fits_no_worker_is_distributed_and_cached_beyond_the_thresholds(prompts):
    async def scenario():
        control = FakeControl(full=())
        service = service_of(prompts, control)
        for count, strategy in ((100, "distributed-no-cache"), (101, "distributed-cached")):
            client = Client(service, tokens_request(count, max_tokens=50))
            routed = await client.routed()
            assert (routed.strategy, routed.workers) == (strategy, control.pipeline.workers)
            client.task.cancel()

    asyncio.run(scenario())


def test_mode_never_with_a_model_that_fits_nowhere_says_how_much_is_missing(prompts):
    control = FakeControl(full=())
    with pytest.raises(UsageError, match=r"9 GB .* 5 GB"):
        service_of(prompts, control, use_distributed_inference="never").check_mode()
    service_of(prompts, control, use_distributed_inference="auto").check_mode()

    async def scenario():
        with pytest.raises(BadRequest, match=r"9 GB .* 5 GB") as refused:
            await answered(prompts, tokens_request(mode="never"), control=control)
        assert refused.value.param == "use_distributed_inference"

    asyncio.run(scenario())


def test_strategy_that_cannot_be_had_names_its_field(prompts):
    async def scenario():
        with pytest.raises(BadRequest) as refused:
            await answered(prompts, tokens_request(strategy="tensor-parallel"))
        assert refused.value.param == "strategy"

    asyncio.run(scenario())


def test_explain_gives_the_choice_and_sends_nothing(prompts):
    async def scenario():
        control = FakeControl(full=())
        explained = await service_of(prompts, control).explain(tokens_request(7, max_tokens=3))
        assert (explained["strategy"], explained["prompt_tokens"], explained["max_tokens"]) == (
            "distributed-no-cache",
            7,
            3,
        )
        assert {candidate["strategy"]: candidate["why_not"] for candidate in explained["candidates"]}[
            "single-device-cached"
        ] == SHORTAGE
        assert control.sent == []

    asyncio.run(scenario())


# --- lengths


def test_prompt_and_max_tokens_may_fill_the_context_exactly(prompts):
    async def scenario():
        control = FakeControl()
        client = Client(service_of(prompts, control), tokens_request(CONTEXT_TOKENS - 10, max_tokens=10))
        await client.routed()
        client.task.cancel()

    asyncio.run(scenario())


def test_max_tokens_beyond_the_context_is_a_bad_request_that_says_how_many_are_left(prompts):
    async def scenario():
        with pytest.raises(BadRequest, match="leaves 10 after 1990 prompt tokens") as refused:
            await answered(prompts, tokens_request(CONTEXT_TOKENS - 10, max_tokens=11))
        assert refused.value.param == "max_tokens"

    asyncio.run(scenario())


def test_prompt_that_fills_the_context_is_too_large(prompts):
    async def scenario():
        with pytest.raises(TooLarge, match="2000 tokens") as refused:
            await answered(prompts, tokens_request(CONTEXT_TOKENS, prompt_field="input"))
        assert refused.value.param == "input"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("prompt_tokens", "expected"), [(5, DEFAULT_MAX_TOKENS), (CONTEXT_TOKENS - 100, 100), (CONTEXT_TOKENS - 1, 1)]
)
def test_without_max_tokens_the_default_is_cut_to_the_context(prompts, prompt_tokens, expected):
    async def scenario():
        control = FakeControl()
        client = Client(service_of(prompts, control), tokens_request(prompt_tokens))
        await client.routed()
        assert control.generates()[0][1].max_tokens == expected
        client.task.cancel()

    asyncio.run(scenario())


def test_model_without_a_context_limit_takes_any_max_tokens(prompts):
    async def scenario():
        control = FakeControl(context_tokens=None)
        client = Client(service_of(prompts, control), tokens_request(5, max_tokens=100_000))
        await client.routed()
        assert control.generates()[0][1].max_tokens == 100_000
        client.task.cancel()

    asyncio.run(scenario())


# --- seeds


def test_seed_of_the_request_reaches_the_head_and_without_one_each_request_gets_its_own(prompts):
    async def scenario():
        control = FakeControl()
        service = service_of(prompts, control)
        for sampling in (Sampling(seed=11), Sampling(), Sampling(), Sampling(seed=-1)):
            client = Client(service, tokens_request(sampling=sampling))
            await client.routed()
            client.task.cancel()
        given_seed, first, second, negative = [message.seed for _, message in control.generates()]
        assert given_seed == 11
        assert first != second
        assert negative >= 0

    asyncio.run(scenario())


# --- answers


def test_answer_is_streamed_and_counted_as_mlx_lm_counts(prompts):
    async def scenario():
        ids = words(prompts, "the cat sat on the mat")
        end = min(prompts.eos_token_ids)
        client = await answered(prompts, tokens_request(), (ids[:2], None), ((*ids[2:], end), "stop"))
        assert client.text == "the cat sat on the mat"
        assert client.finished.token_ids == client.ids == ids
        assert client.finished.completion_tokens == len(ids) + 1
        assert client.finished.finish_reason == "stop"
        assert client.finished.prompt_tokens == 5
        assert 0 < client.finished.ttft_s < 60
        assert client.finished.decode_tokens_per_s > 0

    asyncio.run(scenario())


def test_answer_cut_by_length_keeps_its_last_token(prompts):
    async def scenario():
        ids = words(prompts, "the cat sat")
        client = await answered(prompts, tokens_request(), (ids, "length"))
        assert (client.text, client.finished.finish_reason) == ("the cat sat", "length")
        assert client.finished.completion_tokens == len(client.finished.token_ids) == len(ids)

    asyncio.run(scenario())


def test_answer_of_one_token_has_no_rate(prompts):
    async def scenario():
        client = await answered(prompts, tokens_request(), ((20,), "length"))
        assert client.finished.decode_tokens_per_s is None

    asyncio.run(scenario())


def test_end_token_alone_is_an_empty_answer(prompts):
    async def scenario():
        client = await answered(prompts, tokens_request(), ((min(prompts.eos_token_ids),), "stop"))
        assert (client.text, client.finished.token_ids, client.finished.completion_tokens) == ("", (), 1)

    asyncio.run(scenario())


def test_progress_of_the_prefill_is_passed_on(prompts):
    async def scenario():
        control = FakeControl()
        client = Client(service_of(prompts, control), tokens_request())
        await client.routed()
        control.listener.progress(PrefillProgress(sequence=1, processed=3, total=5))
        update(control, 1, (20,), "length")
        await client.task
        assert client.events[1] == Progress(processed=3, total=5)

    asyncio.run(scenario())


def test_stop_string_ends_the_answer_before_it_and_the_sequence_on_its_worker(prompts):
    async def scenario():
        control = FakeControl()
        client = Client(service_of(prompts, control), tokens_request(stop=("on the",)))
        await client.routed()
        ids = words(prompts, "the cat sat on the mat")
        for token in ids:
            update(control, 1, (token,))
            await settle()
        await client.task
        assert client.text == "the cat sat "
        assert client.finished.finish_reason == "stop"
        assert client.finished.completion_tokens == len(client.finished.token_ids) < len(ids)
        assert control.cancelled() == [("alpha", 1)]

    asyncio.run(scenario())


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 30)), stop=st.sampled_from([(), ("mat",), ("cat", "on"), ("zzz",)]))
def test_answer_does_not_depend_on_how_its_tokens_arrive(prompts, cuts, stop):
    ids = words(prompts, "the cat sat on the mat, naïve 日本語")
    bounds = sorted({0, len(ids), *(cut for cut in cuts if cut < len(ids))})
    parts = [ids[start:end] for start, end in pairwise(bounds)]

    async def scenario(parts):
        updates = [(part, "length" if number == len(parts) - 1 else None) for number, part in enumerate(parts)]
        client = await answered(prompts, tokens_request(stop=stop), *updates)
        assert client.ids == client.finished.token_ids
        return client.text, client.finished.token_ids, client.finished.completion_tokens, client.finished.finish_reason

    assert asyncio.run(scenario(parts)) == asyncio.run(scenario([ids]))


# --- what goes wrong


def test_lost_worker_fails_the_requests_on_its_route_and_no_others(prompts):
    async def scenario():
        control = FakeControl()
        service = service_of(prompts, control)
        distributed = Client(service, tokens_request(strategy="distributed-no-cache"))
        alone = Client(service, tokens_request(strategy="single-device-cached"))
        await distributed.routed()
        assert (await alone.routed()).workers == ("beta",)
        control.lose("gamma")
        with pytest.raises(Unavailable, match="gamma"):
            await distributed.task
        update(control, 2, (20,), "length")
        await alone.task
        assert service.status()["requests"] == {"running": 0, "waiting": 0, "finished": 1, "failed": 1}

    asyncio.run(scenario())


def test_after_a_loss_the_survivors_with_the_full_model_serve_and_the_rest_is_unavailable(prompts):
    async def scenario():
        control = FakeControl()
        service = service_of(prompts, control)
        control.lose("alpha")
        assert service.state() == "degraded"
        client = Client(service, tokens_request(max_tokens=10))
        routed = await client.routed()
        assert (routed.strategy, routed.workers) == ("single-device-cached", ("beta",))
        assert "alpha is lost" in routed.reason
        client.task.cancel()
        for fields in ({"mode": "always"}, {"strategy": "distributed-cached"}):
            with pytest.raises(Unavailable, match="alpha is lost"):
                await answered(prompts, tokens_request(**fields), control=control)
        control.lose("beta")
        with pytest.raises(Unavailable):
            await answered(prompts, tokens_request(), control=control)

    asyncio.run(scenario())


def test_failure_of_a_sequence_is_an_error_of_its_request_and_counted(prompts):
    async def scenario():
        control = FakeControl()
        service = service_of(prompts, control)
        failing, fine = Client(service, tokens_request()), Client(service, tokens_request())
        await failing.routed()
        await fine.routed()
        control.listener.failed(SequenceFailed(sequence=1, message="beta: no memory"))
        update(control, 2, (20,), "length")
        with pytest.raises(ApiError, match="beta: no memory"):
            await failing.task
        await fine.task
        assert service.status()["requests"] == {"running": 0, "waiting": 0, "finished": 1, "failed": 1}

    asyncio.run(scenario())


def test_client_that_leaves_cancels_its_sequence_on_the_head(prompts):
    async def scenario():
        control = FakeControl()
        service = service_of(prompts, control)
        client = Client(service, tokens_request())
        await client.routed()
        assert service.status()["requests"]["running"] == 1
        client.task.cancel()
        await asyncio.wait([client.task])
        assert control.cancelled() == [("alpha", 1)]
        assert service.status()["requests"]["running"] == 0
        update(control, 1, (20,))  # a token that was on its way concerns nobody

    asyncio.run(scenario())


def test_client_that_leaves_while_it_waits_sends_nothing(prompts, monkeypatch):
    monkeypatch.setattr("cluster.serving.service.MAX_RUNNING", 1)

    async def scenario():
        control = FakeControl()
        service = service_of(prompts, control)
        running, waiting = Client(service, tokens_request()), Client(service, tokens_request())
        await running.routed()
        await until(lambda: service.status()["requests"]["waiting"])
        waiting.task.cancel()
        await asyncio.wait([waiting.task])
        assert len(control.generates()) == 1
        assert service.status()["requests"] == {"running": 1, "waiting": 0, "finished": 0, "failed": 0}
        running.task.cancel()

    asyncio.run(scenario())


def test_request_beyond_the_queue_is_refused(prompts, monkeypatch):
    monkeypatch.setattr("cluster.serving.service.MAX_RUNNING", 1)

    async def scenario():
        control = FakeControl()
        service = service_of(prompts, control, max_queue=1)
        clients = [Client(service, tokens_request()) for _ in range(3)]
        done, waiting = await asyncio.wait([client.task for client in clients], return_when=asyncio.FIRST_COMPLETED)
        (refused,) = done
        assert isinstance(refused.exception(), QueueFull)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)

    asyncio.run(scenario())


def test_drain_lets_the_running_finish_and_refuses_newcomers(prompts):
    async def scenario():
        control = FakeControl()
        service = service_of(prompts, control)
        client = Client(service, tokens_request())
        await client.routed()
        draining = asyncio.create_task(service.drain(60))
        await settle()
        assert service.state() == "stopped"
        with pytest.raises(Unavailable, match="stopping"):
            await Client(service, tokens_request()).task
        assert not draining.done()
        update(control, 1, (20,), "length")
        await client.task
        await draining

    asyncio.run(scenario())


def test_drain_fails_what_does_not_finish_in_time(prompts):
    async def scenario():
        control = FakeControl()
        service = service_of(prompts, control)
        client = Client(service, tokens_request())
        await client.routed()
        await service.drain(0)
        with pytest.raises(Unavailable, match="stopped before the answer"):
            await client.task

    asyncio.run(scenario())


def test_status_has_every_documented_key(prompts):
    status = service_of(prompts, FakeControl()).status()
    assert status["state"] == "ready"
    assert (status["api"], status["mode"], status["policy"]) == ("http://here", "auto", "thresholds")
    assert {"id": "tiny", "layers": 3, "bytes": 40}.items() <= status["model"].items()
    assert status["coordinator"] == {"pid": 4711}
    assert [worker["layers"] for worker in status["workers"]] == [[0, 1], [1, 2], [2, 3]]
    assert [worker["holds_full_model"] for worker in status["workers"]] == [True, True, False]
    for worker in status["workers"]:
        assert {"name", "host", "pid", "state", "layers", "holds_full_model", "memory"} <= worker.keys()
        assert worker["memory"].keys() == {"limit_bytes", "weights_bytes", "kv_bytes"}


def test_lost_worker_is_shown_as_lost_and_without_memory(prompts):
    control = FakeControl()
    service = service_of(prompts, control)
    control.lose("beta")
    shown = service.status()["workers"][1]
    assert (shown["state"], shown["holds_full_model"]) == ("lost", False)
    assert shown["memory"]["weights_bytes"] == shown["memory"]["kv_bytes"] == 0


def test_request_whose_cache_can_never_fit_is_refused_with_the_figures(prompts):
    async def play():
        service = service_of(prompts, FakeControl(room=10 * 256), use_distributed_inference="never")
        request = tokens_request(200, max_tokens=100)
        with pytest.raises(TooLarge, match=r"300 tokens needs 0.0 MB on alpha"):
            await anext(service.generate(request))

    asyncio.run(play())


def test_request_whose_cache_does_not_fit_now_waits_for_room(prompts):
    async def play():
        control = FakeControl(full=("alpha",), room=10 * 256)
        service = service_of(prompts, control, use_distributed_inference="never")
        first = Client(service, tokens_request(5, max_tokens=5))
        await until(lambda: len(control.generates()) == 1)
        second = Client(service, tokens_request(5, max_tokens=5))
        await until(lambda: service.status()["requests"]["waiting"] == 1)
        service.tokens(Tokens(updates=(Update(1, (20,), "length"),)))
        await first.task
        await until(lambda: len(control.generates()) == 2)
        service.tokens(Tokens(updates=(Update(2, (20,), "length"),)))
        await second.task

    asyncio.run(play())


def test_conversation_comes_back_to_the_worker_that_knows_it_unless_that_is_busy(prompts):
    async def play():
        control = FakeControl()
        service = service_of(prompts, control, use_distributed_inference="never")
        heads = []
        for number in range(1, 4):
            client = Client(service, tokens_request(5, conversation="c"))
            await until(lambda number=number: len(control.generates()) == number)
            heads.append(control.generates()[-1][0])
            if number == 1:
                service.tokens(Tokens(updates=(Update(number, (20,), "length"),)))
                await client.task
        assert len(set(heads)) == 1
        for member in control.members.values():
            member.num_assigned += 5 if member.name == heads[0] else 0
        Client(service, tokens_request(5, conversation="c"))
        await until(lambda: len(control.generates()) == 4)
        assert control.generates()[-1][0] != heads[0]

    asyncio.run(play())


def test_adaptive_use_follows_the_measured_range_in_both_modes(prompts):
    async def play():
        control = FakeControl()
        service = service_of(prompts, control)
        service._measured_use = MeasuredUse(
            machine="m", prompt_tokens=8, single_device=PayingRange(first=20), distributed=PayingRange(first=40)
        )
        asked = [("single-device-cached", 19), ("single-device-cached", 20), ("distributed-cached", 39)]
        asked.append(("distributed-cached", 40))
        for number, (strategy, max_tokens) in enumerate(asked, 1):
            client = Client(service, tokens_request(5, strategy=strategy, max_tokens=max_tokens))
            await until(lambda number=number: len(control.generates()) == number)
            service.tokens(Tokens(updates=(Update(number, (20,), "length"),)))
            await client.task
            assert ("does not pay" in client.events[0].reason) == (max_tokens in (19, 39))
        assert [message.cached for _, message in control.generates()] == [False, True, False, True]

    asyncio.run(play())
