"""Where a configuration's files lie on this machine, told before anything is loaded."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from braid_orchestrator.config.values import FUSION, BraidConfig
from braid_rpc.errors import ConfigError
from braid_services.shard.config import ShardConfig

_HINT = "`braid demo --build-only` builds the demo's"


def locate_files(config: BraidConfig, elsewhere: Collection[str] = ()) -> BraidConfig:
    """The same configuration with absolute paths, so that every process finds the files from wherever it runs.

    Relative paths count from the current folder. A model that is no path is left alone: it is a hub's name. So
    are the files of the parts named in ``elsewhere`` (shards, `FUSION`), which other machines hold.
    Raises: ConfigError for a path at which there is nothing.
    """
    fusion = config.fusion
    if fusion.weights is not None and FUSION not in elsewhere:
        folder = Path(fusion.weights).expanduser()
        if not folder.is_dir():
            raise ConfigError(f"fusion.weights: no folder {folder.absolute()}; {_HINT}, null means untrained")
        fusion = replace(fusion, weights=str(folder.absolute()))
    shards = (shard if shard.name in elsewhere else _locate(shard) for shard in config.shards)
    braiding = config.braiding
    if braiding.decide is not None and "/" in braiding.decide:
        decider = Path(braiding.decide).expanduser()
        if not decider.is_dir():
            raise ConfigError(f"braiding.decide: no folder {decider.absolute()}, expected a classifier's")
        braiding = replace(braiding, decide=str(decider.absolute()))
    state, auth = config.state, config.auth
    # Whoever opens them says whether there is anything.
    if state.password_file is not None:
        state = replace(state, password_file=str(Path(state.password_file).expanduser().absolute()))
    if auth.api_keys_file is not None:
        auth = replace(auth, api_keys_file=str(Path(auth.api_keys_file).expanduser().absolute()))
    return replace(config, shards=tuple(shards), fusion=fusion, braiding=braiding, state=state, auth=auth)


def _locate(shard: ShardConfig) -> ShardConfig:
    folder = Path(shard.model).expanduser()
    if folder.is_dir():
        return replace(shard, model=str(folder.absolute()))
    if shard.model.startswith((".", "/", "~")):
        raise ConfigError(f"shards.{shard.name}.model: no folder {folder.absolute()}; {_HINT}")
    return shard
