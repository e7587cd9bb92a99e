"""A part that serves says so in the registry, again and again; and that it leaves, when it does.

Whoever dies says nothing more, and is gone when its entry expires. A store that is away is no reason to stop
serving: the entry is there again with the first heartbeat after it came back.
"""

from __future__ import annotations

import logging
import socket
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from braid_orchestrator.serving.probing import probe
from braid_orchestrator.state.registry import Registry, ReplicaRecord
from braid_orchestrator.state.store import StateStore
from braid_rpc.channels import check_target
from braid_rpc.errors import BraidError
from braid_rpc.shard_client import ShardClient

_log = logging.getLogger(__name__)


class Lease:
    """One replica's entry, kept alive by a thread between `__enter__` and `__exit__`."""

    def __init__(
        self, store: StateStore, describe: Callable[[], ReplicaRecord], heartbeat_s: float, expiry_s: float
    ) -> None:
        """``describe`` says what to register; as long as it raises a `BraidError` nothing is renewed."""
        self._registry = Registry(store)
        self._describe = describe
        self._heartbeat_s = heartbeat_s
        self._expiry_s = expiry_s
        self._record: ReplicaRecord | None = None
        self._complaint = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopping.set()
        self._thread.join()
        if self._record is not None:
            try:
                self._registry.remove(self._record.part, self._record.replica_id)
            except BraidError as error:
                _log.warning("left without a word: %s", error)

    def _run(self) -> None:
        while True:
            try:
                self._record = self._describe()
                self._registry.renew(self._record, self._expiry_s)
                self._complaint = ""
            except BraidError as error:
                if error.message != self._complaint:
                    _log.warning("not registered just now: %s", error)
                self._complaint = error.message
            if self._stopping.wait(self._heartbeat_s):
                return


def shard_record(part: str, targets: Sequence[str], advertise: str | None) -> Callable[[], ReplicaRecord]:
    """Describes the shard that listens on ``targets``, as it is at each call. ``advertise`` is where others reach it,
    if they don't by this machine's own address. Raises, when called: UnavailableError if it doesn't answer."""
    client = ShardClient(targets[0])
    record = _record(part, targets, advertise)

    def describe() -> ReplicaRecord:
        card = client.describe()
        return replace(
            record,
            model_hash=card.model_hash,
            tokenizer_hash=card.tokenizer_hash,
            num_sessions=card.num_sessions,
            cache_bytes_free=card.cache_bytes_free,
        )

    return describe


def service_record(part: str, targets: Sequence[str], advertise: str | None) -> Callable[[], ReplicaRecord]:
    """The same for a part that has no card: it has to answer health checks."""
    record = _record(part, targets, advertise)

    def describe() -> ReplicaRecord:
        probe(targets[0])
        return record

    return describe


def this_host() -> str:
    """What tells this machine (or container) from others: those on it can meet at unix sockets."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()}/{boot.read_text().strip() if boot.exists() else ''}"


def _record(part: str, targets: Sequence[str], advertise: str | None) -> ReplicaRecord:
    addresses = [
        *([check_target(advertise)] if advertise else []),
        *(_reachable(target) for target in targets),
    ]
    return ReplicaRecord(part, uuid.uuid4().hex, this_host(), tuple(addresses))


def _reachable(target: str) -> str:
    """Where others find what listens on all addresses: at this machine's own."""
    host, _, port = target.rpartition(":")
    if target.startswith("unix:") or host not in ("0.0.0.0", "[::]"):
        return target
    name = socket.gethostname()
    try:
        return f"{socket.gethostbyname(name)}:{port}"
    except OSError:
        return f"{name}:{port}"
