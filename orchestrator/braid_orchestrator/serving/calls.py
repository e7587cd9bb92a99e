"""The call that is being answered: its id, where it came in and from whom. For logs, and for ids of requests."""

from __future__ import annotations

import re
import uuid
from contextvars import ContextVar, Token
from dataclasses import dataclass, field

from braid_rpc.errors import InvalidRequestError

_ALLOWED = re.compile(r"[\x21-\x7e]{1,128}")


@dataclass(slots=True)
class Call:
    """``request_id`` may be replaced by one that the request itself brings; ``is_given``: a client chose it."""

    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    is_given: bool = False
    route: str = ""
    client: str = ""

    def name_request(self, own_id: str = "", prefix: str = "") -> str:
        """The id of the request: its own if it has one, else the client's for this call, else one that is made up and
        begins with ``prefix``."""
        if own_id:
            self.request_id = own_id
        elif not self.is_given:
            self.request_id = prefix + self.request_id
        return self.request_id


_current: ContextVar[Call | None] = ContextVar("braid_call", default=None)


def current_call() -> Call:
    """The call in whose context this runs; a nameless one outside of any."""
    return _current.get() or Call()


def begin_call(call: Call) -> Token[Call | None]:
    """From now on it is the current one, in this context; `end_call` takes what this returns."""
    return _current.set(call)


def end_call(token: Token[Call | None]) -> None:
    """What was the current call before is so again."""
    _current.reset(token)


def new_call(given_id: str | None, route: str, client: str) -> Call:
    """A call as it comes in. Raises: InvalidRequestError for an id that can't be one."""
    if given_id is None:
        return Call(route=route, client=client)
    if not is_header_safe(given_id):
        raise InvalidRequestError(
            f"X-Request-Id: got {given_id[:64]!r}, expected 1 to 128 visible ASCII characters without spaces"
        )
    return Call(given_id, True, route, client)


def is_header_safe(request_id: str) -> bool:
    """Whether an id may stand in a header."""
    return _ALLOWED.fullmatch(request_id) is not None
