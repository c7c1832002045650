"""Errors on their way out: any exception becomes an OpenAI error object, and what is a bug is logged, not shown."""

import logging
from collections.abc import Callable
from typing import Any

from starlette.responses import JSONResponse

from protocol.errors import ApiError, TandemError

logger = logging.getLogger(__name__)


def as_api_error(error: Exception) -> ApiError:
    """The error with its place on the wire. An unexpected one is logged with its traceback."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, TandemError):
        return ApiError(str(error))
    logger.error("a request failed unexpectedly", exc_info=error)
    return ApiError("this request met an internal error; the log of the coordinator has the details")


def error_response(error: Exception, body: Callable[[ApiError], dict[str, Any]] = ApiError.body) -> JSONResponse:
    """The response for an error that is met before anything else was sent. body: in whose words."""
    api_error = as_api_error(error)
    headers = {}
    if api_error.retry_after_s is not None:
        headers["Retry-After"] = str(api_error.retry_after_s)
    if api_error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body(api_error), api_error.status, headers)
