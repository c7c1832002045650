"""Every error that a user can meet: whose fault it is, how HTTP and the CLI say it, and whether to try again.

An error's message is one clause that says what to do, without a capital letter or a full stop; `as_sentence` completes
it where it is shown. No traceback accompanies it. `ApiError` subclasses carry what an OpenAI error object needs. Anything
else that escapes is a bug and is reported as an internal error.
"""

from typing import Any


def as_sentence(clause: str, name: str | None = None) -> str:
    """An error's clause as people read it: a capital letter unless it begins with a name, and a full stop.

    name: what the clause speaks of, which stays as it is written where it comes first.
    """
    first = clause.partition(" ")[0].rstrip(",;:")
    # Paths, options, settings and workers are names, and all hold more than letters.
    begun = clause[0].upper() + clause[1:] if first.isalpha() and first != name else clause
    return begun if begun.endswith((".", "?", "!")) else f"{begun}."


def in_one_line(text: str, limit: int = 300) -> str:
    """What a library says, as part of a clause: its lines as one, and no more than so many characters."""
    return " ".join(text.split())[:limit]


class TandemError(Exception):
    """Base of every error with a message meant for the user. The CLI prints it and exits with `exit_code`.

    param: the field of a request that the message speaks of.
    """

    exit_code = 1
    param: str | None = None


class UsageError(TandemError):
    """The command line, the environment or the configuration asks for something impossible."""

    exit_code = 2


class ModelError(TandemError):
    """The model directory cannot be used: missing parts, damaged files, an architecture mlx-lm lacks."""


class AddressUnavailable(TandemError):
    """The address to receive at is taken, not allowed or not of this machine; another one, or the end of what uses it, helps."""


class WireError(TandemError):
    """A message from another process that does not decode or is not its sender's to say; it is dropped and counted."""


class ApiError(TandemError):
    """An error with a place in OpenAI's wire format.

    `status` is the HTTP status, `error_type` and `code` the OpenAI fields beside `param`.
    """

    status = 500
    error_type = "server_error"
    code: str | None = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int | None = None):
        super().__init__(message)
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """The OpenAI error object."""
        message = as_sentence(str(self), self.param)
        return {"error": {"message": message, "type": self.error_type, "param": self.param, "code": self.code}}


class BadRequest(ApiError):
    """The request is wrong; `param` names the field. Sending it again cannot help."""

    exit_code = 2
    status = 400
    error_type = "invalid_request_error"
    code = "invalid_value"


class Unauthorized(ApiError):
    """A key is set and the request does not carry it."""

    status = 401
    error_type = "authentication_error"
    code = "invalid_api_key"


class NotFound(ApiError):
    """No such model or path."""

    exit_code = 2
    status = 404
    error_type = "invalid_request_error"
    code = "not_found"


class ContextTooLong(BadRequest):
    """A prompt beyond the model's context, or with the answer beyond the memory for its caches. A shorter one may do."""

    code = "context_length_exceeded"


class TooLarge(ApiError):
    """A body beyond the server's limit."""

    exit_code = 2
    status = 413
    error_type = "invalid_request_error"
    code = "request_too_large"


class QueueFull(ApiError):
    """As many requests wait as may; try again after `retry_after_s` seconds."""

    status = 429
    error_type = "rate_limit_error"
    code = "queue_full"


class RateLimited(ApiError):
    """A key has used up what it may for now; try again after `retry_after_s` seconds."""

    status = 429
    error_type = "rate_limit_error"
    code = "rate_limit_exceeded"


class RequestTimeout(ApiError):
    """The time that a request may take is over."""

    status = 504
    error_type = "timeout_error"
    code = "request_timeout"


class RequestCancelled(ApiError):
    """Somebody who may use the cluster ended the request, for whatever reason; its client is not to send it again by itself."""

    status = 499
    error_type = "request_cancelled"
    code = "request_cancelled"


class Unavailable(ApiError):
    """No plan can serve the request now, or the plan that did was lost."""

    status = 503
    error_type = "service_unavailable"
    code = "unavailable"


class IllegalEvent(Exception):
    """An event that the state of a lifecycle does not have; nothing changed."""
