"""One answer from a Tandem cluster for exact token ids, and the ids of its answer."""

import json
import time
import urllib.request
from collections.abc import Sequence

from benchmarks.support.one_device import Generated

_TIMEOUT_S = 600


def complete(url: str, prompt: Sequence[int], num_tokens: int, strategy: str, end_tokens: Sequence[int]) -> Generated:
    """Greedily, as long as asked: end tokens are made impossible. Blocks. Raises OSError."""
    body = {
        "model": "default",
        "prompt": list(prompt),
        "max_tokens": num_tokens,
        "temperature": 0,
        "strategy": strategy,
        "logit_bias": {str(token): -100 for token in end_tokens},
    }
    request = urllib.request.Request(  # noqa: S310 - the cluster's own loopback address
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    started = time.perf_counter()
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:  # noqa: S310
        answer = json.load(response)
    return Generated(tokens=tuple(answer["tandem"]["token_ids"]), seconds=time.perf_counter() - started)
