"""The HTTP API: OpenAI's wire format over the `Service` of `cluster.serving.requests`.

`app` routes; `body` reads; `fields` and `openai_requests` validate; `openai_responses` writes; `generation` streams;
`server` listens. Nothing here knows of workers, plans or tokenizers.
"""

from cluster.api.app import build_app
from cluster.api.server import bind, serve

__all__ = ["bind", "build_app", "serve"]
