"""A published table of one to four M3 Ultra, what its single-Mac rows say of the machine, and the cost model's predictions of
all its other cells.

Published in March 2026 by guruswami-ai: five M3 Ultra (819 GB/s), links of 5.3 GB/s, mlx-lm with chunks of 2,048, 4-bit weights.
Three things are taken from it: the rows of one Mac, each calibrating its own row; SUM_S, one number; STAGE_S, one number. All
else is the models' shapes.

STAGE_S comes from the pipelines' decode speeds. That it holds for each further Mac of a group too is seen from the groups: so
two and four Macs ask for the same sum (within 10%, but for one cell, which is published as slower than with 16 times the
context); without it four ask for one up to a fifth larger. Of a step on one Mac a group cuts what lies beyond
`MachineFit.layer_s` for each layer (what the host and the kernels take whatever their size) and the reading of the head; of a
chunk, what lies beyond the former.
"""

from collections.abc import Iterator

import msgspec

from benchmarks.support.model_shapes import SHAPES, ModelShape
from strategy.chunking import ChunkCost
from strategy.cost import RequestWork, RouteCosts, RouteLoad, Times, cached_times
from strategy.stage_speed import Hop, StageSpeed
from strategy.tensor_cost import SumCost, TensorCosts, tensor_times
from strategy.vocabulary import Route

BANDWIDTH = 819e9
LINK_BYTES_PER_S = 5.3e9
CHUNK_TOKENS = 2048
# What one sum over all ranks takes for nothing, whatever the model and their number.
SUM_S = 0.24e-3
# What each further Mac adds to a step, behind another in a pipeline or beside it in a group.
STAGE_S = 1.35e-3
GENERATED = 128
_MACS = ("a", "b", "c", "d")

Rates = tuple[float, float]  # tokens per second: reading a prompt, and generating


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table; None where nothing was published. pipelines, groups: of two Macs and of four."""

    model: str
    context: int
    alone: Rates
    pipelines: tuple[Rates | None, Rates | None]
    groups: tuple[Rates | None, Rates | None]

    @property
    def shape(self) -> ModelShape:
        return SHAPES[self.model]

    @property
    def step_s(self) -> float:
        return 1 / self.alone[1]

    @property
    def token_s(self) -> float:
        """Of the prompt, with its first token, which is a step."""
        return 1 / self.alone[0] - self.step_s / self.context


def _row(model: str, context: int, alone: Rates, *ways: Rates | None) -> Row:
    pipeline_2, pipeline_4, group_2, group_4 = ways
    return Row(model=model, context=context, alone=alone, pipelines=(pipeline_2, pipeline_4), groups=(group_2, group_4))


TABLE = (
    _row("Qwen2.5 32B", 1024, (349, 31.5), (339, 30.2), (340, 28.6), (577, 21.6), (912, 18.4)),
    _row("Qwen2.5 32B", 16384, (289, 24.1), (538, 23.3), None, (547, 19.3), (958, 20.8)),
    _row("Mixtral 8x7B", 1024, (788, 69.1), (791, 62.5), (783, 53.7), (1302, 43.8), (2096, 44.7)),
    _row("Mixtral 8x7B", 16384, (726, 56.2), (1233, 51.9), (1982, 45.9), (1278, 39.1), (2190, 39.9)),
    _row("Mixtral 8x7B", 32768, (590, 47.0), (1144, 43.9), (2001, 39.4), (1141, 35.9), (1958, 38.3)),
    _row("Llama 3.1 405B", 1024, (27.8, 2.99), None, None, (51, 4.31), (95, 6.44)),
)


class MachineFit(msgspec.Struct, frozen=True):
    """What the rows of dense models at the shortest context say of a step: bytes read in a second, and seconds that a layer takes
    whatever its size.
    """

    bytes_per_s: float
    layer_s: float


def fit_machine() -> MachineFit:
    """From two rows, two numbers. Of all the bytes of a step and all its time Qwen reaches 575 GB/s and the 405B 681."""
    small, large = (
        next(row for row in TABLE if row.model == name and row.context == 1024)
        for name in ("Qwen2.5 32B", "Llama 3.1 405B")
    )
    layers = [row.shape.num_layers for row in (small, large)]
    size = [row.shape.token_bytes + row.context * row.shape.kv_token_bytes for row in (small, large)]
    determinant = size[0] * layers[1] - size[1] * layers[0]
    byte_s = (small.step_s * layers[1] - large.step_s * layers[0]) / determinant
    layer_s = (size[0] * large.step_s - size[1] * small.step_s) / determinant
    return MachineFit(1 / byte_s, layer_s)


class Calibrated(msgspec.Struct, frozen=True):
    """One Mac's times for a row, and the shares of them that a group divides."""

    speed: StageSpeed
    cut_decode: float
    cut_chunk: float


def calibrated(row: Row, machine: MachineFit) -> Calibrated:
    """So that one Mac alone comes to its own row exactly. What context costs is the difference to the model's other row, of the
    shortest context, or of the next where this is the shortest; nothing where there is none.
    """
    context_s, chunk_context_s = _of_context(row)
    fixed_s = row.shape.num_layers * machine.layer_s
    chunk = min(CHUNK_TOKENS, row.context)
    token_s = row.token_s - fixed_s / chunk - row.context / 2 * chunk_context_s
    base_s = row.step_s - (row.context + GENERATED / 2) * context_s
    whole_s = fixed_s + row.shape.head_bytes / machine.bytes_per_s
    speed = StageSpeed(
        decode=((1, base_s),),
        decode_context_s=context_s,
        chunk=ChunkCost(fixed_s, token_s),
        chunk_context_s=chunk_context_s,
        payload_bytes=row.shape.payload_bytes,
    )
    return Calibrated(speed, 1 - whole_s / base_s, 1 - fixed_s / (fixed_s + chunk * token_s))


def _of_context(row: Row) -> tuple[float, float]:
    """Seconds that a token before it adds to a step, and to a token of a chunk."""
    others = sorted((other for other in TABLE if other.model == row.model and other != row), key=lambda it: it.context)
    if not others:
        return 0.0, 0.0
    other = others[0]
    apart = row.context - other.context
    return (row.step_s - other.step_s) / apart, 2 * (row.token_s - other.token_s) / apart


def alone(row: Row, of_one: Calibrated) -> Rates:
    """One Mac: what it was calibrated to."""
    costs = RouteCosts(route=Route(("a",)), stages=(of_one.speed,), hops=(), fixed_chunk_tokens=CHUNK_TOKENS)
    return _rates(row, cached_times(costs, _work(row), RouteLoad()))


def in_a_pipeline(row: Row, of_one: Calibrated, num_macs: int) -> Rates:
    """Layers evenly over so many Macs."""
    stage = part_of(of_one.speed, 1 / num_macs)
    forth, back = Hop(STAGE_S, LINK_BYTES_PER_S), Hop(0.0, LINK_BYTES_PER_S)
    costs = RouteCosts(
        route=Route(_MACS[:num_macs]),
        stages=(stage,) * num_macs,
        hops=(*[forth] * (num_macs - 1), back),
        fixed_chunk_tokens=CHUNK_TOKENS,
    )
    return _rates(row, cached_times(costs, _work(row), RouteLoad()))


def in_a_group(row: Row, of_one: Calibrated, num_macs: int) -> Rates:
    """Every layer over so many Macs."""
    costs = TensorCosts(
        route=Route(_MACS[:num_macs]),
        single=of_one.speed,
        cut_decode=of_one.cut_decode,
        cut_chunk=of_one.cut_chunk,
        num_layers=row.shape.num_layers,
        sum_cost=SumCost(SUM_S, LINK_BYTES_PER_S),
        rank_s=STAGE_S,
        fixed_chunk_tokens=CHUNK_TOKENS,
    )
    return _rates(row, tensor_times(costs, _work(row), RouteLoad()))


def part_of(speed: StageSpeed, share: float) -> StageSpeed:
    """A stage with this share of a worker's layers."""
    return StageSpeed(
        decode=tuple((rows, share * seconds) for rows, seconds in speed.decode),
        decode_context_s=share * speed.decode_context_s,
        chunk=ChunkCost(share * speed.chunk.fixed_s, share * speed.chunk.token_s),
        chunk_context_s=share * speed.chunk_context_s,
        payload_bytes=speed.payload_bytes,
    )


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of the table beside what the model says. ours: tokens per second, as published."""

    model: str
    context: int
    way: str
    what: str
    published: float
    ours: float

    @property
    def deviation(self) -> float:
        return self.ours / self.published - 1


def predictions() -> Iterator[Cell]:
    """Every published cell."""
    machine = fit_machine()
    for row in TABLE:
        of_one = calibrated(row, machine)
        yield from _cells(row, "alone", row.alone, alone(row, of_one))
        for num_macs, theirs in zip((2, 4), row.pipelines, strict=True):
            yield from _cells(row, f"pipeline {num_macs}", theirs, in_a_pipeline(row, of_one, num_macs))
        for num_macs, theirs in zip((2, 4), row.groups, strict=True):
            yield from _cells(row, f"tensor {num_macs}", theirs, in_a_group(row, of_one, num_macs))


def asked_sum_s() -> Iterator[tuple[Row, int, float]]:
    """For each published group's decode speed the sum that would meet it exactly, all else being as it is: how far one number is
    from holding for all.
    """
    machine = fit_machine()
    for row in TABLE:
        of_one = calibrated(row, machine)
        for num_macs, theirs in zip((2, 4), row.groups, strict=True):
            if theirs is not None:
                missing_s = 1 / theirs[1] - 1 / in_a_group(row, of_one, num_macs)[1]
                yield row, num_macs, SUM_S + missing_s / (2 * row.shape.num_layers)


def _cells(row: Row, way: str, theirs: Rates | None, ours: Rates) -> Iterator[Cell]:
    if theirs is not None:
        for what, published, predicted in zip(("prefill", "decode"), theirs, ours, strict=True):
            yield Cell(model=row.model, context=row.context, way=way, what=what, published=published, ours=predicted)


def _work(row: Row) -> RequestWork:
    return RequestWork(prompt_tokens=row.context, generated_tokens=GENERATED)


def _rates(row: Row, times: Times) -> Rates:
    return row.context / (times.read_s + times.first_s), 1 / times.step_s
