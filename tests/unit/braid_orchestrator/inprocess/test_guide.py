"""What the braiding guide (seed 002_af8603a85f675be2.txt) does step by step works, on tiny models from disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from braids import shaken
from models import save_tiny_model
from torch import Tensor, nn

from braid_fusion import (
    AttentionFusion,
    FusionLayer,
    LearnedWeightedFusion,
    RouterFusion,
    StitchFusion,
    register_strategy,
)
from braid_fusion.strategies import registry
from braid_orchestrator import BraidedLLM, ModelWrapper, evaluate, train_fusion_layers
from braid_rpc.errors import InvalidRequestError

DEPTH = 12
QUERY = "put these words in order"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three of different widths, the anchor deep enough for the guide's layers."""
    shapes = {"deep": (32, DEPTH), "middle": (32, 6), "wide": (48, 8)}
    root = tmp_path_factory.mktemp("models")
    return {
        name: str(save_tiny_model(root / name, seed, width=width, num_layers=layers))
        for seed, (name, (width, layers)) in enumerate(shapes.items())
    }


@pytest.fixture(scope="module")
def models(folders: dict[str, str]) -> list[ModelWrapper]:
    return [ModelWrapper(folder) for folder in folders.values()]


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_STRATEGIES", dict(registry._STRATEGIES))
    yield


def test_hidden_states_of_every_layer_can_be_reached(folders: dict[str, str]) -> None:
    model = ModelWrapper(model_name=folders["deep"], quantization=None)
    inputs = model.encode("good day to you")
    output = model.forward(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    shape = (*inputs["input_ids"].shape, 32)
    assert len(output.hidden_states) == DEPTH + 1
    assert all(state.shape == shape for state in output.hidden_states)
    assert not torch.equal(output.hidden_states[0], output.hidden_states[10])
    # The last is what the head reads.
    torch.testing.assert_close(model.model.lm_head(output.hidden_states[-1]), output.logits)


def test_states_of_two_models_can_be_weighed_by_hand(models: list[ModelWrapper]) -> None:
    first, second, _ = models
    inputs = first.encode("tell me how it works")
    states = [model.forward(input_ids=inputs["input_ids"]).hidden_states[5] for model in (first, second)]
    fused = 0.7 * states[0] + 0.3 * states[1]
    assert fused.shape == (1, inputs["input_ids"].shape[1], 32)
    even = 0.5 * states[0] + 0.5 * states[1]
    # An untrained weighted fusion of two is just that average.
    torch.testing.assert_close(LearnedWeightedFusion(2)(states), even)


def test_three_models_are_braided_at_several_layers(folders: dict[str, str]) -> None:
    roles = ("reasoning", "knowledge", "code")
    model_configs = [
        {"model_name": folder, "role": role} for folder, role in zip(folders.values(), roles, strict=True)
    ]
    braided = BraidedLLM(
        model_configs=model_configs, fusion_strategy="learned_weighted", fusion_layers=[0, 4, 8, 11]
    )
    with shaken(braided):
        assert [model.name for model in braided.models] == list(roles)
        assert list(braided.fusion_modules) == ["0", "4", "8", "11"]
        # The same relative depth in models of other depths.
        assert [point.layers for point in braided.plan.points] == [
            (0, 0, 0),
            (4, 2, 3),
            (8, 4, 5),
            (11, 5, 7),
        ]
        response = braided.generate(prompt="write me something", max_new_tokens=7, ignore_eos=True)
        assert response and response != braided.models[0].generate("write me something", 7, ignore_eos=True)


def test_training_and_comparing_with_the_models_alone(models: list[ModelWrapper], tmp_path: Path) -> None:
    texts = ["a short text of our own domain, ", "and one more of the very same domain, "]
    braided = BraidedLLM(models[:2], fusion_layers=[0, 6])
    before = evaluate(braided, texts)
    assert before == pytest.approx(evaluate(models[0], texts), abs=1e-6)  # untrained it is its anchor
    train_fusion_layers(braided, texts, num_steps=25, learning_rate=1e-2)
    individual_score, braided_score = evaluate(models[0], texts), evaluate(braided, texts)
    assert braided_score < 0.95 * individual_score == pytest.approx(0.95 * before)
    braided.save_fusion_layers(tmp_path / "fusion_weights.pt")
    again = BraidedLLM(models[:2], fusion_layers=[0, 6])
    again.load_fusion_layers(tmp_path / "fusion_weights.pt")
    assert evaluate(again, texts) == pytest.approx(braided_score, abs=1e-6)
    for wrong in ([], ["x"]):
        with pytest.raises(InvalidRequestError, match="texts: got"):
            evaluate(braided, wrong)
    for one in (braided, again):
        one.close()


def test_bits_per_byte_are_those_of_the_models_own_logits(models: list[ModelWrapper]) -> None:
    text = "what it says here"
    inputs = models[2].encode(text)
    log_probs = models[2].forward(**inputs).logits.log_softmax(-1)[0, :-1]
    ids = inputs["input_ids"][0]
    total = float(log_probs.gather(1, ids[1:, None]).sum()) / torch.tensor(2.0).log().item()
    num_bytes = len(text) - len(models[2].decode(ids[:1]))
    assert evaluate(models[2], [text]) == pytest.approx(-total / num_bytes, rel=1e-5)


class JoinedFusion(FusionLayer):
    """All states side by side through one map, as the guide's own example."""

    def __init__(self, num_models: int, hidden_dim: int) -> None:
        super().__init__()
        self.join = nn.Linear(hidden_dim * num_models, hidden_dim)

    def forward(self, hidden_states: list[Tensor]) -> Tensor:
        return self.join(torch.cat(list(hidden_states), dim=-1))


def test_a_strategy_of_ones_own_goes_by_its_name(models: list[ModelWrapper]) -> None:
    register_strategy("custom")(JoinedFusion)
    for strategy in ("custom", JoinedFusion):
        with BraidedLLM(models[:2], fusion_strategy=strategy, fusion_layers=[3, 7]) as braided:
            assert isinstance(braided.fusion_modules["7"].strategy, JoinedFusion)
            assert braided.generate(QUERY, 4) == models[0].generate(QUERY, 4)
            first = braided.generate(QUERY, 8, ignore_eos=True)
            assert shaken(braided).generate(QUERY, 8, ignore_eos=True) != first


def test_every_layer_may_fuse_in_its_own_way(models: list[ModelWrapper]) -> None:
    names = ["learned_weighted", "attention", "router", "stitch", "custom"]
    register_strategy("custom")(JoinedFusion)
    layers = [0, 3, 6, 8, 10]
    listed = BraidedLLM(models, fusion_strategy=names, fusion_layers=layers)
    assert [point.strategy for point in listed.plan.points] == names
    with shaken(listed):
        assert listed.generate(QUERY, 4, ignore_eos=True)

    braided = BraidedLLM(models, fusion_layers=[0, 6])
    width = braided.plan.points[0].fusion_width
    braided.fusion_modules["0"] = LearnedWeightedFusion(num_models=3)
    braided.fusion_modules["10"] = AttentionFusion(num_models=3, hidden_dim=width, num_heads=4)
    braided.fusion_modules["11"] = RouterFusion(num_models=3, hidden_dim=width)
    braided.fusion_modules["6"] = StitchFusion(num_models=3, hidden_dim=width)
    assert list(braided.fusion_modules) == ["0", "6", "10", "11"]
    kinds = [type(point.strategy).__name__ for point in braided.fusion_modules.values()]
    assert kinds == ["WeightedFusion", "StitchFusion", "AttentionFusion", "RouterFusion"]
    with shaken(braided):
        assert braided.generate(QUERY, 4, ignore_eos=True)


def test_only_some_queries_are_braided(models: list[ModelWrapper]) -> None:
    with shaken(BraidedLLM(models[:2], fusion_strategy="attention", fusion_layers=[0, 6])) as braided:

        def is_complex(query: str) -> bool:
            return len(query.split()) > 3

        def smart_generate(query: str) -> str:
            if is_complex(query):
                return braided.generate(query, 6, use_braiding=True, ignore_eos=True)
            return braided.models[0].generate(query, 6, ignore_eos=True)

        braided.decide = is_complex
        for query in ("short one", "one that has more words"):
            assert braided.generate(query, 6, use_braiding="auto", ignore_eos=True) == smart_generate(query)
        assert smart_generate("one that has more words") != braided.models[0].generate(
            "one that has more words", 6, ignore_eos=True
        )


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_models_and_fewer_layers_do_as_well(models: list[ModelWrapper], count: int) -> None:
    with BraidedLLM(model_configs=models[:count], fusion_layers=[0, 8]) as braided:
        assert braided.generate(QUERY, 4) == models[0].generate(QUERY, 4)


def test_models_may_be_quantized_one_by_one(folders: dict[str, str]) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    model_configs = [
        {"model_name": folders["middle"], "quantization": "8bit"},
        {"model_name": folders["wide"], "quantization": "4bit"},
    ]
    with BraidedLLM(model_configs=model_configs, fusion_layers=[0, 3]) as braided:
        assert [model.backend.card.quantization for model in braided.models] == ["int8", "nf4"]
        assert braided.generate(QUERY, 4) == braided.models[0].generate(QUERY, 4)
