"""The HTTP API as the commands use it: plain requests and one stream, each with a connection of its own.

Built on http.client, which imports in a few milliseconds. An error object of the API becomes an `ApiRequestFailed` with
its message.
"""

import contextlib
import http.client
import json
import re
from collections.abc import Generator, Iterator
from typing import Any
from urllib.parse import urlsplit

from protocol.errors import TandemError

_CONNECT_TIMEOUT_S = 5.0
_STREAM_TIMEOUT_S = 900.0
_USER_ERRORS = (400, 404, 413)
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, never bound
_PREFILL = re.compile(r":\s*prefill (\d+)/(\d+)")
_WAITING = re.compile(r":\s*waiting for (.+)")


class NoAnswer(TandemError):
    """Nothing listens at the API's address, or the connection broke."""


class ApiRequestFailed(TandemError):
    """The API refused a request; exit code 2 when the request itself is at fault."""

    def __init__(self, body: Any, status: int):
        """body: what came with `status`, an error object where the API itself answered."""
        error = body.get("error") if isinstance(body, dict) else None
        known = error if isinstance(error, dict) and "message" in error else {}
        super().__init__(str(known.get("message", f"the API answered {status}")))
        self.param = known.get("param")
        self.status = status
        self.exit_code = 2 if status in _USER_ERRORS else 1


class Client:
    """The API at `url` ("http://host:port"), with a bearer key where one is set."""

    def __init__(self, url: str, api_key: str | None = None):
        parts = urlsplit(url)
        assert parts.hostname is not None, url
        self.url = url
        self._host = _WILDCARDS.get(parts.hostname, parts.hostname)
        self._port = parts.port
        self._headers = {"Content-Type": "application/json", "Connection": "close"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def get(self, path: str, timeout_s: float = _CONNECT_TIMEOUT_S) -> Any:
        """The JSON at `path`.

        Raises:
            NoAnswer: no connection, no answer within `timeout_s`, or no JSON.
            ApiRequestFailed: the API answered with an error.
        """
        with self._request("GET", path, None, timeout_s) as response:
            return _decode(response.read())

    def post(self, path: str, body: dict[str, Any], timeout_s: float = 60.0) -> Any:
        """The JSON that `path` answers to `body`; raises as `get`."""
        with self._request("POST", path, body, timeout_s) as response:
            return _decode(response.read())

    def stream(self, path: str, body: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
        """The chunks of a streamed answer.

        Progress of the prefill comes as {"prefill": (processed, total)}, a wait for lost workers as {"waiting": names}.
        Closing the iterator closes the connection, which cancels the request. Raises as `get`, at any point.
        """
        with self._request("POST", path, body, _STREAM_TIMEOUT_S) as response:
            for line in _lines(response):
                if (match := _PREFILL.match(line)) is not None:
                    yield {"prefill": (int(match[1]), int(match[2]))}
                elif (match := _WAITING.match(line)) is not None:
                    yield {"waiting": match[1]}
                elif line == "data: [DONE]":
                    return
                elif line.startswith("data: "):
                    chunk = _decode(line[6:])
                    if "error" in chunk:
                        raise ApiRequestFailed(chunk, 500)
                    yield chunk
        raise NoAnswer("the answer broke off; `./launch.sh logs` says why")

    def lines(self, path: str, timeout_s: float) -> Generator[bytes, None, None]:
        """The lines of what is at `path` as they come. timeout_s: for each; raises as `get`, at any point."""
        with self._request("GET", path, None, timeout_s) as response:
            while line := response.readline():
                yield line

    @contextlib.contextmanager
    def _request(
        self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float
    ) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, path, data, self._headers)
            response = connection.getresponse()
            if response.status >= 400:
                raise ApiRequestFailed(_decode(response.read()), response.status)
            yield response
        except TimeoutError:
            raise NoAnswer(f"the cluster at {self.url} did not answer within {timeout_s:g} s") from None
        except (OSError, http.client.HTTPException):
            raise NoAnswer(
                f"the connection to {self.url} failed; `./launch.sh status` says how the cluster is"
            ) from None
        finally:
            connection.close()


def _lines(response: http.client.HTTPResponse) -> Iterator[str]:
    while line := response.readline():
        yield line.decode("utf-8").rstrip("\r\n")


def _decode(text: bytes | str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise NoAnswer("what answers at the API's address is not Tandem; choose another --port") from None
