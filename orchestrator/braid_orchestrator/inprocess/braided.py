"""Several models braided in one process, as the braiding guide has them. For notebooks and training.

The engine and the fusion modules are those of the services, so both give the same tokens.

Shapes: B texts, T tokens of the longest, S shards, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from braid_fusion.deciding import DecisionClassifier, Predicate
from braid_fusion.plan import BraidPlan
from braid_fusion.stack import FusionStack
from braid_orchestrator.assembly import resolve_plan
from braid_orchestrator.config.values import BraidConfig, PointConfig
from braid_orchestrator.deciding import Deciding, classifier_of, make_decider, model_hashes
from braid_orchestrator.engine.requests import (
    Event,
    GenerateRequest,
    SamplingOptions,
    ScoreRequest,
    ScoreResult,
    UseBraiding,
)
from braid_orchestrator.inprocess.braided_config import Strategy, braid_config, load_models
from braid_orchestrator.inprocess.braided_output import BraidedOutput, next_token_loss
from braid_orchestrator.inprocess.fusion_files import load_modules, newest_version, save_modules
from braid_orchestrator.inprocess.fusion_modules import FusionModules
from braid_orchestrator.inprocess.generation import Completion, InProcessBraid
from braid_orchestrator.inprocess.model_wrapper import ModelWrapper
from braid_orchestrator.inprocess.padding import pack
from braid_orchestrator.inprocess.whole_text import run_whole
from braid_orchestrator.serving.model_selection import answered_by
from braid_rpc.errors import ConfigError
from braid_rpc.stability import StabilityOptions
from braid_services.fusion.main import import_modules
from braid_services.fusion.translation import braid_errors
from braid_services.shard.backend import ShardBackend


class BraidedLLM:
    """Models that run in lock step and exchange hidden states at some of their layers.

    The base models are frozen; only ``fusion_modules`` and ``readout`` can be trained. ``decide`` says who answers
    where a request leaves it open: any function of the prompt, or a `DecisionClassifier`; None: nothing does.
    """

    decide: Predicate | DecisionClassifier | None

    def __init__(
        self,
        model_configs: Sequence[Mapping[str, Any] | ModelWrapper],
        fusion_strategy: Strategy | Sequence[Strategy] | None = None,
        fusion_layers: Sequence[int | float] | None = None,
        *,
        preset: str | None = None,
        readout: str | None = None,
        injection: str | None = None,
        anchor: str | int = 0,
        fusion_width: int | None = None,
        fusion_options: Mapping[str, Any] | None = None,
        seed: int = 0,
        decide: Predicate | DecisionClassifier | str | None = None,
        use_braiding: UseBraiding = None,
    ) -> None:
        """Load the models that are not loaded yet, and make untrained fusion modules.

        Args:
            model_configs: arguments of `ModelWrapper` by name ("model_name" and perhaps "role" …), or wrappers.
            fusion_strategy: a strategy's name, or a class of your own whose instances take the list of states;
                or one per layer. None: the preset's, or "learned_weighted".
            fusion_layers: layers of the anchor, before which states are exchanged; in shards of another depth
                the nearest relative depth. Or relative depths between 0 and 1. None: after each quarter.
            preset: "domain", "size" or "training": the kind of models, from which follows what is not given.
            readout: "anchor" (without a preset), "mixture" or "gate".
            injection: "residual" (where none is given) or "replace".
            anchor: name or index of the model whose tokenizer and text lead.
            fusion_width: of the states that are fused; None: the smallest of the models' widths.
            fusion_options: options of the strategy; None: the preset's, if the strategy is the preset's too.
            seed: of the fusion modules' first weights.
            decide: who answers with ``use_braiding="auto"``: a function of the prompt that gives True (the braid),
                False (the anchor alone) or a model's name; the name of one that is registered; a
                `DecisionClassifier`, or the folder of one.
            use_braiding: for calls of `generate` that don't say; None: the preset's, or True.

        Raises: ConfigError, UnknownModelError, UnsupportedModelError, CorruptWeightsError.
        """
        models = load_models(model_configs)
        config = braid_config(
            models,
            fusion_strategy,
            fusion_layers,
            preset=preset,
            anchor=anchor,
            readout=readout,
            injection=injection,
            fusion_width=fusion_width,
            options=fusion_options,
            seed=seed,
            use_braiding=use_braiding,
            decide=decide if isinstance(decide, str) else None,
            decides=decide is not None,
        )
        self._start(models, config)
        if decide is not None and not isinstance(decide, str):
            self.decide = decide

    @classmethod
    def from_config(cls, config: BraidConfig) -> BraidedLLM:
        """The braid of a configuration with its trained weights, in this process.

        Raises: as the constructor, and UnknownVersionError, WeightMismatchError.
        """
        import_modules(config.fusion.imports, "fusion.imports")
        braided = cls.__new__(cls)
        models = [ModelWrapper.from_backend(ShardBackend.load(shard)) for shard in config.shards]
        braided._start(models, config)
        if config.fusion.weights is not None:
            folder = Path(config.fusion.weights)
            braided.load_fusion_layers(folder / (config.fusion.version or newest_version(folder)))
        return braided

    def _start(self, models: list[ModelWrapper], config: BraidConfig) -> None:
        self.models = models
        self.config = config
        self.decide = make_decider(config.braiding, model_hashes([backend.card for backend in self.backends]))
        self._engine: InProcessBraid | None = None
        self._use(self._new_stack())

    @property
    def plan(self) -> BraidPlan:
        """The braid as it is: shards, points, readout."""
        return self.stack.plan

    @property
    def readout(self) -> nn.Module:
        """How next-token probabilities come about; without parameters for "anchor"."""
        return self.stack.readout

    @property
    def backends(self) -> list[ShardBackend]:
        """The models as shards, in the plan's order."""
        return [model.backend for model in self.models]

    def parameters(self) -> Iterator[nn.Parameter]:
        """Everything that can be trained: fusion modules and readout."""
        yield from self.stack.parameters()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> BraidedOutput:
        """Run whole texts at once. Gradients flow to fusion modules and readout, and nowhere else.

        Args:
            input_ids: (B, T) token ids of the anchor.
            attention_mask: (B, T), 0 for padding on either side. Positions count from a text's first token.
            labels: (B, T) token ids, usually the input ids themselves: the loss compares each with what was
                predicted one position before. −100 and padding don't count.

        Raises: ShapeMismatchError, InvalidRequestError, ContextLengthError.
        """
        texts = pack(input_ids, attention_mask)
        with braid_errors():
            output = run_whole(
                self.backends,
                self.stack,
                texts.token_ids_R,
                texts.lengths,
                keep_anchor_states=True,
                want_metrics=True,
            )
        logits = texts.pad(output.scores)
        return BraidedOutput(
            logits=logits,
            hidden_states=tuple(texts.pad(state) for state in output.anchor_states),
            weights=texts.pad(output.log_weights.exp()),
            loss=None if labels is None else next_token_loss(logits, labels, attention_mask),
            metrics=output.metrics,
        )

    def generate(
        self,
        prompt: str,
        max_new_tokens: int = 128,
        use_braiding: UseBraiding = None,
        temperature: float = 0.0,
        *,
        shard: str | None = None,
        stability: StabilityOptions | None = None,
        **sampling: Any,
    ) -> str:
        """What comes after a prompt. Temperature 0 is greedy.

        Args:
            use_braiding: False lets one model answer alone: ``shard``, or the anchor. "auto": `decide` decides.
                None: what the configuration says, which is True unless it says otherwise.
            stability: whether to watch how stable the text is, and perhaps to end it or cool it down.
            sampling: further `SamplingOptions`, such as top_k, top_p, seed, stop.

        Raises: BraidError, such as InvalidRequestError, ContextLengthError or NoDeciderError.
        """
        return self.complete(
            prompt, max_new_tokens, use_braiding, temperature, shard=shard, stability=stability, **sampling
        ).text

    def complete(
        self,
        prompt: str,
        max_new_tokens: int = 128,
        use_braiding: UseBraiding = None,
        temperature: float = 0.0,
        *,
        shard: str | None = None,
        stability: StabilityOptions | None = None,
        **sampling: Any,
    ) -> Completion:
        """As `generate`, with the tokens, how much each shard had in them, who answered, and how stable it is."""
        request = self._request(prompt, max_new_tokens, use_braiding, temperature, shard, stability, sampling)
        who = answered_by(request, braid=self.config.name, anchor=self.config.anchor)
        return self._running().complete(request, who)

    def stream(
        self,
        prompt: str,
        max_new_tokens: int = 128,
        use_braiding: UseBraiding = None,
        temperature: float = 0.0,
        *,
        shard: str | None = None,
        stability: StabilityOptions | None = None,
        **sampling: Any,
    ) -> Iterator[Event]:
        """As `generate`, as events as they come; leaving the iterator early cancels."""
        request = self._request(prompt, max_new_tokens, use_braiding, temperature, shard, stability, sampling)
        yield from self._running().stream(request)

    def score(self, request: str | ScoreRequest) -> ScoreResult:
        """Log-probabilities of a text, token by token. Raises: BraidError."""
        request = ScoreRequest(request, None) if isinstance(request, str) else request
        return self._running().score(self._deciding().settle(request))

    def save_fusion_layers(self, path: Path | str, training_record: Mapping[str, Any] | None = None) -> None:
        """Write fusion modules and readout: a ``.pt`` or ``.safetensors`` file, or else a folder that services
        can load as a version."""
        save_modules(self.stack, Path(path), training_record)

    def load_fusion_layers(self, path: Path | str) -> None:
        """Read what `save_fusion_layers` wrote for the same models and points.

        Raises: UnknownVersionError, WeightMismatchError, CorruptWeightsError; nothing has changed then.
        """
        load_modules(self.stack, Path(path))

    def close(self) -> None:
        """End the engine's threads, if it was used. The object stays usable."""
        if self._engine is not None:
            self._engine.stop()
            self._engine = None

    def __enter__(self) -> BraidedLLM:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _request(
        self,
        prompt: str,
        max_new_tokens: int,
        use_braiding: UseBraiding,
        temperature: float,
        shard: str | None,
        stability: StabilityOptions | None,
        sampling: Mapping[str, Any],
    ) -> GenerateRequest:
        options = SamplingOptions(max_tokens=max_new_tokens, temperature=temperature, **sampling)
        request = GenerateRequest(
            prompt, options, use_braiding=use_braiding, shard=shard, stability=stability
        )
        request.validate()
        return self._deciding().settle(request)

    def _deciding(self) -> Deciding:
        decider = self.decide
        if isinstance(decider, DecisionClassifier):
            decider = classifier_of(decider, model_hashes([backend.card for backend in self.backends]))
        anchor = self.models[self.plan.anchor]
        return Deciding(self.plan, anchor.decode, self.config.braiding.default, decider)

    def _running(self) -> InProcessBraid:
        self.stack.eval()
        if self._engine is None:
            self._engine = InProcessBraid(self.config.name, self.backends, self.stack)
        return self._engine

    def _new_stack(self) -> FusionStack:
        with braid_errors():
            return FusionStack(resolve_plan(self.config, [backend.card for backend in self.backends]))

    def _use(self, stack: FusionStack) -> None:
        self.close()
        self.stack = stack
        self.fusion_modules = FusionModules(stack.points, self._exchange)
        stack.points = self.fusion_modules

    def _exchange(self, name: str, module: nn.Module) -> None:
        """Put a module in place of what fuses at a layer; at a layer without a fusion point, make one first."""
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        stack = self.stack
        if name not in self.fusion_modules:
            before = stack
            stack = self._with_point_at(name)
            for kept, point in before.points.items():
                stack.points[kept] = point
            stack.readout = before.readout
        stack.point(name).strategy = module
        points = [
            replace(point, strategy=kind, options={}) if point.name == name else point
            for point in stack.plan.points
        ]
        stack.plan = replace(stack.plan, points=tuple(points))
        self._use(stack)

    def _with_point_at(self, name: str) -> FusionStack:
        if not name.isdecimal():
            raise ConfigError(
                f"fusion_modules: got the key {name!r}, expected the index of an anchor's layer"
            )
        model_point = self.config.points[0] if self.config.points else PointConfig(at=0)
        added = replace(model_point, at=int(name), name="", strategy="weighted", options={})
        self.config = replace(self.config, points=(*self.config.points, added))
        return self._new_stack()
