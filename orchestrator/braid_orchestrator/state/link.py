"""One orchestrator's tie to the state store that it shares with others: who it is, what it knows of them.

Every heartbeat renews its lease, takes over the version of the fusion weights that was activated anywhere, and
shows whether the store is there. What happens while it isn't is the configuration's to say.
"""

from __future__ import annotations

import logging
import secrets
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace

from braid_orchestrator.config.values import StateConfig
from braid_orchestrator.engine.requests import GenerateRequest
from braid_orchestrator.engine.sessions import Sink
from braid_orchestrator.state.fusion_version import FusionVersion
from braid_orchestrator.state.fusion_weights import FusionWeights
from braid_orchestrator.state.journal import Journal, Journals
from braid_orchestrator.state.journaling import JournalWriter
from braid_orchestrator.state.runs import Runs
from braid_orchestrator.state.store import StateStore, Subscription
from braid_orchestrator.state.weights_fetcher import WeightsFetcher
from braid_rpc.errors import BraidError, ConflictError, NotFoundError, UnavailableError, UnknownVersionError
from braid_rpc.publishing import PublishedVersion
from braid_services.fusion.publishing import check_size, name_for

_log = logging.getLogger(__name__)

_TABLE = "orchestrators"
_NOBODY = "nobody"  # owns what was taken over and could not be carried on


class StateLink:
    """An orchestrator among others, from `start` to `stop`. The store is the caller's."""

    def __init__(self, store: StateStore, config: StateConfig, engine: Runs) -> None:
        self.owner = uuid.uuid4().hex
        self._store = store
        self._config = config
        self._engine = engine
        self._journals = Journals(store)
        self._writer = JournalWriter(self._journals, self.owner)
        self._version = FusionVersion(store)
        self._weights = FusionWeights(store)
        self._chosen: str | None = None  # the version that was last seen in the store, or put there
        self._untold: str | None = None  # the one that was activated here since, while the store was away
        self._refused = ""
        self._choosing = threading.Lock()
        self._lost: BraidError | None = None
        self._subscription: Subscription | None = None
        self._wake = threading.Event()
        self._fetcher = WeightsFetcher(self._weights, engine, self._wake.set)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="state", daemon=True)

    def start(self) -> None:
        """Join the others. A store that is away is waited for in the background."""
        self._beat()
        self._thread.start()
        self._writer.start()

    def leave(self) -> None:
        """Requests that end from now on, because this orchestrator does, keep their journals."""
        self._writer.keep()

    def stop(self) -> None:
        """Take leave: from now on others may carry on what did not end here."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        self._fetcher.stop()
        self._writer.stop()
        if self._subscription is not None:
            self._subscription.close()
        self._try(lambda: self._store.remove(_TABLE, [self.owner]), "left without a word")

    @property
    def is_up(self) -> bool:
        """Whether the store answered the last heartbeat."""
        return self._lost is None

    def check(self) -> None:
        """New requests are taken in. Raises: UnavailableError, naming the store, if it is away and
        ``state.when_lost`` is ``refuse``."""
        lost = self._lost
        if lost is not None and self._config.when_lost == "refuse":
            raise UnavailableError(lost.message, retry_after_s=self._config.heartbeat_s)

    def submit(self, engine: Runs, request: GenerateRequest, sink: Sink) -> str:
        """Give a request with an id to the engine, and keep its journal. Returns and raises: as the engine."""
        if request.sampling.seed is None:
            # Whoever carries it on has to draw the same.
            request = replace(request, sampling=replace(request.sampling, seed=secrets.randbits(62)))
        note = self._writer.begin(request, sink)
        try:
            return engine.submit(request, note)
        except BaseException:
            self._writer.end(request.request_id)
            raise

    def resume(self, engine: Runs, journal: Journal, sink: Sink) -> str:
        """The same for a request that was taken over. One that the engine refuses may be taken over again."""
        request = journal.request
        note = self._writer.begin(request, sink, carried_on=True)
        try:
            return engine.resume(request, journal.events, note)
        except BaseException:
            self._writer.forget(request.request_id)
            self._try(
                lambda: self._journals.claim(request.request_id, self.owner, _NOBODY),
                "could not give it back",
            )
            raise

    def activate(self, version: str) -> None:
        """Use a version of the fusion weights from now on, everywhere.

        Raises: what the engine raises; UnavailableError as `check`, also where the store goes away meanwhile. The
            version of before is used then.
        """
        self.check()
        with self._choosing:
            former = self._engine.weights_version
            self._engine.activate(version)
            try:
                self._version.set(version)
            except BraidError as error:
                if isinstance(error, UnavailableError) and self._config.when_lost == "embedded":
                    self._untold = version
                    return
                self._try(lambda: self._engine.activate(former), f"could not go back to version {former}")
                raise
            self._chosen, self._untold = version, None

    def publish(
        self, card_json: str, data: bytes, version: str = "", *, activate: bool = True
    ) -> PublishedVersion:
        """Take in a version of the fusion weights, and leave it in the store for those who activate it elsewhere.

        Raises: what the engine raises; ConflictError if another orchestrator published another one of this name;
            UnavailableError as `activate`: what was taken in by then is there, and not used.
        """
        self.check()
        version = name_for(version, card_json)
        check_size(len(data), self._engine.max_publish_bytes)
        is_new = self._offer(version, card_json, data)
        try:
            # Not in one: heartbeats don't wait for this, as they do for what is chosen.
            published = self._engine.publish(card_json, data, version, activate=False)
        except BaseException:
            if is_new:
                self._try(lambda: self._weights.withdraw(version), "could not take its weights back")
            raise
        if activate:
            self.activate(version)
        return replace(published, active_version=self._engine.weights_version)

    def _offer(self, version: str, card_json: str, data: bytes) -> bool:
        chosen = self._chosen
        try:
            return self._weights.offer(version, card_json, data, keep=() if chosen is None else (chosen,))
        except UnavailableError as error:
            if self._config.when_lost == "refuse":
                raise
            _log.warning("others with fusion modules of their own can't fetch version %s: %s", version, error)
            return False

    def orphans(self) -> list[str]:
        """Requests whose orchestrator is gone, and that nobody carries on yet. Raises: UnavailableError."""
        owners = self._journals.owners()
        alive = self._store.items(_TABLE)
        return sorted(request_id for request_id, owner in owners.items() if owner not in alive)

    def take_over(self, request_id: str) -> Journal:
        """The journal of a request, which is ours from now on.

        Raises: NotFoundError if there is none; ConflictError if its orchestrator is alive or another one was
        faster; CorruptStateError; UnavailableError.
        """
        owner = self._journals.owners().get(request_id)
        if owner is None:
            raise NotFoundError(
                f"request {request_id!r}: no journal of it, expected one that was not finished"
            )
        journal = self._journals.load(request_id)
        taken = ConflictError(f"request {request_id!r} is being answered elsewhere", retry_after_s=1.0)
        if owner in self._store.items(_TABLE) or not self._journals.claim(request_id, owner, self.owner):
            raise taken
        return journal

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(self._config.heartbeat_s)
            self._wake.clear()
            if not self._stopping.is_set():
                self._beat()

    def _beat(self) -> None:
        try:
            self._store.put(_TABLE, self.owner, b"", self._config.expiry_s)
            if self._subscription is None:
                self._subscription = self._version.subscribe(self._wake.set)
            self._lost = None
        except BraidError as error:
            if self._lost is None:
                _log.warning("%s", error)
            self._lost = error
            return
        try:
            self._follow()
        except BraidError as error:
            if error.message != self._refused:
                _log.warning("the active fusion version of all is not used here: %s", error)
            self._refused = error.message

    def _follow(self) -> None:
        """Use the version that was activated last, wherever that was."""
        with self._choosing:
            stored = self._version.get()
            # It has come back empty, or as it was before something was activated here.
            if stored is None or (self._untold is not None and self._chosen in (None, stored)):
                ours = self._untold or self._chosen
                if ours is not None:
                    self._version.set(ours)
                self._chosen, self._untold = ours, None
                return
            if self._untold not in (None, stored):
                _log.warning(
                    "fusion version %s, which was activated here while the state store was away, gives way to %s, "
                    "which was activated elsewhere",
                    self._untold,
                    stored,
                )
            self._chosen, self._untold = stored, None
            if stored != self._engine.weights_version:
                self._use(stored)

    def _use(self, version: str) -> None:
        try:
            self._engine.activate(version)
        except UnknownVersionError:
            self._fetcher.begin(version)
        else:
            _log.info("fusion version %s was activated elsewhere", version)

    def _try(self, call: Callable[[], object], complaint: str) -> None:
        try:
            call()
        except BraidError as error:
            _log.warning("%s: %s", complaint, error)
