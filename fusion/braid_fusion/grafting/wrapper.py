"""A causal language model with resonance layers grafted on. Knows no files' insides and no training.

Letters: B sequences, T positions, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from braid_fusion.errors import GraftConfigError
from braid_fusion.grafting import files, metrics
from braid_fusion.grafting.hooks import Grafts
from braid_fusion.grafting.layers import find_stack
from braid_fusion.resonance.config import FusionConfig
from braid_fusion.resonance.layer import ResonanceFusionLayer


class ResonanceWrapper(nn.Module):
    """Any causal language model of transformers, with resonance layers behind some of its decoder layers.

    The layers work by hooks on ``base_model`` itself, in every forward of it: training, ``generate`` with a cache,
    pipelines, and the base model called directly until `unwrap`. Untrained, they change no bit of the output. What
    the wrapper has no attribute for is the base model's: ``model.config`` and ``model.device`` are, and so on.

    Padding (attention mask 0) never reaches the layers. A batch row is one text: documents packed into one row by a
    block mask or by restarting positions are not kept apart. One forward at a time per thread. Gradient
    checkpointing of the base model works; the grafted layers themselves are not recomputed.

    Args:
        base_model: from ``AutoModelForCausalLM``, or alike.
        config: None: `FusionConfig.full()`; what it leaves open is taken from the model.
        freeze_base: turn the base parameters' gradients off, until `unwrap`. Otherwise they stay as they are.

    The layers' parameters are float32 (float64 for a model in float64), each on the device of its decoder layer.

    Attributes:
        fusion_layers: by the index of the decoder layer, as text.
        fusion_config: ``config`` with nothing left open.
        collect_metrics: whether layers measure in each forward (on; `auxiliary_losses` needs it).
        check_finite: whether NaN and infinity behind a grafted layer raise NonFiniteStateError (on).

    Raises: GraftConfigError if the model is wrapped already, has no decoder layers that can be found, or ``config``
        is for another width or depth; then the model is as it was.
    """

    def __init__(self, base_model: Any, config: FusionConfig | None = None, freeze_base: bool = True) -> None:
        super().__init__()
        # The list of names that a pipeline compares a model's class with, to complain where it is not among them.
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault("braid_resonance", "ResonanceWrapper")
        if isinstance(base_model, ResonanceWrapper):
            raise GraftConfigError(
                "base_model: got a ResonanceWrapper, expected a bare model: unwrap() it first"
            )
        if not hasattr(base_model, "config"):
            raise GraftConfigError(
                f"base_model: got {type(base_model).__name__}, expected a causal language model of transformers"
            )
        stack, layers = find_stack(base_model)
        width = base_model.config.get_text_config().hidden_size
        config = (config or FusionConfig.full()).resolve(width, len(layers))
        generator = torch.Generator().manual_seed(config.seed)
        fusion_layers = nn.ModuleDict()
        for position in config.fusion_positions or ():
            like = next(layers[position].parameters())
            dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
            layer = ResonanceFusionLayer(width, config, generator)
            fusion_layers[str(position)] = layer.to(like.device, dtype)
        self._grafts = Grafts(stack, layers, fusion_layers)
        self.base_model = base_model
        self.fusion_layers = fusion_layers
        self.fusion_config = config
        self._had_gradient = [parameter.requires_grad for parameter in base_model.parameters()]
        if freeze_base:
            base_model.requires_grad_(False)
        fusion_layers.train(base_model.training)
        self.training = base_model.training

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """The base model's forward with the grafted layers in it: its arguments, its output.

        Raises: NonFiniteStateError, GraftCacheError, FusionShapeError.
        """
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "inputs_embeds": inputs_embeds,
            "labels": labels,
            "use_cache": use_cache,
        }
        model: Any = self.base_model
        return model(**{name: value for name, value in given.items() if value is not None}, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's ``generate``, which runs the very forward that training runs."""
        return self.base_model.generate(*args, **_uncompiled(kwargs, self.base_model.generation_config))

    @property
    def config(self) -> PreTrainedConfig:
        """The base model's; see ``fusion_config``."""
        return self.base_model.config

    @property
    def generation_config(self) -> GenerationConfig:
        """The base model's."""
        return self.base_model.generation_config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        self.base_model.generation_config = value

    @property
    def collect_metrics(self) -> bool:
        """Whether layers measure in each forward."""
        return self._grafts.collect_metrics

    @collect_metrics.setter
    def collect_metrics(self, value: bool) -> None:
        self._grafts.collect_metrics = value

    @property
    def check_finite(self) -> bool:
        """Whether NaN and infinity raise."""
        return self._grafts.check_finite

    @check_finite.setter
    def check_finite(self, value: bool) -> None:
        self._grafts.check_finite = value

    def get_metrics(self) -> dict[int, dict[str, float]]:
        """Means of the last forward by layer index; in ``generate``, of the last step. Empty before any."""
        return metrics.layer_means(self._grafts.last)

    def get_average_metrics(self) -> dict[str, float]:
        """The same, averaged over layers."""
        return metrics.average(self.get_metrics())

    def last_row_metrics(self) -> dict[int, dict[str, Tensor]]:
        """Measures per position of the last forward by layer index, (B, T), NaN at padding."""
        return metrics.by_position(self._grafts.last)

    def auxiliary_losses(self) -> dict[str, Tensor]:
        """``coherence`` and ``kuramoto`` of the last forward as scalar tensors in its graph; see `metrics.losses`."""
        return metrics.losses(self._grafts.last)

    def fusion_parameters(self) -> Iterator[nn.Parameter]:
        """The grafted layers' own parameters."""
        return self.fusion_layers.parameters()

    def num_fusion_parameters(self) -> int:
        """How many numbers these are."""
        return sum(parameter.numel() for parameter in self.fusion_parameters())

    def save_fusion_weights(self, path: Path | str) -> None:
        """Write the grafted layers to a ``.safetensors`` or ``.pt`` file, see `files.save_weights`."""
        files.save_weights(self.fusion_layers, self.fusion_config, self.base_model, path)

    def load_fusion_weights(self, path: Path | str) -> None:
        """Read them back into these layers; after an error these are unchanged. Caches filled so far are refused.

        Raises: UnknownWeights, CorruptWeights, WeightMismatch if they are of another model or configuration.
        """
        files.load_weights(self.fusion_layers, self.fusion_config, self.base_model, path)
        self._grafts.forget_caches()

    def save_pretrained(self, folder: Path | str, save_base: bool = False, **_: Any) -> None:
        """Write a folder that `from_pretrained` reads: the grafted layers and where the base model came from, with
        ``save_base`` the base model too."""
        files.save_folder(self.fusion_layers, self.fusion_config, self.base_model, folder, save_base)

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, base_model: Any = None, freeze_base: bool = True, **base_options: Any
    ) -> ResonanceWrapper:
        """A wrapper as it was saved.

        Args:
            base_model: what to wrap; None: the model in the folder, or else the one of the name that the folder says,
                loaded with ``base_options`` by transformers.

        Raises: UnknownWeights, CorruptWeights, WeightMismatch; then ``base_model`` is as it was.
        """
        config, base_model = files.open_folder(folder, base_model, base_options)
        wrapper = cls(base_model, config, freeze_base)
        try:
            wrapper.load_fusion_weights(Path(folder) / files.WEIGHTS_FILE)
        except BaseException:
            wrapper.unwrap()
            raise
        return wrapper

    def unwrap(self) -> Any:
        """Take the grafted layers off. Returns: the base model, as it was given. The wrapper is of no more use."""
        self._grafts.remove()
        for parameter, had_gradient in zip(self.base_model.parameters(), self._had_gradient, strict=True):
            parameter.requires_grad_(had_gradient)
        return self.base_model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("base_model", "fusion_layers", "_grafts") or name.startswith("__"):
                raise
            return getattr(self.base_model, name)


def _uncompiled(kwargs: dict[str, Any], own: Any) -> dict[str, Any]:
    """Transformers compiles the forward by itself where the cache has a fixed size; hooks don't go into that."""
    given = kwargs.get("generation_config")
    told = [
        kwargs.get("cache_implementation"),
        *(getattr(of, "cache_implementation", None) for of in (given, own)),
    ]
    cache = kwargs.get("past_key_values")
    if not any(told) and (cache is None or isinstance(cache, DynamicCache)):
        return kwargs
    if given is None:
        return {**kwargs, "disable_compile": True}
    given = copy.deepcopy(given)
    given.disable_compile = True
    return {**kwargs, "generation_config": given}
