"""A hub of models as the hub's library asks it: one repository, the files of a folder."""

import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "1234567890" * 4


class FakeHub:
    """Serves `folder` as `repo`. fetched: the files that were asked for whole. A part is one from a file's beginning."""

    def __init__(self, repo: str, folder: Path):
        self.repo = repo
        self.folder = folder
        self.fetched = []
        self.held = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                hub._answer(self, with_body=False)

            def do_GET(self):
                hub._answer(self, with_body=True)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        for event in self.held.values():
            event.set()
        self._server.shutdown()
        self._server.server_close()

    def hold(self, name):
        """The second half of this file waits; returns what lets it go."""
        self.held[name] = threading.Event()
        return self.held[name]

    def _answer(self, handler, *, with_body):
        path = urlsplit(handler.path).path
        files = {file.name: file for file in sorted(self.folder.iterdir()) if file.is_file()}
        resolve = f"/{self.repo}/resolve/{COMMIT}/"
        path = path.replace("/resolve/main/", f"/resolve/{COMMIT}/")
        if path == f"/api/models/{self.repo}/revision/main":
            siblings = [{"rfilename": name} for name in files]
            self._send(handler, json.dumps({"id": self.repo, "sha": COMMIT, "siblings": siblings}).encode())
        elif path == f"/api/models/{self.repo}/tree/{COMMIT}":
            entries = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": _etag(file)}
                for name, file in files.items()
            ]
            self._send(handler, json.dumps(entries).encode())
        elif path.startswith(resolve) and (file := files.get(path.removeprefix(resolve))) is not None:
            content, part = file.read_bytes(), handler.headers.get("Range")
            if part is not None:
                content = content[: int(part.removeprefix("bytes=0-")) + 1]
            elif with_body:
                self.fetched.append(file.name)
            self._send(handler, content, file, with_body=with_body, holds=part is None and file.name in self.held)
        else:
            handler.send_response(404)
            handler.send_header("X-Error-Code", "RepoNotFound")
            handler.send_header("Content-Length", "0")
            handler.end_headers()

    def _send(self, handler, content, file=None, *, with_body=True, holds=False):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        if file is not None:
            handler.send_header("ETag", f'"{_etag(file)}"')
            handler.send_header("X-Repo-Commit", COMMIT)
        handler.end_headers()
        if not with_body:
            return
        half = len(content) // 2
        with contextlib.suppress(OSError):  # who asked may go away meanwhile
            handler.wfile.write(content[:half])
            if holds:
                handler.wfile.flush()
                self.held[file.name].wait(60)
            handler.wfile.write(content[half:])


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
