"""`braid describe`: what a running braid is made of."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from braid_orchestrator.cli.console import out, print_json
from braid_orchestrator.cli.options import DEFAULT_TARGET, JsonOption, TargetOption


def describe(target: TargetOption = DEFAULT_TARGET, json: JsonOption = False) -> None:
    """Show a running braid: its shards, where they exchange states, how next tokens come about.

    Examples:

    - `braid describe`

    - `braid describe --target 127.0.0.1:9000 --json`
    """
    from braid_orchestrator.cli.asking import find_braid

    braid = find_braid(target)
    try:
        description = braid.describe()
    finally:
        braid.close()
    if json:
        print_json(description)
        return
    _print(description)


def _print(description: dict[str, Any]) -> None:
    out.print(
        f"[bold]{description['name']}[/]: anchor {description['anchor']}, readout {description['readout']}, "
        f"weights {description['weights_version'] or 'untrained'}, context {description['context_length']} tokens",
        highlight=False,
    )
    shards = Table("shard", "model", "family", "layers", "width", "parameters", "dtype")
    for shard in description["shards"]:
        shards.add_row(
            shard["name"],
            shard["model_id"],
            shard["family"],
            str(shard["num_layers"]),
            str(shard["width"]),
            f"{shard['num_parameters'] / 1e6:.1f}M",
            shard["dtype"],
        )
    out.print(shards)
    if description["points"]:
        names = [shard["name"] for shard in description["shards"]]
        points = Table("fusion point", "strategy", "injection", *(f"layer of {name}" for name in names))
        for point in description["points"]:
            layers = (str(layer) for layer in point["layers"])
            points.add_row(point["name"], point["strategy"], point["injection"], *layers)
        out.print(points)
