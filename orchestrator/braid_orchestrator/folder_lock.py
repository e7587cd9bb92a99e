"""A folder that one process at a time works in, by a lock that ends with its process. Knows nothing of the work."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from braid_orchestrator.writable import missing_made
from braid_rpc.errors import ConflictError

# Of a file system that has no locks.
_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS)


@contextmanager
def alone_in(folder: Path, taken: str, name: str = ".lock") -> Iterator[None]:
    """Hold the lock on the file ``name`` in ``folder``, which is made where it is missing. Neither is left, unless
    the process is killed or something else was put into the folder; a file that was left is in nobody's way. Where
    the file system has no locks, nobody is kept out.

    Raises: ConflictError, saying ``taken``, where somebody holds the lock; OSError, naming the folder, if it can't
        be written.
    """
    path = folder / name
    with missing_made(folder):
        descriptor = _locked(path, taken)
        try:
            yield
        finally:
            with suppress(OSError):
                if _is_at(path, descriptor):
                    path.unlink()  # while it is held: who has opened it meanwhile looks whether it is still there
            os.close(descriptor)


def _locked(path: Path, taken: str) -> int:
    while True:
        try:
            descriptor = _opened(path)
        except FileNotFoundError:  # whoever made the folder has removed it
            path.parent.mkdir(parents=True, exist_ok=True)
            continue
        except OSError as error:  # the lock's name would tell nobody anything
            raise OSError(error.errno, error.strerror, str(path.parent)) from error
        try:
            _lock(descriptor, taken)
            if _is_at(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # it was removed by who held it


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        if not path.exists():
            raise
        return os.open(path, os.O_RDONLY)  # another user has left it


def _lock(descriptor: int, taken: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConflictError(taken) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
