"""Where the decoder layers of a model stand. Knows nothing of what is done with them."""

from __future__ import annotations

from typing import Any

from torch import nn

from braid_fusion.errors import GraftConfigError


def layer_lists(model: Any, *, indexed: bool = True) -> list[tuple[nn.Module, nn.ModuleList]]:
    """The lists of as many layers as the configuration says, and the module that runs through each. A causal language
    model has one. With ``indexed`` only those whose layers all hold a part that knows its ``layer_idx``."""
    config = model.config.get_text_config()
    num_layers = getattr(config, "num_hidden_layers", 0)
    return [
        (module, child)
        for module in model.modules()
        for child in module.children()
        if isinstance(child, nn.ModuleList)
        and len(child) == num_layers > 0
        and (
            not indexed or all(any(hasattr(part, "layer_idx") for part in layer.modules()) for layer in child)
        )
    ]


def find_stack(model: Any) -> tuple[nn.Module, nn.ModuleList]:
    """The module that runs a model's decoder layers, and these. Raises: GraftConfigError if that is not clear."""
    found = layer_lists(model) or layer_lists(model, indexed=False)
    if len(found) != 1:
        family = model.config.model_type
        depth = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
        raise GraftConfigError(
            f"{family} ({type(model).__name__}): got {len(found)} lists of {depth} decoder layers, expected one: "
            "nothing can be grafted here"
        )
    return found[0]
