"""Three hosts with other users, paths and homes are one cluster: joined by tokens, over cables, through what breaks."""

import itertools
import json

import pytest
from mlx_lm.utils import load_tokenizer

from tests.hosts.cluster import FIRST, HostsCluster
from tests.support.running_cluster import CHECKOUT, wait_until

MODEL = CHECKOUT / "models" / "tandem-demo"
PROMPT = "Tell me a long story about a fox."
NUM_TOKENS, LONG = 60, 200
HOSTS = {"local": "a", "host-b": "b", "host-c": "c"}


@pytest.fixture(scope="module")
def cluster(bed):
    """Host b knows the first one by its address in the wifi, host c by that of their cable. It ends with its hosts."""
    cluster = HostsCluster(bed)
    cluster.start()
    cluster.alone = cluster.prompt(PROMPT, NUM_TOKENS)["token_ids"]
    cluster.invite("b")
    cluster.invite("c", interface="tb-c")
    cluster.await_parts(3)
    cluster.end_tokens = load_tokenizer(MODEL).eos_token_ids
    cluster.long_text, _ = disturbed(cluster, lambda: None)
    return cluster


@pytest.fixture
def whole(cluster, bed):
    """All three hosts have layers, and no cable has a fault afterwards."""
    cluster.await_parts(3)
    yield cluster
    bed.heal()


def stream(cluster):
    """A long answer, as a process whose standard output is its events."""
    return cluster.ask(
        prompt=PROMPT,
        max_tokens=LONG,
        stream=True,
        stream_options={"include_usage": True},
        logit_bias=dict.fromkeys(map(str, cluster.end_tokens), -100),
    )


def disturbed(cluster, disturb):
    """The text of an answer, and how often it went on after a loss; `disturb` is called once it has begun."""
    with stream(cluster) as running:
        lines = [running.stdout.readline() for _ in range(20)]
        disturb()
        lines += running.stdout.readlines()
    pieces = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert not [piece for piece in pieces if "error" in piece]
    text = "".join(piece["choices"][0]["text"] for piece in pieces if piece["choices"])
    return text, pieces[-1]["tandem"].get("resumed", 0)


def test_status_names_three_hosts_and_their_links(whole):
    whole.await_cables()
    status = whole.status()
    assert {host["name"] for host in status["hosts"]} == {"local", "host-b", "host-c"}
    assert sorted(worker["host"] for worker in status["workers"]) == ["host-b", "host-c", "local"]
    assert all(host["memory_bytes"] and host["versions"]["mlx"] for host in status["hosts"])
    pairs = {(link["from"], link["to"]) for link in status["links"]}
    assert len(pairs) == 6
    for pair in pairs:
        ways = {link["interface"]: link for link in status["links"] if (link["from"], link["to"]) == pair}
        used = [name for name, link in ways.items() if link["in_use"]]
        assert len(used) == 1
        assert ways[used[0]]["round_trip_us"] < ways["wlan0"]["round_trip_us"]


def test_all_hosts_answer_together_with_the_ids_of_one_and_hidden_states_take_the_cables(whole):
    whole.await_cables()

    def takes_the_cables():
        """Unless the wifi was measured meanwhile, which is seldom."""
        cables, wifi = whole.sent_bytes()
        answer = whole.prompt(PROMPT, NUM_TOKENS, "--strategy", "distributed-cached")
        assert answer["token_ids"] == whole.alone
        assert len(answer["workers"]) == 3
        cables_then, wifi_then = whole.sent_bytes()
        return cables_then - cables > 4 * (wifi_then - wifi)

    wait_until(takes_the_cables, "an answer over the cables")


# In this order: a cable that failed is left alone for half a minute, and a host that comes back finds all of its cables new.


def test_first_host_without_power_comes_back_to_workers_that_kept_their_weights(whole, bed):
    def elsewhere(status):
        """Process and bytes read, of the workers of other hosts."""
        others = [worker for worker in status["workers"] if worker["host"] != "local"]
        return {worker["host"]: (worker["pid"], worker["memory"]["read_bytes"]) for worker in others}

    before = whole.await_cables()  # moving to one is another epoch
    bed.power_cut(FIRST)
    bed.power_on(FIRST)
    whole.start()
    after = whole.await_parts(3)
    assert elsewhere(after) == elsewhere(before), whole.logs()
    assert whole.prompt(PROMPT, NUM_TOKENS, "--strategy", "distributed-cached")["token_ids"] == whole.alone


def test_host_without_power_is_left_and_taken_in_again(whole, bed):
    text, resumed = disturbed(whole, lambda: bed.power_cut("c"))
    assert (text, resumed > 0) == (whole.long_text, True)
    whole.await_status(lambda status: {"local", "host-b"} == hosts_with_layers(status), "the others having its layers")
    bed.power_on("c")
    whole.invite("c", interface="tb-c")
    whole.await_parts(3)
    assert whole.prompt(PROMPT, NUM_TOKENS, "--strategy", "distributed-cached")["token_ids"] == whole.alone


def test_stream_goes_on_over_another_way_when_a_cable_fails(whole, bed):
    status = whole.await_cables()
    in_order = sorted(status["workers"], key=lambda worker: worker["layers"][0])
    ends = itertools.pairwise(HOSTS[worker["host"]] for worker in in_order)
    ours = next(pair for pair in ends if set(pair) != {FIRST, "c"})  # over which no worker reaches the coordinator
    text, resumed = disturbed(whole, lambda: bed.cut(*ours))
    assert (text, resumed > 0) == (whole.long_text, True)


def test_worker_whose_way_to_the_coordinator_fails_finds_another(whole, bed):
    whole.await_status(lambda status: interfaces_between(status, "local", "host-c") == {"tb-a", "tb-c"}, "their cable")
    bed.cut(FIRST, "c")
    whole.await_status(lambda status: "host-c" not in hosts_with_layers(status), "the worker being lost")
    whole.await_parts(3)
    whole.prompt(PROMPT, 5, "--strategy", "distributed-cached")
    whole.await_status(lambda status: interfaces_between(status, "local", "host-c") == {"wlan0"}, "the wifi being used")


def hosts_with_layers(status):
    return {
        worker["host"] for worker in status["workers"] if worker["layers"] is not None and worker["state"] == "ready"
    }


def interfaces_between(status, *hosts):
    """As far as their workers have told which they use since the plan began."""
    names = {worker["name"] for worker in status["workers"] if worker["host"] in hosts}
    links = [link for link in status["links"] if {link["from"], link["to"]} == names]
    return {link["interface"] for link in links if link["in_use"]}
