"""Macs that were not measured: what a model takes on one or two of them, scaled from the published rows of one M3 Ultra.

A Mac is its memory bandwidth, its GPU's arithmetic and its memory, as Apple publishes them; what share of the first two a model
reaches comes from `published.py` and is taken to be the same for all. A link is its bandwidth, what it adds to a step and what a
sum takes over it. Predictions, not measurements.
"""

import msgspec

from benchmarks.support.model_shapes import ModelShape
from benchmarks.support.published import BANDWIDTH, STAGE_S, SUM_S, TABLE, Calibrated, calibrated, fit_machine, part_of
from strategy.chunking import ChunkCost
from strategy.cost import RequestWork, RouteCosts, RouteLoad, Times, cached_times, handed_over_times
from strategy.stage_speed import Hop, StageSpeed
from strategy.tensor_cost import SumCost, TensorCosts, tensor_times
from strategy.vocabulary import Route

_M3_ULTRA_FLOPS = 28.4e12
# Of a Mac's memory, what weights may take: three quarters, less what activations and KV need beside them.
_FOR_WEIGHTS = 0.75 / 1.1
_IDLE = RouteLoad()


class Mac(msgspec.Struct, frozen=True):
    """bandwidth: bytes a second; flops: of the whole GPU; memory: bytes."""

    name: str
    bandwidth: float
    flops: float
    memory: float


class Cable(msgspec.Struct, frozen=True):
    """step_s: what it adds to a step of a pipeline or a group; sum_s: of a sum for nothing."""

    name: str
    bytes_per_s: float
    step_s: float
    sum_s: float


MACS = (
    Mac("M1 Max, 64 GB", 400e9, 10.4e12, 64e9),
    Mac("M4 Pro, 64 GB", 273e9, 9.2e12, 64e9),
    Mac("M4 Max, 128 GB", 546e9, 18.4e12, 128e9),
    Mac("M5 Max, 128 GB", 614e9, 3 * 18.4e12, 128e9),
    Mac("M2 Ultra, 192 GB", 800e9, 27.2e12, 192e9),
    Mac("M3 Ultra, 512 GB", BANDWIDTH, _M3_ULTRA_FLOPS, 512e9),
)
CABLES = (
    Cable("Thunderbolt 5, newer sums", 5.3e9, 0.2e-3, 0.031e-3),
    Cable("Thunderbolt 5", 5.3e9, STAGE_S, SUM_S),
    Cable("Thunderbolt 4", 2.2e9, STAGE_S + 0.1e-3, 0.5e-3),
    Cable("10 Gbit/s Ethernet", 1.1e9, STAGE_S + 0.1e-3, 0.5e-3),
    Cable("1 Gbit/s Ethernet", 0.11e9, STAGE_S + 0.3e-3, 0.7e-3),
    Cable("Wi-Fi", 0.05e9, STAGE_S + 3e-3, 3e-3),
)


class Shares(msgspec.Struct, frozen=True, kw_only=True):
    """Of a Mac's bandwidth or arithmetic, what is reached: weights, KV, experts' weights against dense ones; reading a prompt,
    attention within it, experts against dense layers. layer_s: of a layer, whatever its size.
    """

    weights: float
    kv: float
    expert_weights: float
    reading: float
    attention: float
    expert_reading: float
    layer_s: float


def shares() -> Shares:
    """From the rows of one M3 Ultra."""
    machine = fit_machine()
    short = {row.model: row for row in TABLE if row.context == 1024}
    dense, experts = short["Qwen2.5 32B"], short["Mixtral 8x7B"]
    speed = {row.model: calibrated(row, machine).speed for row in short.values()}
    fixed_s = {name: row.shape.num_layers * machine.layer_s for name, row in short.items()}

    def weights(model: str) -> float:
        return short[model].shape.token_bytes / (speed[model].decode[0][1] - fixed_s[model]) / BANDWIDTH

    def reading(model: str) -> float:
        return 2 * short[model].shape.active_weights / speed[model].chunk.token_s / _M3_ULTRA_FLOPS

    kv_s = [speed[row.model].decode_context_s / row.shape.kv_token_bytes for row in (dense, experts)]
    return Shares(
        weights=weights(dense.model),
        kv=2 / sum(kv_s) / BANDWIDTH,
        expert_weights=weights(experts.model) / weights(dense.model),
        reading=reading(dense.model),
        attention=dense.shape.attention_flops / speed[dense.model].chunk_context_s / _M3_ULTRA_FLOPS,
        expert_reading=reading(experts.model) / reading(dense.model),
        layer_s=machine.layer_s,
    )


def on_one(mac: Mac, shape: ModelShape, reached: Shares) -> Calibrated:
    """One Mac with the whole model."""
    bandwidth, flops = mac.bandwidth * reached.weights, mac.flops * reached.reading
    if shape.experts > 1:
        bandwidth, flops = bandwidth * reached.expert_weights, flops * reached.expert_reading
    fixed_s = shape.num_layers * reached.layer_s
    step_s = fixed_s + shape.token_bytes / bandwidth
    token_s = 2 * shape.active_weights / flops
    speed = StageSpeed(
        decode=((1, step_s),),
        decode_context_s=shape.kv_token_bytes / (mac.bandwidth * reached.kv),
        chunk=ChunkCost(fixed_s, token_s),
        chunk_context_s=shape.attention_flops / (mac.flops * reached.attention),
        payload_bytes=shape.payload_bytes,
    )
    return Calibrated(speed, 1 - (fixed_s + shape.head_bytes / bandwidth) / step_s, 1.0)


def fits(mac: Mac, shape: ModelShape, share: float = 1.0) -> bool:
    """Whether this share of a model's weights has room."""
    return share * shape.total_bytes <= mac.memory * _FOR_WEIGHTS


def ways(mac: Mac, shape: ModelShape, cable: Cable, work: RequestWork, reached: Shares) -> dict[str, Times]:
    """What one such Mac and two of them can do with a model, by the strategy's name; without what has no room."""
    of_one = on_one(mac, shape, reached)
    single = RouteCosts(route=Route(("a",)), stages=(of_one.speed,), hops=())
    both = _pipeline(of_one.speed, cable)
    found = {}
    if fits(mac, shape):
        found["single-device-cached"] = cached_times(single, work, _IDLE)
        half_kv = shape.kv_token_bytes / 2  # the holder reads the other half of the layers itself
        handed = Hop(cable.step_s, cable.bytes_per_s / half_kv)
        read, alone = cached_times(both, work, _IDLE), found["single-device-cached"]
        found["distributed-prefill"] = handed_over_times(read, alone, work, handed)
    if fits(mac, shape, 0.5):
        found["distributed-cached"] = cached_times(both, work, _IDLE)
        found["tensor-parallel"] = tensor_times(_group(of_one, shape, cable), work, _IDLE)
    return found


def _pipeline(speed: StageSpeed, cable: Cable) -> RouteCosts:
    forth, back = Hop(cable.step_s, cable.bytes_per_s), Hop(0.0, cable.bytes_per_s)
    return RouteCosts(route=Route(("a", "b")), stages=(part_of(speed, 0.5),) * 2, hops=(forth, back))


def _group(of_one: Calibrated, shape: ModelShape, cable: Cable) -> TensorCosts:
    return TensorCosts(
        route=Route(("a", "b")),
        single=of_one.speed,
        cut_decode=of_one.cut_decode,
        cut_chunk=of_one.cut_chunk,
        num_layers=shape.num_layers,
        sum_cost=SumCost(cable.sum_s, cable.bytes_per_s),
        rank_s=cable.step_s,
    )
