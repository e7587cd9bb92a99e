"""A progress bar on the terminal, by tqdm. Knows a run's progress and nothing of training."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from braid_fusion.training.record import Progress


class ProgressBar:
    """Steps, smoothed loss and the time that is left.

    Args:
        shown: None: only where standard error is a terminal.
    """

    def __init__(self, total: int, *, shown: bool | None) -> None:
        self._total = total
        self._shown = sys.stderr.isatty() if shown is None else shown
        self._bar: Any = None

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, progress: Progress) -> None:
        """After a step."""
        if not self._shown:
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, initial=progress.step - 1, unit="step", file=sys.stderr)
        self._bar.set_postfix(loss=f"{progress.loss:.4f}", refresh=False)
        self._bar.update(progress.step - self._bar.n)
