"""Errors on their way out: any exception becomes an OpenAI error object, and what is a bug is logged, not shown."""

import logging
from collections.abc import Callable
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from cluster.serving.tally import Tally
from protocol.errors import ApiError, TandemError

logger = logging.getLogger(__name__)

# In a request's scope: the tally of what it takes.
TALLY = "tandem.tally"


class ErrorResponse(JSONResponse):
    """An error as the whole answer; the request's tally learns of it."""

    def __init__(self, error: ApiError, body: dict[str, Any], headers: dict[str, str]) -> None:
        super().__init__(body, error.status, headers)
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tally: Tally | None = scope.get(TALLY)
        if tally is not None:
            tally.error = self._error
        await super().__call__(scope, receive, send)


def as_api_error(error: Exception) -> ApiError:
    """The error with its place on the wire. An unexpected one is logged with its traceback."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, TandemError):
        return ApiError(str(error))
    logger.error("a request failed unexpectedly", exc_info=error)
    return ApiError("this request met an internal error; the log of the coordinator has the details")


def error_response(error: Exception, body: Callable[[ApiError], dict[str, Any]] = ApiError.body) -> ErrorResponse:
    """The response for an error that is met before anything else was sent. body: in whose words."""
    api_error = as_api_error(error)
    headers = {}
    if api_error.retry_after_s is not None:
        headers["Retry-After"] = str(api_error.retry_after_s)
    if api_error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return ErrorResponse(api_error, body(api_error), headers)
