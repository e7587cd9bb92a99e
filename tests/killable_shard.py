"""One of `braids.two_backends` as a service in a process of its own, to be killed in the middle of a span.

The process says on its standard output how far it is, and waits on its standard input for the word to serve, so that
importing and building are done before they count.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from types import TracebackType
from typing import Self

BUILT, SERVING, WITHIN = "built", "serving", "within a span"


class KillableShard:
    """Serves at ``target`` once it is told to. The ``hang_at``-th layer that it runs from then on never ends."""

    def __init__(self, index: int, target: str, hang_at: int = 0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(index), target, str(hang_at)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def serve(self) -> None:
        """Returns once it does."""
        self.wait_for(BUILT)
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.wait_for(SERVING)

    def wait_for(self, word: str) -> None:
        """The next thing that the process says must be this."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == word

    def kill(self) -> int:
        """By SIGKILL; gives the exit status."""
        self.process.kill()
        return self.process.wait(30)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def main(index: int, target: str, hang_at: int) -> None:
    import torch
    from braids import two_backends

    from braid_services.shard.main import serve_backend

    torch.set_num_threads(1)
    backend = two_backends()[index]
    layers_run = 0

    def count(*_: object) -> None:
        nonlocal layers_run
        layers_run += 1
        if layers_run == hang_at:
            print(WITHIN, flush=True)
            threading.Event().wait()

    for layer in backend.spans.layers:
        layer.mlp.register_forward_pre_hook(count)
    print(BUILT, flush=True)
    sys.stdin.readline()
    with serve_backend(backend, [target]):
        print(SERVING, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
