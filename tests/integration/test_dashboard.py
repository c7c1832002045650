"""The dashboard of a cluster that runs, with the bundled model and a key, in a browser."""

import os
import re
import signal
from contextlib import closing

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.integration.test_bundled import KV_CACHE
from tests.support.running_cluster import RunningCluster, wait_until

KEY = "a-key-of-this-test"
HEADERS = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def guarded():
    """The default cluster, for those who have the key."""
    with closing(RunningCluster(compiles=True)) as cluster:
        started = cluster.command("start", "--port", str(cluster.port), environment={"TANDEM_API_KEY": KEY})
        assert started.returncode == 0, started.stderr + cluster.logs()
        yield cluster


def status(cluster: RunningCluster) -> dict:
    return httpx.get(f"{cluster.url}/status", headers=HEADERS, timeout=10).json()


def unlock(page: Page) -> Page:
    page.get_by_role("button", name="Enter key").click()
    page.get_by_label("Key", exact=True).fill(KEY)
    page.get_by_role("button", name="Use key").click()
    expect(page.get_by_role("button", name="Key in use")).to_be_visible()
    return page


def test_visitor_without_a_key_sees_the_cluster_and_may_do_nothing(guarded, visit):
    page = visit(guarded.url)
    rows = page.get_by_role("table", name="Layers and memory of each worker").get_by_role("row")
    expect(rows).to_have_count(3)
    expect(rows.nth(1)).to_contain_text("0\N{EN DASH}3 and the whole model")
    expect(rows.nth(2)).to_contain_text("4\N{EN DASH}7 and the whole model")
    expect(page.locator("#state")).to_have_text("ready")
    page.get_by_role("link", name="Chat").click()
    expect(page.get_by_text("Enter the key of this cluster to chat with it.")).to_be_visible()


def test_chat_is_answered_and_is_seen_among_requests_and_in_the_charts(guarded, visit):
    page = unlock(visit(f"{guarded.url}/#chat"))
    page.get_by_label("Strategy").select_option("distributed-cached")
    page.get_by_label("Message").fill("What is a KV cache?")
    page.get_by_label("Message").press("Enter")
    answer = page.get_by_role("article", name="Answer")
    expect(answer.locator("footer")).to_contain_text("44 tokens", timeout=120_000)
    expect(answer).to_contain_text(KV_CACHE["answer"])
    expect(answer.locator("footer")).to_contain_text("distributed-cached")
    expect(answer.locator("footer")).to_contain_text("worker-0 → worker-1")
    page.get_by_role("link", name="Timeline").click()
    for _ in range(3):  # on a busy machine the first span may be over before it is looked at
        page.get_by_role("button", name="Longer span").click()
    page.get_by_text("The span that is shown as a table").click()
    did = page.get_by_role("table", name="What each worker did")
    expect(did.get_by_role("row", name="worker-1").get_by_role("cell").last).not_to_have_text("0")
    page.get_by_role("link", name="Chat").click()
    answer.get_by_role("button", name="Why this way?").click()
    expect(answer.get_by_role("row", name="single-device-cached")).to_contain_text("yes")
    page.get_by_role("link", name="Requests").click()
    ended = page.get_by_role("table", name="Requests that ended").get_by_role("row")
    expect(ended.filter(has_text="distributed-cached").filter(has_text="finished").first).to_be_visible()
    page.get_by_role("link", name="Charts").click()
    line = page.get_by_role("slider", name="Time to the first token").locator("path.line").first
    expect(line).to_have_attribute("d", re.compile(r"^M"))


def test_journal_has_findings_and_logs(guarded, visit):
    page = unlock(visit(f"{guarded.url}/#journal"))
    expect(page.locator("#view-journal .findings li").first).to_be_visible()
    expect(page.get_by_role("log", name="Log lines")).to_contain_text("worker-0")


def test_request_is_cancelled_and_its_client_is_told(guarded, visit):
    page = unlock(visit(f"{guarded.url}/#requests"))
    body = {"prompt": "one two", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{guarded.url}/v1/completions", json=body, headers=HEADERS, timeout=60) as answer:
        page.get_by_role("button", name="Cancel request").click()
        told = answer.read().decode()
    assert "cancelled" in told
    ended = page.get_by_role("table", name="Requests that ended").get_by_role("row")
    expect(ended.filter(has_text="cancelled")).to_have_count(1)


def test_killed_worker_is_seen_within_two_seconds_of_being_lost(guarded, visit):
    page = visit(guarded.url)
    lost = page.get_by_role("listitem").filter(has_text="Lost worker-1")
    expect(page.get_by_role("listitem").filter(has_text="Joined worker-1")).to_be_visible()
    (pid,) = [worker["pid"] for worker in status(guarded)["workers"] if worker["name"] == "worker-1"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: any("lost worker-1" in event["what"] for event in status(guarded)["events"]), "the loss")
    expect(lost.first).to_be_visible(timeout=2000)
