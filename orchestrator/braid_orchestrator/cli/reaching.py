"""Where the shards are, as options that `braid train` and `braid eval` share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from braid_orchestrator.cli.options import use_state
from braid_orchestrator.cli.serve import places_elsewhere
from braid_rpc.errors import ConfigError

if TYPE_CHECKING:
    from braid_orchestrator.config.values import BraidConfig
    from braid_orchestrator.training.reaching import Way

PLACES_PANEL = "Where the shards are"

ShardOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=TARGET",
        help="Where a shard runs (`host:port`, `unix:/path`); repeatable. Without any, all models are loaded "
        "into this process.",
        rich_help_panel=PLACES_PANEL,
    ),
]
JoinOption = Annotated[
    bool, typer.Option("--join", help="Find the shards in the state store.", rich_help_panel=PLACES_PANEL)
]
ServeOption = Annotated[
    str | None,
    typer.Option(
        metavar="APP", help="Use the shards of this Ray Serve application.", rich_help_panel=PLACES_PANEL
    ),
]


def use_state_to_join(url: str | None, join: bool) -> None:
    """As `use_state`. Raises: ConfigError for a state store in which nothing would be looked up."""
    if url is not None and not join:  # not quoted: it may hold a password
        raise ConfigError(
            "--state: got a state store without --join, expected both: only so are shards found in it"
        )
    use_state(url)


def way_to(braid: BraidConfig, shards: list[str], join: bool, application: str | None) -> Way:
    """How the shards are reached. Raises: ConfigError for several ways at once, or shards that are missing."""
    from braid_orchestrator.training.reaching import Way

    names = [one.name for one in braid.shards]
    given = [
        way for way, wanted in (("--shard", shards), ("--join", join), ("--serve", application)) if wanted
    ]
    if len(given) > 1:
        raise ConfigError(f"{given[1]}: got it together with {given[0]}, expected one of them")
    if join and braid.state.store == "memory":
        raise ConfigError("--join: got no state store to find shards in, expected --state or state.url")
    if not shards:
        return Way(in_store=join, application=application)
    targets = places_elsewhere(shards, None, names)
    missing = [name for name in names if name not in targets]
    if missing:
        raise ConfigError(
            f"--shard: got none for {', '.join(missing)}, expected one for each of {', '.join(names)}"
        )
    return Way(targets)
