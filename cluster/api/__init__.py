"""The HTTP API: OpenAI's wire format over the `Service` of `cluster.serving.requests`.

A surface (`surface`, `surfaces/`) is one way to ask: its path, its body, its answer. `app` routes; `body` reads; `fields`
and `parameters` validate; `events` and `accounts` write; `generation` runs; `server` listens. Nothing here knows of
workers, plans or tokenizers.
"""

from cluster.api.app import build_app
from cluster.api.server import bind, serve

__all__ = ["bind", "build_app", "serve"]
