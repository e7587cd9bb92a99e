"""One line in the log for every request that has ended, however it ended. Never with a text, asked or given."""

from __future__ import annotations

import logging
import time
from collections import Counter

from braid_orchestrator.engine.requests import ChoiceFinished, Event, Finished, Started, TokenEvent
from braid_orchestrator.serving.calls import Call
from braid_rpc.errors import BraidError, InvalidRequestError

_log = logging.getLogger(__name__)


class RequestLog:
    """Follows one request, from its arrival to its line."""

    def __init__(self, operation: str, model: str, call: Call) -> None:
        """``model`` is who answers: the braid or a shard."""
        self._operation = operation
        self._model = model
        self._call = call
        self._request_id = ""
        self._weights_version: str | None = None
        self._arrived_s = time.perf_counter()
        self._started_s: float | None = None
        self._first_token_s: float | None = None
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._reasons: Counter[str] = Counter()

    def note(self, event: Event) -> None:
        """The next event has come."""
        match event:
            case TokenEvent():
                self._completion_tokens += 1
                if self._first_token_s is None:
                    self._first_token_s = time.perf_counter()
            case Started():
                self._started_s = time.perf_counter()
                self._request_id = event.request_id
                self._weights_version = event.weights_version or None
                self._prompt_tokens = event.prompt_tokens
            case ChoiceFinished():
                self._reasons[event.finish_reason] += 1
            case Finished():
                pass

    def note_score(self, num_tokens: int) -> None:
        """A text of that many tokens was scored."""
        self._started_s = self._arrived_s
        self._prompt_tokens = num_tokens

    def write(self, outcome: str, error: BraidError | None = None) -> None:
        """The request has ended: ``outcome`` is ``finished``, ``cancelled`` or the error's type."""
        now_s = time.perf_counter()
        what = outcome if error is None else "refused" if self._started_s is None else "failed"
        is_ours = error is not None and error.http_status >= 500
        # What is wrong with a request may be told by citing it.
        says = None if error is None or isinstance(error, InvalidRequestError) else error.message
        reasons = [reason for reason, count in self._reasons.items() for _ in range(count)]
        _log.log(
            logging.WARNING if is_ours else logging.INFO,
            "request %s",
            what,
            extra={
                "request_id": self._request_id or self._call.request_id,
                "operation": self._operation,
                "route": self._call.route or None,
                "client": self._call.client or None,
                "model": self._model,
                "weights_version": self._weights_version,
                "prompt_tokens": self._prompt_tokens,
                "completion_tokens": self._completion_tokens,
                "finish_reasons": reasons or None,
                "error": None if error is None else type(error).__name__,
                "error_message": says,
                "queue_s": _rounded(self._started_s, self._arrived_s),
                "time_to_first_token_s": _rounded(self._first_token_s, self._arrived_s),
                "total_s": _rounded(now_s, self._arrived_s),
            },
        )


def _rounded(then_s: float | None, arrived_s: float) -> float | None:
    return None if then_s is None else round(then_s - arrived_s, 6)
