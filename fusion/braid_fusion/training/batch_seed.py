"""The randomness of one batch, such as dropout: a function of the run's seed and the batch's number, nothing else.

So it is the same whichever worker takes the batch, and whether the run was broken off before it or not. Knows not
what a batch is.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_UINT32 = 2**32 - 1


@contextmanager
def batch_seed(seed: int, number: int) -> Iterator[None]:
    """Within, the global random generators of torch (and of CUDA devices, where one is in use), Python and numpy
    begin at a point of this batch's own. Afterwards they go on where they were before.

    Args:
        seed: the run's.
        number: the batch's, in the one sequence that all workers share.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    numpy = sys.modules.get("numpy")
    python_state = random.getstate()
    numpy_state = None if numpy is None else numpy.random.get_state()
    # No `torch.manual_seed`: where CUDA is there and not in use, it would note each seed with a whole traceback.
    with torch.random.fork_rng(devices=devices):
        own = _seed_of(seed, number)
        torch.default_generator.manual_seed(own)
        if devices:
            torch.cuda.manual_seed_all(own)
        random.seed(own)
        if numpy is not None:
            numpy.random.seed(own & _UINT32)
        try:
            yield
        finally:
            random.setstate(python_state)
            if numpy is not None:
                numpy.random.set_state(numpy_state)


def _seed_of(seed: int, number: int) -> int:
    """A hash, so that no two runs share a stretch of theirs; of 63 bits, which every generator takes."""
    digest = hashlib.sha256(f"batch {number} of seed {seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
