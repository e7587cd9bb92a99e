"""Figures of matplotlib, which may be missing, drawn without a display. Knows not what is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from braid_rpc.errors import ConfigError


def check_plotting() -> None:
    """Raises: ConfigError if matplotlib isn't installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "plot: matplotlib is not installed, expected the extra `plots`: pip install '.[plots]'"
        ) from error


def new_figure(width: float, height: float) -> Any:
    """An empty figure, sizes in inches. Raises: ConfigError if matplotlib isn't installed."""
    check_plotting()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    """As PNG, with the folders that are missing. Raises: OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png")
