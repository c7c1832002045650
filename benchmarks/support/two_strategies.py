"""One answer of each of two strategies on one cluster, for benchmarks in which they take turns."""

import argparse
from collections.abc import Sequence

from benchmarks.support.client import Answer, Target, checked, stream
from benchmarks.support.prompts import PromptMaker

# Workers write what they keep of an answer to disk when nothing runs; not while the next one is measured.
SETTLE_S = 1.0


async def asked(target: Target, strategy: str, prompt: str, arguments: argparse.Namespace) -> Answer:
    """An answer of `arguments.max_tokens` tokens. Raises RuntimeError where it is another one, or began with what was kept."""
    answer = checked(await stream(target, prompt, arguments.max_tokens, fields={"strategy": strategy}))
    used = answer.tandem["strategy"]
    if answer.num_tokens != arguments.max_tokens or used != strategy or answer.cached_tokens:
        raise RuntimeError(
            f"{strategy}: {answer.num_tokens} tokens by {used}, {answer.cached_tokens} of the prompt were kept"
        )
    return answer


async def num_same(target: Target, sides: Sequence[str], prompts: PromptMaker, arguments: argparse.Namespace) -> int:
    """For how many of `arguments.prompts` prompts both give the same ids."""
    found = 0
    for _ in range(arguments.prompts):
        prompt = prompts.make(arguments.prompt_tokens)
        ids = [(await asked(target, side, prompt, arguments)).tandem["token_ids"] for side in sides]
        found += ids[0] == ids[1]
    return found
