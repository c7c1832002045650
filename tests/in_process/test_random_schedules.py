"""A minute of whatever may happen, in whatever order: every request ends with exactly its answer, and nothing is left.

Seeded: a schedule that fails can be run again.
"""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass

import pytest

from cluster.settings import RecoverySettings
from tests.support.in_process.asked import STRATEGIES, assert_same, undisturbed
from tests.support.in_process.client import Reply

TRIO = ("alpha", "beta", "gamma")
SECONDS = 60
STEP_S = 0.05
LIMIT_S = 900
GIVEN_UP = "was lost too often while it worked on this request"


@dataclass
class Asked:
    """deaths: of each worker until it was asked, less those until it ended."""

    reply: Reply
    expected: Reply
    deaths: Counter

    def check(self):
        """It ended with its answer, or with the error of one worker that was lost too often meanwhile; True for its answer."""
        if self.reply.error is None or GIVEN_UP not in self.reply.error:
            assert_same(self.reply, self.expected)
            return True
        name = self.reply.error.split()[0].lower()
        assert self.deaths[name] <= -2
        return False


class Schedule:
    """What happens to a cluster and what it is asked meanwhile. weights: how often each, in relation."""

    def __init__(self, cluster, seed, requests, expected):
        self._cluster = cluster
        self._random = random.Random(seed)
        self._requests = requests
        self._expected = expected
        self.asked = []

    def weights(self):
        return {
            self.arrive: 14,
            self.leave: 2,
            self.kill: 2,
            self.stop: 1,
            self.pause: 2,
            self.block: 1,
            self.reset: 3,
            self.lose: 3,
        }

    async def run(self):
        cluster, weights = self._cluster, self.weights()
        end = cluster.now() + SECONDS
        while cluster.now() < end:
            await asyncio.sleep(self._random.expovariate(0.5))
            (event,) = self._random.choices(list(weights), weights.values())
            event()

    def arrive(self):
        index = self._random.randrange(len(self._requests))
        prompt, count, fields = self._requests[index]
        stream = self._random.random() < 0.7
        reply = self._cluster.client.ask(prompt, count, stream=stream, **fields)
        deaths = self._cluster.host.deaths
        asked = Asked(reply, self._expected[index], deaths.copy())
        reply.task.add_done_callback(lambda _: asked.deaths.update({name: -count for name, count in deaths.items()}))
        self.asked.append(asked)

    def leave(self):
        running = [asked.reply.task for asked in self.asked if not asked.reply.task.done()]
        if running:
            self._random.choice(running).cancel()

    def _worker(self):
        """One that does what it should, if there are two."""
        well = [worker for worker in self._cluster.host.workers.values() if not worker.is_stopped | worker.is_blocked]
        return self._random.choice(well) if len(well) > 1 else None

    def _forgive(self, name):
        if self._cluster.control.roster.deaths(name, self._cluster.now()) > 2:
            self._cluster.coordinator.restarts.forgive(name)

    def kill(self):
        if (worker := self._worker()) is not None:
            self._forgive(worker.name)
            self._cluster.kill(worker.name, silently=self._random.random() < 0.5)

    def stop(self):
        if (worker := self._worker()) is not None:
            self._forgive(worker.name)
            self._cluster.stop(worker.name)

    def pause(self):
        if (worker := self._worker()) is not None:
            self._cluster.stop(worker.name)
            asyncio.get_running_loop().call_later(self._random.uniform(0.5, 4), self._resume, worker)

    def _resume(self, worker):
        if self._cluster.host.workers.get(worker.name) is worker:
            self._cluster.go_on(worker.name)

    def block(self):
        if (worker := self._worker()) is not None:
            self._forgive(worker.name)
            worker.block()

    def _link(self):
        there = list(self._cluster.host.workers)
        return self._random.sample(there, 2) if len(there) > 1 else None

    def reset(self):
        """Any link, also one with the coordinator."""
        link = self._link()
        if link is not None:
            owner, name = self._random.choice([link, ("coordinator", link[1]), (link[0], "")])
            self._cluster.reset(owner, name)

    def lose(self):
        """Between workers: the coordinator's own links lose nothing without being reset."""
        if (link := self._link()) is not None:
            self._cluster.lose_next(*link)

    async def ended(self):
        """Everything that was asked and whose client stayed, once it came to its end."""
        tasks = [asked.reply.task for asked in self.asked]
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), LIMIT_S)
        return [asked for asked in self.asked if not asked.reply.task.cancelled()]


def asked_of(seed):
    """Short and long prompts, by every strategy, greedy and sampled."""
    choose = random.Random(seed)
    asked = []
    for index in range(9):
        prompt = tuple(choose.choices(range(5, 320), k=choose.choice([4, 9, 30, 150])))
        fields = {"strategy": STRATEGIES[index % 3], "seed": index}
        if index % 2:
            fields["temperature"] = 0.8
        asked.append((prompt, choose.randint(4, 40), fields))
    return asked


@pytest.mark.parametrize("seed", range(4))
def test_every_request_ends_with_its_answer_whatever_happens(workshop, seed):
    async def scenario(cluster):
        asked = asked_of(seed)
        expected = [await undisturbed(cluster, prompt, count, **fields) for prompt, count, fields in asked]
        schedule = Schedule(cluster, seed, asked, expected)
        cluster.step_s = STEP_S
        await schedule.run()
        cluster.step_s = 0.0
        cluster.forget_faults()
        num_answered = sum(asked.check() for asked in await schedule.ended())
        assert num_answered
        await cluster.whole()
        cluster.assert_at_rest()

    workshop.run(scenario, *TRIO, settings={"recovery": RecoverySettings(wait_s=600)})
