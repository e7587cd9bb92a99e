"""Writes the journals of one orchestrator's requests, some at a time, from a thread that nobody waits for.

The engine's thread only appends to lists. What could not be written is written later; after a loss everything is
written anew, for the store may have come back empty.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from braid_orchestrator.engine.requests import Event, Finished, GenerateRequest, ScoreResult
from braid_orchestrator.state.journal import Journals
from braid_rpc.errors import BraidError, ConflictError

_log = logging.getLogger(__name__)

# Between two writes. A new request is written at once, unless one was just now.
_EVERY_S = 0.25
_AT_LEAST_S = 0.02

Item = Event | ScoreResult | BraidError


class _Record:
    def __init__(self, request: GenerateRequest) -> None:
        self.request = request
        self.events: list[Event] = []
        self.num_written = 0
        self.is_begun = False  # its journal is there and holds what was written
        self.is_written = False  # something of it is in the store
        self.has_ended = False
        self.carried_on = False

    @property
    def is_fresh(self) -> bool:
        """There is something to write."""
        return not self.has_ended and (not self.is_begun or len(self.events) > self.num_written)


class JournalWriter:
    """The journals of the requests that run here, from `start` to `stop`."""

    def __init__(self, journals: Journals, owner: str) -> None:
        self._journals = journals
        self._owner = owner
        self._records: dict[str, _Record] = {}
        self._lock = threading.Lock()
        self._keeping = False
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="journals", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def keep(self) -> None:
        """Requests that fail from now on are left to others: this orchestrator is shutting down."""
        self._keeping = True

    def stop(self) -> None:
        """Write what is left, and end."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            self.write_all()
        except BraidError as error:
            _log.warning("journals are lost: %s", error)

    def begin(
        self, request: GenerateRequest, sink: Callable[[Item], None], *, carried_on: bool = False
    ) -> Callable[[Item], None]:
        """Keep the journal of a request, whose id and seed are set: returns the sink to give to the engine.

        Args:
            carried_on: there is a journal of it, which stands until the request has come as far here.

        Raises: ConflictError if a request of that id runs already.
        """
        record = _Record(request)
        with self._lock:
            known = self._records.get(request.request_id)
            if known is not None and not known.has_ended:
                raise ConflictError(
                    f"request_id: {request.request_id!r} is already running, expected one that is not"
                )
            record.is_written = carried_on or (known is not None and known.is_written)
            record.is_begun = record.carried_on = carried_on
            self._records[request.request_id] = record
        self._wake.set()

        def note(item: Item) -> None:
            if isinstance(item, Finished | ScoreResult | BraidError):
                # What fails because we are shutting down is left to others.
                record.has_ended = not (self._keeping and isinstance(item, BraidError))
            else:
                record.events.append(item)
            sink(item)

        return note

    def end(self, request_id: str) -> None:
        """The request was not taken in after all."""
        record = self._records.get(request_id)
        if record is not None:
            record.has_ended = True

    def forget(self, request_id: str) -> None:
        """The request is not carried on here after all: its journal stays, for others."""
        with self._lock:
            self._records.pop(request_id, None)

    def write_all(self) -> None:
        """Write what is new, forget what has ended. Raises: BraidError, and then all is written anew next time."""
        with self._lock:
            records = dict(self._records)
        ended = {key: record for key, record in records.items() if record.has_ended}
        fresh = {
            key: (record, record.num_written, record.events[record.num_written :])
            for key, record in records.items()
            if record.is_fresh
        }
        try:
            if fresh:
                self._journals.write(
                    self._owner, {key: (one.request, first, new) for key, (one, first, new) in fresh.items()}
                )
            gone = [key for key, record in ended.items() if record.is_written]
            if gone:
                self._journals.remove(gone)
        except BraidError:
            for record in records.values():
                record.num_written, record.is_begun = 0, record.carried_on and not record.events
            raise
        for record, first, new in fresh.values():
            record.is_begun = record.is_written = True
            record.num_written = first + len(new)
        with self._lock:
            for key, record in ended.items():
                if self._records.get(key) is record:
                    del self._records[key]

    def _run(self) -> None:
        complaint = ""
        while not self._stopping.is_set():
            self._wake.wait(_EVERY_S)
            self._stopping.wait(_AT_LEAST_S)
            self._wake.clear()
            try:
                self.write_all()
                complaint = ""
            except BraidError as error:
                if error.message != complaint:
                    _log.warning("journals are not written just now: %s", error)
                complaint = error.message
                self._stopping.wait(_EVERY_S)
