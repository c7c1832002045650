"""A small HTTP server that answers like the API, for tests of the commands."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TANDEM = {
    "strategy": "distributed-no-cache",
    "reason": "short enough",
    "workers": ["worker-0", "worker-1"],
    "ttft_s": 0.25,
    "decode_tokens_per_s": 12.5,
    "token_ids": [5, 6],
}
USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}


STATUS = {
    "state": "ready",
    "api": "http://127.0.0.1:1",
    "model": {"id": "tandem-demo", "layers": 8, "bytes": 11_500_000, "has_chat_template": True},
    "mode": "auto",
    "policy": "thresholds",
    "predicted": {
        "prompt_tokens": 1024,
        "max_tokens": 128,
        "strategies": [
            {"strategy": "single-device-cached", "workers": ["worker-0"], "ttft_s": 0.5167, "decode_tokens_per_s": 92.4}
        ],
        "routes": [
            {
                "strategy": "single-device-cached",
                "workers": [f"worker-{index}"],
                "prefill_tokens_per_s": 1981.8,
                "decode_tokens_per_s": 92.4 - index,
            }
            for index in range(2)
        ],
    },
    "coordinator": {"pid": 4711},
    "workers": [
        {
            "name": f"worker-{index}",
            "host": "local",
            "pid": 4712 + index,
            "state": "ready",
            "why_away": None,
            "layers": [4 * index, 4 * index + 4],
            "holds_full_model": index == 0,
            "memory": {"limit_bytes": 10**9, "weights_bytes": 5_750_000, "kv_bytes": 1_500_000},
            "cache": {
                "kv_budget_bytes": 600_000_000,
                "prefix_budget_bytes": 250_000_000,
                "prefix_bytes": 3_000_000,
                "shared_bytes": 64_000,
                "disk_bytes": 2_000_000,
            },
            "load": {"busy_share": 0.43, "steps_per_s": 12.5, "batch_size": 2.25, "queue": 1},
        }
        for index in range(2)
    ],
    "requests": {"running": 0, "waiting": 0, "finished": 3, "failed": 0, "resumed": 0},
    "cache": {"prompt_tokens": 1200, "cached_tokens": 300, "hit_rate": 0.25},
    "guesses": {"draft": "tandem-demo-draft", "proposed": 284, "accepted": 201, "acceptance": 0.7077},
    "epoch": 1,
    "events": [],
    "groups": [],
    "why_no_group": None,
    "hosts": [],
    "links": [],
}


def event(data) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


def chat_piece(text, finish_reason=None) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}]})


def raw_piece(text, finish_reason=None) -> bytes:
    return event({"choices": [{"index": 0, "text": text, "finish_reason": finish_reason}]})


ENDING = event({"choices": [], "usage": USAGE, "tandem": TANDEM}) + b"data: [DONE]\n\n"


class FakeApi:
    """Answers each path with what `answers` holds for it, (status, bytes or a function that gives parts of them), and keeps what
    it was asked.
    """

    def __init__(self, status):
        self.asked = []
        self.headers = []
        self.on_request = lambda path, body: None
        self.answers = {
            "/status": (200, json.dumps(status).encode()),
            "/v1/chat/completions": (
                200,
                b": prefill 1/9\n\n" + chat_piece("") + chat_piece("Hé") + chat_piece("llo", "stop") + ENDING,
            ),
            "/v1/completions": (200, raw_piece("raw") + raw_piece("", "length") + ENDING),
        }
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                size = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(size)) if size else None
                api.headers.append(dict(self.headers))
                if body is not None:
                    api.asked.append((self.path, body))
                api.on_request(self.path, body)
                code, content = api.answers[self.path]
                self.send_response(code)
                self.send_header("Connection", "close")
                self.end_headers()
                for part in content() if callable(content) else (content,):
                    self.wfile.write(part)
                self.close_connection = True

            do_GET = do_POST = answer  # noqa: N815 - http.server's names

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
