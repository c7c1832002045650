"""What a cluster tells Prometheus, beside what it just did."""

import asyncio

from prometheus_client.parser import text_string_to_metric_families

from tests.support.in_process.asked import COUNT, PROMPT

PAIR = ("alpha", "beta")


async def samples(cluster):
    """By name and labels."""
    text = await cluster.client.text("/metrics")
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_requests_tokens_and_times_are_counted(workshop):
    async def scenario(cluster):
        before = await samples(cluster)
        for strategy in ("single-device-cached", "distributed-cached"):
            await cluster.client.answer(PROMPT, COUNT, strategy=strategy)
        after = await samples(cluster)
        assert after["tandem_requests_total", "length", "single-device-cached"] == 1
        assert after["tandem_requests_total", "distributed-cached", "length"] == 1
        for name, grown in (
            ("tandem_generation_tokens_total", 2 * COUNT),
            ("tandem_prompt_tokens_total", 2 * len(PROMPT)),
            ("tandem_time_to_first_token_seconds_count", 2),
            ("tandem_e2e_request_latency_seconds_count", 2),
            ("tandem_inter_token_latency_seconds_count", 2 * (COUNT - 1)),
        ):
            assert after[name,] - before[name,] == grown, name

    workshop.run(scenario, *PAIR)


def test_a_lost_worker_shows_and_a_request_that_goes_on_is_a_recovery(workshop):
    async def scenario(cluster):
        reply = cluster.client.ask(PROMPT, COUNT, strategy="distributed-cached")
        cluster.worker("beta").at_launch(5, lambda: cluster.kill("beta"))
        await reply.whole()
        found = await samples(cluster)
        assert found["tandem_recoveries_total",] == 1
        assert found["tandem_plans_total",] >= 2
        assert found["tandem_worker_up", "alpha"] == 1
        assert found["tandem_worker_memory_limit_bytes", "alpha"] > found["tandem_worker_weights_bytes", "alpha"] > 0

    workshop.run(scenario, *PAIR)


def test_who_leaves_early_is_told_apart(workshop):
    async def scenario(cluster):
        reply = cluster.client.ask(PROMPT, 64)
        cluster.worker("alpha").at_launch(5, reply.task.cancel)
        await asyncio.wait([reply.task])
        found = await samples(cluster)
        assert found["tandem_requests_total", "cancelled", "single-device-cached"] == 1

    workshop.run(scenario, *PAIR)
