"""What a cluster tells Prometheus, beside what it just did."""

import asyncio
import re

from prometheus_client.parser import text_string_to_metric_families

from tests.support.dashboard import expressions, names_in
from tests.support.in_process.asked import COUNT, PROMPT
from tests.support.running_cluster import CHECKOUT

PAIR = ("alpha", "beta")


async def families(cluster):
    """What there is: the kind of each by its name, as documents and questions name it."""
    text = await cluster.client.text("/metrics")
    kinds = {family.name: family.type for family in text_string_to_metric_families(text)}
    return {f"{name}_total" if kind == "counter" else name: kind for name, kind in kinds.items()}


async def samples(cluster):
    """By name and labels."""
    text = await cluster.client.text("/metrics")
    return {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
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
        assert after["tandem_requests_total", "length", "distributed-cached"] == 1
        assert after["tandem_prompt_tokens_total",] - before["tandem_prompt_tokens_total",] == 2 * len(PROMPT)
        for name, value in (
            ("tandem_generation_tokens_total", COUNT),
            ("tandem_request_queue_time_seconds_count", 1),
            ("tandem_time_to_first_token_seconds_count", 1),
            ("tandem_e2e_request_latency_seconds_count", 1),
            ("tandem_inter_token_latency_seconds_count", COUNT - 1),
            ("tandem_request_prompt_tokens_sum", len(PROMPT)),
            ("tandem_request_generation_tokens_sum", COUNT),
        ):
            assert after[name, "distributed-cached"] == after[name, "single-device-cached"] == value, name
        assert after["tandem_request_prompt_tokens_bucket", "+Inf", "distributed-cached"] == 1

    workshop.run(scenario, *PAIR)


def test_what_crosses_a_link_is_counted(workshop):
    async def scenario(cluster):
        await cluster.client.answer(PROMPT, COUNT, strategy="distributed-cached")
        await asyncio.sleep(2)  # of virtual time: heartbeats say what was sent
        before = await samples(cluster)
        await cluster.client.answer(PROMPT, COUNT, strategy="distributed-cached")
        await asyncio.sleep(2)
        after = await samples(cluster)
        for names in ("alpha", "beta"), ("alpha", "coordinator"), ("beta", "alpha"):
            name = ("tandem_link_sent_bytes_total", *names)
            assert after[name] > before[name] > COUNT
        sent = cluster.engine("alpha")._links.sent_bytes["beta"]
        assert after["tandem_link_sent_bytes_total", "alpha", "beta"] == sent

    workshop.run(scenario, *PAIR)


def test_a_lost_worker_shows_and_a_request_that_goes_on_is_a_recovery(workshop):
    async def scenario(cluster):
        reply = cluster.client.ask(PROMPT, COUNT, strategy="distributed-cached")
        cluster.worker("beta").at_launch(5, lambda: cluster.kill("beta"))
        await reply.whole()
        found = await samples(cluster)
        assert found["tandem_recoveries_total", "worker"] == 1
        assert found["tandem_recoveries_total", "link"] == found["tandem_recoveries_total", "plan"] == 0
        assert found["tandem_plans_total",] >= 2
        assert found["tandem_worker_up", "alpha"] == 1
        assert found["tandem_worker_memory_limit_bytes", "alpha"] > found["tandem_worker_weights_bytes", "alpha"] > 0

    workshop.run(scenario, *PAIR)


def test_documentation_lists_every_metric_with_its_kind_and_labels(workshop):
    async def scenario(cluster):
        await cluster.client.answer(PROMPT, COUNT, strategy="distributed-cached")
        await asyncio.sleep(2)
        page = (CHECKOUT / "docs" / "METRICS.md").read_text("utf-8")
        rows = re.findall(r"^\| `(\w+)` \| (\w+)[^|]*\| ([^|]*)\|", page, re.MULTILINE)
        assert {name: kind for name, kind, _ in rows} == await families(cluster)
        documented = {name: set(re.findall(r"`(\w+)`", labels)) for name, _, labels in rows}
        text = await cluster.client.text("/metrics")
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                name = sample.name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
                assert set(sample.labels) - {"le"} == documented[name], sample

    workshop.run(scenario, *PAIR)


def test_dashboard_asks_for_metrics_that_there_are_and_for_all_of_them(workshop):
    async def scenario(cluster):
        asked = {name for panel in expressions().values() for expression in panel for name in names_in(expression)}
        found = await families(cluster)
        kinds = {f"{name}_bucket" if kind == "histogram" else name for name, kind in found.items()}
        assert asked == kinds

    workshop.run(scenario, *PAIR)


def test_who_leaves_early_is_told_apart(workshop):
    async def scenario(cluster):
        reply = cluster.client.ask(PROMPT, 64)
        cluster.worker("alpha").at_launch(5, reply.task.cancel)
        await asyncio.wait([reply.task])
        found = await samples(cluster)
        assert found["tandem_requests_total", "cancelled", "single-device-cached"] == 1

    workshop.run(scenario, *PAIR)
