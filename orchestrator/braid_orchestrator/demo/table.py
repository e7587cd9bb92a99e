"""What `braid demo` shows: bits per byte of each model and the braid, and who had how much in a completion.

Makes rich renderables of plain figures; measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.table import Table
from rich.text import Text

from braid_orchestrator.evaluation import BRAID, UNIFORM

BEST = "best model alone"
SHARD_STYLES = ("cyan", "magenta", "yellow", "green", "blue", "red")


def bits_per_byte_table(figures: Mapping[str, Mapping[str, float]]) -> Table:
    """``figures[who][text]``: the models alone, then what is made of all, the braid set off, and last its gains. The
    best of each column is bold."""
    texts = list(figures[BRAID.name])
    table = Table(title="bits per byte on held-out text (lower is better)")
    table.add_column("")
    for text in texts:
        table.add_column(text, justify="right")
    best = {text: min(row[text] for row in figures.values()) for text in texts}
    for who, row in sorted(
        figures.items(), key=lambda item: (item[0] == BRAID.name, item[0] == UNIFORM.name)
    ):
        if who == BRAID.name:
            table.add_section()
        cells = [Text(f"{row[text]:.3f}", "bold" if row[text] == best[text] else "") for text in texts]
        table.add_row(Text(who, "bold" if who == BRAID.name else ""), *cells)
    table.add_section()
    for over, gained in gains(figures).items():
        cells = [Text(f"{gained[text]:+.1%}", "green" if gained[text] > 0 else "red") for text in texts]
        table.add_row(f"the braid's gain over the {over}", *cells)
    return table


def gains(figures: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """``[over][text]``: by what fraction the braid needs fewer bits for a text than the best of the models alone, and
    than the plain average of their probabilities."""
    alone = [row for who, row in figures.items() if who not in (BRAID.name, UNIFORM.name)]
    texts = list(figures[BRAID.name])
    others = {
        BEST: {text: min(row[text] for row in alone) for text in texts},
        UNIFORM.name: figures[UNIFORM.name],
    }
    return {
        over: {text: 1.0 - figures[BRAID.name][text] / row[text] for text in texts}
        for over, row in others.items()
    }


def share_table(weights: Mapping[str, float]) -> Table:
    """Each shard's mean weight in a completion, in the colour that `coloured_tokens` gives it."""
    table = Table(title="what each shard contributed to the completion")
    table.add_column("shard")
    table.add_column("mean weight", justify="right")
    table.add_column("")
    for (shard, weight), style in zip(weights.items(), _styles(len(weights)), strict=True):
        table.add_row(Text(shard, style), f"{weight:.1%}", Text("█" * round(30 * weight), style))
    return table


def coloured_tokens(tokens: Iterable[tuple[str, Mapping[str, float]]]) -> Text:
    """A completion, each token in the colour of the shard that had most in it, faint where it was close.

    Args:
        tokens: text and each shard's weight, token by token.
    """
    text = Text()
    for piece, weights in tokens:
        if not weights:
            text.append(piece)
            continue
        ranked = sorted(weights.values(), reverse=True)
        leader = max(range(len(weights)), key=list(weights.values()).__getitem__)
        is_close = len(ranked) > 1 and ranked[0] < 2.0 * ranked[1]
        text.append(piece, f"{'dim ' if is_close else ''}{_styles(len(weights))[leader]}")
    return text


def _styles(num_shards: int) -> list[str]:
    return [SHARD_STYLES[index % len(SHARD_STYLES)] for index in range(num_shards)]
