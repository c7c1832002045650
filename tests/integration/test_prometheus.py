"""Debian's Prometheus reads a running cluster with the configuration that docs/METRICS.md shows, and every panel of the dashboard."""

import json
import re
import shutil
import subprocess
import textwrap
from contextlib import closing

import httpx
import pytest

from tests.support.dashboard import expressions
from tests.support.running_cluster import CHECKOUT, RunningCluster, free_port, wait_until

KEY = "key-of-the-scraper"
PROMPT = list(range(30, 60))
# What only clusters of several hosts have, and what only a loss or a prediction makes.
OFTEN_EMPTY = {"Round trips", "What links can carry", "Error of predictions"}

pytestmark = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="prometheus is not installed (apt: prometheus)",
)


class Prometheus:
    """One that scrapes every second, and its questions."""

    def __init__(self, folder, configuration):
        self.configuration = folder / "prometheus.yml"
        self.configuration.write_text(configuration)
        self._url = f"http://127.0.0.1:{(port := free_port())}/api/v1"
        self._log = (folder / "prometheus.log").open("wb")
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={self.configuration}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=self._log,
            stderr=self._log,
        )

    def close(self):
        self._process.kill()
        self._process.wait()
        self._log.close()

    def target(self):
        """What came of the last scrape, None where there was none yet."""
        try:
            answer = httpx.get(f"{self._url}/targets")
        except httpx.TransportError:
            assert self._process.poll() is None, "prometheus ended"
            return None
        if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:  # it reads what it kept first
            return None
        targets = answer.json()["data"]["activeTargets"]
        return targets[0] if targets and targets[0]["health"] != "unknown" else None

    def ask(self, expression):
        answer = httpx.get(f"{self._url}/query", params={"query": expression}).json()
        assert answer["status"] == "success", (expression, answer)
        return answer["data"]["result"]


@pytest.fixture(scope="module")
def keyed(tiny_model):
    """A cluster with a key that writes its logs as JSON; it has answered by each strategy."""
    with closing(RunningCluster()) as cluster:
        cluster.start(tiny_model, "--log-format", "json", environment={"TANDEM_API_KEY": KEY})
        for strategy in ("single-device-cached", "distributed-cached", "distributed-no-cache"):
            answered(cluster, strategy)
        yield cluster


def answered(cluster, strategy):
    body = {"prompt": PROMPT, "max_tokens": 6, "strategy": strategy}
    headers = {"Authorization": f"Bearer {KEY}", "X-Request-Id": f"by-{strategy}"}
    assert httpx.post(f"{cluster.url}/v1/completions", json=body, headers=headers, timeout=60).status_code == 200


def shown_configuration(cluster, key=KEY):
    """What the page says, for this cluster, a little faster."""
    page = (CHECKOUT / "docs" / "METRICS.md").read_text("utf-8")
    shown = textwrap.dedent(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
    assert "127.0.0.1:8420" in shown
    return shown.replace("127.0.0.1:8420", cluster.url.removeprefix("http://")).replace("KEY", key).replace("5s", "1s")


def test_promtool_finds_nothing_to_say(keyed):
    text = httpx.get(f"{keyed.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_prometheus_reads_the_cluster_and_answers_every_panel(keyed, tmp_path):
    with closing(Prometheus(tmp_path, shown_configuration(keyed))) as prometheus:
        checked = subprocess.run(
            ["promtool", "check", "config", prometheus.configuration], capture_output=True, timeout=60, check=False
        )
        assert checked.returncode == 0, checked.stderr
        assert wait_until(prometheus.target, "a scrape")["health"] == "up", prometheus.target()
        wait_until(lambda: prometheus.ask("count_over_time(tandem_up[1m]) >= 2"), "a second scrape")
        answered(keyed, "distributed-cached")
        grown = 'increase(tandem_generation_tokens_total{strategy="distributed-cached"}[1m]) > 0'
        wait_until(lambda: prometheus.ask(grown), "the answer's tokens")
        assert [each["value"][1] for each in prometheus.ask("tandem_up")] == ["1"]
        found = {panel: [prometheus.ask(each) for each in asked] for panel, asked in expressions().items()}
    empty = {panel for panel, results in found.items() if not all(results)}
    assert empty <= OFTEN_EMPTY


def test_prometheus_without_the_key_is_refused(keyed, tmp_path):
    with closing(Prometheus(tmp_path, shown_configuration(keyed, "another"))) as prometheus:
        target = wait_until(prometheus.target, "a scrape")
    assert (target["health"], "401" in target["lastError"]) == ("down", True)


def test_every_process_writes_its_log_as_json_and_logs_shows_it_as_text(keyed):
    files = {file.stem: file for file in (keyed.home / "logs").glob("*.log")}
    assert set(files) == {"coordinator", "supervisor", "worker-0", "worker-1"}
    lines = {name: list(map(json.loads, file.read_text("utf-8").splitlines())) for name, file in files.items()}
    assert all(each.keys() >= {"time", "level", "logger", "message"} for found in lines.values() for each in found)
    (request,) = [each for each in lines["coordinator"] if each.get("request_id") == "by-single-device-cached"]
    assert (request["status"], request["prompt_tokens"], request["completion_tokens"]) == (200, len(PROMPT), 6)
    shown = keyed.command("logs", "coordinator", "-n", "1000").stdout
    assert "INFO cluster.api.request_log: request by-single-device-cached from=127.0.0.1 " in shown
    assert '{"' not in shown
