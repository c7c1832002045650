"""A desk that is not there: four machines with eight workers and the cables between them, which answer up to 64 requests at once.

What the dashboard shows of it is worked out from the time alone, in the feed's shapes: the same seed plays the same desk. Steps
come from a small simulation of a pipeline, so that what is drawn has the gaps and the diagonals of a real one.
"""

import math
import random
from collections import deque
from collections.abc import Iterator
from typing import Any

GB = 1_000_000_000
NUM_LAYERS = 80
LAYER_BYTES = 488_000_000

# name, chip, OS, memory in GB, layers of its two workers, what a layer takes of one batch in milliseconds
MACHINES = (
    ("studio", "Apple M3 Ultra", "macOS 26.1", 256, (16, 16), 0.30),
    ("macbook", "Apple M4 Max", "macOS 26.1", 64, (11, 11), 0.42),
    ("mini-1", "Apple M4 Pro", "macOS 26.0", 48, (8, 8), 0.56),
    ("mini-2", "Apple M2 Pro", "macOS 15.7", 32, (5, 5), 0.90),
)
# from, to, interface, kind, round trip in microseconds, GB a second, warning
CABLES = (
    ("studio", "macbook", "bridge0", "thunderbolt", 62, 4.6, None),
    ("studio", "mini-1", "en0", "ethernet", 210, 1.17, None),
    ("studio", "mini-2", "en0", "ethernet", 248, 1.16, None),
    ("macbook", "mini-1", "bridge0", "thunderbolt", 71, 3.9, None),
    ("macbook", "mini-2", "en0", "wifi", 3900, 0.06, "Wi-Fi is in use; a cable between the two would be faster"),
    ("mini-1", "mini-2", "en0", "ethernet", 232, 1.17, None),
)
PIPELINE = [f"{name}-{part}" for name, *_ in MACHINES for part in (1, 2)]
KEYS = ("ada", "grace", None, "agent")
CACHED = "distributed-cached"
MODEL = "mlx-community/Llama-3.3-70B-Instruct-4bit"
# What a strategy was compared with, and how many times as long that would have taken.
OTHERS = {
    CACHED: ("single-device-cached", 1.57),
    "single-device-cached": (CACHED, 1.12),
    "distributed-no-cache": ("single-device-cached", 1.31),
}


def reason(strategy: str, total_s: float) -> str:
    """As the policy `measured` gives it."""
    other, times = OTHERS.get(strategy, (CACHED, 1.4))
    return f"{strategy} is predicted to take {total_s:.1f} s, {other} {total_s * times:.1f} s"


def worker_status(index: int, lost: frozenset[str], now: float) -> dict[str, Any]:
    host, _, _, memory_gb, layers, _ = MACHINES[index // 2]
    name = PIPELINE[index]
    first = sum(sum(machine[4]) for machine in MACHINES[: index // 2]) + layers[0] * (index % 2)
    there = name not in lost
    full = host == "studio"
    limit = int(memory_gb * GB * 0.75 / 2)
    weights = LAYER_BYTES * (NUM_LAYERS if full else layers[index % 2])
    room = limit - weights
    wave = 0.5 + 0.1 * math.sin(now / 7 + index)
    return {
        "name": name,
        "host": host if index > 1 else "local",
        "pid": 4100 + index,
        "state": "ready" if there else "lost",
        "why_away": None if there else "its process ended",
        "layers": [first, first + layers[index % 2]] if there else None,
        "holds_full_model": full and there,
        "memory": {
            "limit_bytes": limit,
            "weights_bytes": weights if there else 0,
            "read_bytes": weights if there else 0,
            "kv_bytes": int(room * 0.42 * wave) if there else 0,
        },
        "cache": {
            "kv_budget_bytes": int(room * 0.6),
            "prefix_budget_bytes": int(room * 0.25),
            "prefix_bytes": int(room * 0.19) if there else 0,
            "shared_bytes": int(room * 0.05) if there else 0,
            "disk_bytes": 6 * GB,
        },
        "load": {
            "busy_share": round(min(0.97, 0.62 + 0.3 * wave - 0.04 * index), 3) if there else 0.0,
            "steps_per_s": 81.0 if there else 0.0,
            "batch_size": 8.0,
            "queue": 1,
        },
        "oldest_step_s": 0.01 if there else None,
        "link": None,
        "speed": {"stage": {"decode_tokens_per_s": 190.5, "prefill_tokens_per_s": 2210.0}, "full_model": None},
    }


def outlook() -> dict[str, Any]:
    """Of a plan that nobody is missing in."""
    figures = (
        (CACHED, PIPELINE, 4120.0, 24.6),
        ("tensor-parallel", PIPELINE[:2], 1380.0, 21.9),
        ("single-device-cached", PIPELINE[:1], 912.0, 14.2),
    )
    return {
        "prompt_tokens": 1024,
        "max_tokens": 128,
        "strategies": [],
        "routes": [
            {"strategy": strategy, "workers": workers, "prefill_tokens_per_s": reads, "decode_tokens_per_s": generates}
            for strategy, workers, reads, generates in figures
        ],
    }


def host_statuses() -> list[dict[str, Any]]:
    return [
        {
            "name": name if index else "local",
            "address": f"10.0.0.{index + 1}",
            "chip": chip,
            "os": system,
            "versions": {"python": "3.12.8", "mlx": "0.32.4", "mlx-lm": "0.32.2"},
            "memory_bytes": memory_gb * GB,
            "clock_ahead_s": 0.0,
            "workers": [f"{name}-1", f"{name}-2"],
        }
        for index, (name, chip, system, memory_gb, *_) in enumerate(MACHINES)
    ]


def link_statuses(lost: frozenset[str]) -> list[dict[str, Any]]:
    """Every way between workers of different hosts; where there is a faster cable, Wi-Fi stands by."""
    found = []
    for one, other, interface, kind, trip, speed, warning in CABLES:
        for sender, receiver in [(one, other), (other, one)]:
            for a in (1, 2):
                for b in (1, 2):
                    if {f"{sender}-{a}", f"{receiver}-{b}"} & lost:
                        continue
                    way = {"from": f"{sender}-{a}", "to": f"{receiver}-{b}", "address": "10.0.0.9"}
                    used = {"interface": interface, "kind": kind, "round_trip_us": trip + a, "in_use": True}
                    found.append(way | used | {"bytes_per_s": int(speed * GB), "warning": warning})
                    if kind == "thunderbolt":
                        spare = {"interface": "en0", "kind": "ethernet", "round_trip_us": 240, "in_use": False}
                        found.append(way | spare | {"bytes_per_s": int(1.1 * GB), "warning": None})
    return found


class Traffic:
    """Requests that come, run and end, moved on by `at`."""

    def __init__(self, num_streams: int, seed: int, now: float) -> None:
        self._random = random.Random(seed)
        self._num_streams = num_streams
        self._number = 4200
        self.ended: deque[dict[str, Any]] = deque(maxlen=50)
        self.live: list[dict[str, Any]] = []
        self._at = now - 40
        self.at(now)

    def at(self, now: float) -> list[dict[str, Any]]:
        """Moves on; returns those that ended meanwhile."""
        just: list[dict[str, Any]] = []
        while self._at < now:
            self._at = min(self._at + 0.5, now)
            just += self._moved(self._at)
            while len(self.live) < self._num_streams + 3:
                self.live.append(self._new(self._at))
        self.ended.extend(just)
        return just

    def cancel(self, request: str) -> bool:
        for live in self.live:
            if live["id"] == request:
                live["stop"] = True
                return True
        return False

    def _new(self, at: float) -> dict[str, Any]:
        self._number += 1
        pick = self._random.random()
        strategy = CACHED if pick < 0.86 else "single-device-cached" if pick < 0.95 else "distributed-no-cache"
        prompt = 38 if strategy == "distributed-no-cache" else self._random.choice([212, 640, 1804, 5210, 12050])
        length = 40 if strategy == "distributed-no-cache" else self._random.choice([128, 256, 512, 1024])
        cached = int(prompt * self._random.choice([0, 0, 0.4, 0.9]))
        ttft_s = 0.2 + (prompt - cached) / 4000
        total_s = ttft_s + length / 13.5
        return {
            "id": f"r{self._number}",
            "state": "waiting",
            "strategy": strategy,
            "reason": reason(strategy, total_s),
            "workers": ["studio-1"] if strategy == "single-device-cached" else list(PIPELINE),
            "key": self._random.choice(KEYS),
            "arrived_at": at,
            "prompt_tokens": prompt,
            "cached_tokens": cached,
            "completion_tokens": 0,
            "max_tokens": length,
            "ttft_s": None,
            "tokens_per_s": None,
            "predicted": {"ttft_s": round(ttft_s, 3), "total_s": round(total_s, 2)},
            "total_s": None,
            "resumed": int(self._random.random() < 0.06),
            "finish_reason": None,
            "waits_for": "a place among those that run",
            "speed": self._random.uniform(11, 17),
            "begins_s": ttft_s * self._random.uniform(0.85, 1.25),
            "ends_at": int(length * self._random.uniform(0.3, 1.3)),
        }

    def _moved(self, at: float) -> list[dict[str, Any]]:
        ended = []
        running = sum(live["state"] == "running" for live in self.live)
        for live in list(self.live):
            age = at - live["arrived_at"]
            if live["state"] == "waiting" and running < self._num_streams:
                live |= {"state": "running", "waits_for": None}
                running += 1
            if live["state"] == "running" and age > live["begins_s"]:
                live["ttft_s"] = round(live["begins_s"], 3)
                live["tokens_per_s"] = round(live["speed"], 1)
                live["completion_tokens"] = 1 + int((age - live["ttft_s"]) * live["speed"])
            most = min(live["ends_at"], live["max_tokens"])
            if live.get("stop") or live["completion_tokens"] >= most:
                self.live.remove(live)
                live["completion_tokens"] = min(live["completion_tokens"], most)
                full = live["completion_tokens"] == live["max_tokens"]
                live["state"] = "cancelled" if live.get("stop") else "finished"
                live |= {"total_s": round(age, 2), "finish_reason": "length" if full else "stop", "ended_at": at}
                ended.append(live)
        return ended

    @staticmethod
    def shown(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {name: live[name] for name in live if name not in ("speed", "begins_s", "ends_at", "stop")}
            for live in requests
        ]


class Steps:
    """What each worker computed, up to a time: batches go round through all stages, chunks of prompts between them."""

    def __init__(self, now: float, seed: int) -> None:
        self._random = random.Random(seed)
        self._number = 0
        self._free = [now] * len(PIPELINE)
        self._ready = [now] * 8
        self._made: deque[tuple[int, dict[str, Any]]] = deque()

    def until(self, now: float, requests: list[str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """For each worker the steps that ended before `now` and were not told yet."""
        while min(self._ready) < now:
            self._step(requests)
        done = [each for each in self._made if each[1]["at"] + each[1]["s"] <= now]
        self._made = deque(each for each in self._made if each[1]["at"] + each[1]["s"] > now)
        for index, name in enumerate(PIPELINE):
            if steps := [step for stage, step in done if stage == index]:
                yield name, steps

    def _step(self, requests: list[str]) -> None:
        group = self._ready.index(min(self._ready))
        ids = requests[group::8]
        self._number += 1
        dice = self._random.random()
        kind = "prefill" if dice < 0.06 else "recompute" if dice < 0.09 else "decode"
        tokens, weight = {"prefill": (256, 2.2), "recompute": (52, 1.3), "decode": (max(len(ids), 1), 1.0)}[kind]
        if kind != "decode":
            ids = ids[:1]
        at, length = self._ready[group], 0.0
        for stage in range(len(PIPELINE)):
            _, _, _, _, layers, ms = MACHINES[stage // 2]
            length = layers[stage % 2] * ms / 1000 * weight * self._random.uniform(0.94, 1.1)
            at = max(at, self._free[stage])
            step = {
                "n": self._number,
                "route": ">".join(PIPELINE),
                "kind": kind,
                "at": round(at, 5),
                "s": round(length, 5),
            }
            self._made.append((stage, step | {"tokens": tokens, "requests": ids, "bytes": 16_384 * tokens}))
            self._free[stage] = at + length
            at += length + 0.0004
        self._ready[group] = at + 0.001


class Desk:
    """See the module. lost: workers that are not there; is_starting: nobody has joined yet."""

    def __init__(self, now: float, *, num_streams: int = 64, seed: int = 7) -> None:
        self._began = now
        self.lost: frozenset[str] = frozenset()
        self.is_starting = False
        self.traffic = Traffic(num_streams, seed, now)
        self.steps = Steps(now, seed)
        self._events = [
            {"at": now - 2710.2, "what": "joined mini-2-1"},
            {"at": now - 2709.8, "what": "joined mini-2-2"},
            {"at": now - 2698.0, "what": "replanned, epoch 4: 8 workers hold 80 layers"},
            {"at": now - 1324.5, "what": "lost macbook-2: its process ended"},
            {"at": now - 1323.9, "what": "replanned, epoch 5: 7 workers hold 80 layers"},
            {"at": now - 1323.7, "what": "resumed 58 requests"},
            {"at": now - 1301.1, "what": "joined macbook-2"},
            {"at": now - 1288.4, "what": "replanned, epoch 6: 8 workers hold 80 layers"},
        ]

    def lose(self, worker: str, now: float) -> None:
        self.lost |= {worker}
        self._events.append({"at": now, "what": f"lost {worker}: its process ended"})

    def status(self, now: float) -> dict[str, Any]:
        if self.is_starting:
            return self._starting()
        live = self.traffic.live
        running = sum(each["state"] == "running" for each in live)
        return self._shown(
            state="degraded" if self.lost else "ready",
            epoch=4294967302 + len(self.lost),
            model={
                "id": MODEL,
                "layers": NUM_LAYERS,
                "bytes": NUM_LAYERS * LAYER_BYTES,
                "context_tokens": 131072,
                "has_chat_template": True,
            },
            workers=[worker_status(index, self.lost, now) for index in range(len(PIPELINE))],
            hosts=host_statuses(),
            links=link_statuses(self.lost),
            predicted=None if self.lost else outlook(),
            requests={
                "running": running,
                "waiting": len(live) - running,
                "finished": 4136,
                "failed": 2,
                "resumed": 58,
            },
            cache={"prompt_tokens": 9_412_300, "cached_tokens": 3_801_220, "hit_rate": 0.404},
            events=self._events,
        )

    @staticmethod
    def _shown(**found: Any) -> dict[str, Any]:
        """As GET /status says it, with nothing where nothing is given."""
        nothing = {
            "api": "http://127.0.0.1:8420",
            "mode": "auto",
            "policy": "measured",
            "predicted": None,
            "coordinator": {"pid": 4099},
            "hosts": [],
            "links": [],
            "requests": {"running": 0, "waiting": 0, "finished": 0, "failed": 0, "resumed": 0},
            "cache": {"prompt_tokens": 0, "cached_tokens": 0, "hit_rate": 0.0},
            "events": [],
        }
        return nothing | found

    def _starting(self) -> dict[str, Any]:
        nothing = {"layers": None, "pid": None, "state": "joining", "holds_full_model": False, "speed": None}
        workers = [worker_status(index, frozenset(PIPELINE), 0) | nothing for index in range(len(PIPELINE))]
        model = {"id": MODEL, "layers": None, "bytes": None, "context_tokens": None, "has_chat_template": True}
        return self._shown(state="starting", epoch=0, model=model, workers=workers)

    def point(self, at: float) -> dict[str, Any]:
        """Five seconds of the last hour: a quiet beginning, two busy spells, a loss."""
        x = at - self._began
        noise = random.Random(int(at / 5))
        busy = 0.35 + 0.3 * math.sin(x / 420) + 0.2 * math.sin(x / 97 + 1) + noise.uniform(-0.04, 0.04)
        busy = min(max(busy + (0.25 if x > -900 else 0), 0.0), 1.0)
        lost = -1330 < x < -1300
        quiet = busy < 0.06
        ttft = 0.32 + 0.9 * busy**2 + (2.1 if lost else 0) + noise.uniform(0, 0.08)
        gap = 0.052 + 0.02 * busy + (0.2 if lost else 0) + noise.uniform(0, 0.004)
        return {
            "at": at,
            "tokens_per_s": 0.0 if quiet else round(830 * busy * (0.1 if lost else 1), 1),
            "prompt_tokens_per_s": 0.0 if quiet else round(3900 * busy * noise.uniform(0.6, 1.2), 1),
            "running": 0 if quiet else int(64 * busy),
            "waiting": max(0, int(80 * busy - 58)),
            "finished": int(9 * busy),
            "failed": int(lost and noise.random() < 0.3),
            "ttft_p50_s": None if quiet else round(ttft, 4),
            "ttft_p99_s": None if quiet else round(ttft * (2.1 + noise.uniform(0, 0.7)), 4),
            "gap_p50_s": None if quiet else round(gap, 4),
            "gap_p99_s": None if quiet else round(gap * (1.8 + noise.uniform(0, 0.9)), 4),
            "hit_rate": None if quiet else round(min(0.95, max(0.0, 0.42 + 0.3 * math.sin(x / 610))), 3),
        }

    def history(self, now: float) -> list[dict[str, Any]]:
        last = now - now % 5
        return [self.point(last - 5 * back) for back in range(719, -1, -1)]

    @staticmethod
    def findings() -> list[dict[str, Any]]:
        return [
            {"level": "ok", "what": "All hosts run the same versions of Python, mlx and mlx-lm.", "do": None},
            {"level": "ok", "what": "The clocks of all hosts agree within 0.1 s.", "do": None},
            {
                "level": "warning",
                "what": "macbook and mini-2 talk over Wi-Fi at 60 MB/s.",
                "do": "Join them by a cable, or leave Wi-Fi out with [links] exclude.",
            },
        ]

    @staticmethod
    def log_lines(now: float) -> list[str]:
        return [
            f"2026-11-30 22:{40 + index // 6:02}:{index * 9 % 60:02} INFO coordinator r{4100 + index} "
            f"ran as {CACHED} on 8 workers: 1804 prompt tokens, 256 generated, first after 0.71 s"
            for index in range(60)
        ]
