"""Answers held to a JSON schema: whether all that end are of it, and what holding them costs.

First, random schemas and a random model at temperature 1: each answer that ends by itself is validated. Then the same streams
with a schema and without, in turns, on one cluster: tokens a second with it, over those without.
"""

import argparse
import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from benchmarks.support import machine
from benchmarks.support.arithmetic import paired_ratios, turns
from benchmarks.support.client import Target, checked, stream
from benchmarks.support.contenders import WorkerLimits, tandem
from benchmarks.support.main import main
from benchmarks.support.prompts import PromptMaker
from benchmarks.support.random_models import ensure_model, known_models
from benchmarks.support.reporting import Report
from protocol.errors import TandemError
from workers.zoo import make_tiny_model

PROMPT_TOKENS = 16
# It never ends within a round, so that both sides make the same number of tokens.
ENDLESS = {
    "type": "array",
    "minItems": 100_000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "age": {"type": "integer", "minimum": 0},
            "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 4},
            "address": {"type": "object", "properties": {"street": {"type": "string"}}, "required": ["street"]},
        },
        "required": ["name", "age", "tags", "address"],
        "additionalProperties": False,
    },
}
SIDES: dict[str, Mapping[str, Any]] = {
    "without": {"ignore_eos": True},
    "with a schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": ENDLESS}}},
}


def random_schemas(count: int) -> list[Any]:
    """So many different ones. Raises TandemError where the packages of the tests are missing."""
    try:
        from benchmarks.support.random_schemas import some
    except ImportError:
        raise TandemError("random schemas need the packages of the tests; run ./launch.sh test once") from None
    return some(count)


async def _ask(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    async with httpx.AsyncClient(base_url=url, timeout=600, trust_env=False) as client:
        response = await client.post("/v1/completions", json=body)
    return response.status_code, response.json()


def _outcome(schema: Any, status: int, answer: dict[str, Any]) -> str:
    """What became of one answer, in a word or two."""
    import jsonschema

    if status != 200:
        return "refused" if status == 400 else f"status {status}"
    (choice,) = answer["choices"]
    if choice["finish_reason"] != "stop":
        return "not finished"
    try:
        jsonschema.validate(json.loads(choice["text"]), schema)
    except (ValueError, jsonschema.ValidationError):
        return "invalid"
    return "valid"


async def validity(target: Target, arguments: argparse.Namespace, prompts: PromptMaker) -> Counter[str]:
    """How many answers to random schemas ended how."""
    found: Counter[str] = Counter()
    free = asyncio.Semaphore(arguments.streams)

    async def one(number: int, schema: Any, prompt: str) -> None:
        async with free:
            limits = {"max_tokens": arguments.max_tokens, "temperature": 1, "seed": number}
            status, answer = await _ask(target.url, {"prompt": prompt, "guided_json": schema, **limits})
        outcome = _outcome(schema, status, answer)
        if outcome not in ("valid", "not finished"):
            print(outcome, json.dumps(schema), json.dumps(answer)[:400])
        found[outcome] += 1

    async with asyncio.TaskGroup() as group:
        for number, schema in enumerate(random_schemas(arguments.schemas)):
            group.create_task(one(number, schema, prompts.make(PROMPT_TOKENS)))
    return found


async def speed(
    target: Target, fields: Mapping[str, Any], arguments: argparse.Namespace, prompts: PromptMaker
) -> float:
    """Tokens a second of all streams together. Raises RuntimeError when one fails."""
    asked = [prompts.make(PROMPT_TOKENS) for _ in range(arguments.streams)]
    answers = [
        checked(answer)
        for answer in await asyncio.gather(
            *(
                stream(target, prompt, arguments.tokens, fields={"temperature": arguments.temperature} | fields)
                for prompt in asked
            )
        )
    ]
    first, last = min(answer.text_at[0] for answer in answers), max(answer.ended_at for answer in answers)
    return sum(answer.num_tokens for answer in answers) / (last - first)


async def run(arguments: argparse.Namespace) -> Report:
    """Both parts, each with a model that it suits: a small one whose answers end, and one that takes a while for a token."""
    report = Report("structured")
    report.fact("machine", machine.describe())
    if arguments.schemas:
        with tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder:
            tiny = make_tiny_model("llama", Path(folder) / "tiny")
            prompts = PromptMaker(0, tiny)
            async with tandem("Tandem", tiny, [WorkerLimits()], "single-device-cached") as cluster:
                _conclude_validity(report, await validity(cluster.target, arguments, prompts))
    if arguments.rounds:
        report.fact("model", f"{arguments.model}, random weights; one worker")
        with tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder:
            model = with_an_end(ensure_model(arguments.model, machine.model_folder()), Path(folder) / arguments.model)
            async with tandem("Tandem", model, [WorkerLimits()], "single-device-cached") as cluster:
                report.fact("Tandem", f"BLAS: {cluster.blas}; cores: {cluster.pinned}")
                await _compare(report, cluster.target, arguments, PromptMaker(0, model))
    return report


def with_an_end(model: Path, directory: Path) -> Path:
    """The model with a token that ends an answer: of its own none does, and then nothing can be held to a schema."""
    directory.mkdir()
    for file in model.iterdir():
        (directory / file.name).symlink_to(file)
    settings = directory / "tokenizer_config.json"
    known = json.loads(settings.read_text(encoding="utf-8"))
    settings.unlink()
    settings.write_text(json.dumps(known | {"eos_token": "!"}), encoding="utf-8")
    return directory


def _conclude_validity(report: Report, found: Counter[str]) -> None:
    report.table(
        "answers to random schemas, at temperature 1", ["outcome", "answers"], [list(row) for row in found.items()]
    )
    finished = found["valid"] + found["invalid"]
    report.check("valid, of those that finished", found["valid"] / finished if finished else None, at_least=1.0)
    report.data["validity"] = dict(found)


async def _compare(report: Report, target: Target, arguments: argparse.Namespace, prompts: PromptMaker) -> None:
    speeds: dict[str, list[float]] = {name: [] for name in SIDES}
    for number, order in enumerate(turns(list(SIDES), arguments.rounds + 1)):
        for name in order:
            found = await speed(target, SIDES[name], arguments, prompts)
            if number:
                speeds[name].append(found)
    ratio = paired_ratios(speeds["with a schema"], speeds["without"])
    rows = [[name, *of_name] for name, of_name in speeds.items()]
    rounds = [f"round {number}" for number in range(1, arguments.rounds + 1)]
    report.table(f"tokens/s of {arguments.streams} streams", ["", *rounds], rows)
    report.check("tokens/s with a schema / without", None if ratio is None else ratio.median, at_least=0.95)
    report.data["speeds"] = speeds


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--model", default="25m-float32", choices=known_models(), metavar="SIZE-FORMAT")
    parser.add_argument("--schemas", type=int, default=500)
    parser.add_argument("--max-tokens", type=int, default=250, help="of an answer to a random schema")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256, help="of each stream, when speeds are compared")
    parser.add_argument("--temperature", type=float, default=0.0, help="when speeds are compared")
    parser.add_argument("--rounds", type=int, default=7)


if __name__ == "__main__":
    raise SystemExit(main("structured", __doc__, options, run, quick={"schemas": 10, "rounds": 1, "tokens": 32}))
