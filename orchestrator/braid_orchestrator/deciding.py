"""Who answers a request: the braid or one shard alone. Knows requests and predicates, no engine and no transport."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from braid_fusion.deciding import Answerer, DecisionClassifier, Predicate, find_predicate, load_classifier
from braid_fusion.differences import differences
from braid_fusion.errors import FusionError
from braid_fusion.plan import BraidPlan
from braid_orchestrator.config.values import BraidingConfig
from braid_orchestrator.engine.requests import GenerateRequest, ScoreRequest, UseBraiding
from braid_rpc.cards import ShardCard
from braid_rpc.errors import BraidError, ConfigError, NoDeciderError
from braid_services.fusion.main import import_modules

AskedT = TypeVar("AskedT", GenerateRequest, ScoreRequest)


class Deciding:
    """Turns requests that leave it open into such as say who answers. Safe to use from several threads."""

    def __init__(
        self,
        plan: BraidPlan,
        decode: Callable[[Sequence[int]], str],
        default: UseBraiding = True,
        decider: Predicate | None = None,
    ) -> None:
        """``decode`` gives the text of the anchor's token ids. ``default`` is for requests that say nothing;
        ``decider`` for those that ask for a decision (None: they are refused)."""
        self._plan = plan
        self._decode = decode
        self._default = True if default is None else default
        self._decider = decider
        self._names = [shard.name for shard in plan.shards]

    def settle(self, request: AskedT) -> AskedT:
        """The request with ``use_braiding`` true or false; as it is, if it says so.

        A decision for a shard whose tokenizer is not the anchor's can't be followed where the request has token
        ids: these are the anchor's. The braid answers then.
        Raises: NoDeciderError; BraidError if the decider's answer is none.
        """
        asked = self._default if request.use_braiding is None else request.use_braiding
        if isinstance(asked, bool):
            return request if asked is request.use_braiding else replace(request, use_braiding=asked)
        answerer = self._ask(request.prompt)
        if isinstance(answerer, bool):
            return replace(request, use_braiding=answerer)
        if _has_token_ids(request) and self._plan.lane_of[self._names.index(answerer)] != 0:
            return replace(request, use_braiding=True)
        return replace(request, use_braiding=False, shard=answerer)

    def _ask(self, prompt: str | tuple[int, ...]) -> Answerer:
        if self._decider is None:
            raise NoDeciderError(
                "use_braiding: got 'auto', but nothing is configured to decide (braiding.decide); "
                "expected true or false"
            )
        vocab_size = self._plan.shards[self._plan.anchor].vocab_size
        text = (
            prompt
            if isinstance(prompt, str)
            else self._decode([token_id for token_id in prompt if 0 <= token_id < vocab_size])
        )
        answerer = self._decider(text)
        if not isinstance(answerer, bool) and answerer not in self._names:
            raise BraidError(
                f"braiding.decide: the decider's answer is {answerer!r}, expected true, false or one of the shards: "
                f"{', '.join(self._names)}"
            )
        return answerer


def make_decider(config: BraidingConfig, model_hashes: Mapping[str, str]) -> Predicate | None:
    """What decides: the predicate of that name, or the classifier in that folder; None where nothing is configured.

    Args:
        model_hashes: of the shards, by name.

    Raises: ConfigError for a predicate that is not registered, or a classifier that is not there, is damaged, or
        decides between other shards or other models.
    """
    import_modules(config.imports, "braiding.imports")
    if config.decide is None:
        return None
    try:
        if "/" not in config.decide:
            return find_predicate(config.decide)
        return classifier_of(load_classifier(Path(config.decide).expanduser()), model_hashes, config.margin)
    except FusionError as error:
        raise ConfigError(f"braiding.decide: {error}") from error


def model_hashes(cards: Sequence[ShardCard]) -> dict[str, str]:
    """The hash of each shard's model, by the shard's name."""
    return {card.name: card.model_hash for card in cards}


def classifier_of(
    classifier: DecisionClassifier, model_hashes: Mapping[str, str], margin: float | None = None
) -> Predicate:
    """A classifier as a predicate for the shards with these hashes. ``margin`` None: its own. Raises: ConfigError."""
    unknown = [one for one in classifier.answerers if isinstance(one, str) and one not in model_hashes]
    if unknown:
        raise ConfigError(
            f"braiding.decide: got a classifier that decides for {unknown[0]!r}, expected shards among: "
            f"{', '.join(model_hashes)}"
        )
    learned = classifier.model_hashes
    unlike = differences(learned, dict(model_hashes), "this braid", "the classifier has") if learned else []
    if unlike:
        raise ConfigError(
            f"braiding.decide: the classifier was trained for other models: {'; '.join(unlike)}"
        )
    if margin is not None:
        classifier.margin = margin
    return classifier.decide


def _has_token_ids(request: GenerateRequest | ScoreRequest) -> bool:
    if not isinstance(request.prompt, str):
        return True
    return isinstance(request, GenerateRequest) and bool(
        request.sampling.logit_bias or request.sampling.stop_token_ids
    )
