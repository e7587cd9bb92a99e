"""Training of grafted layers: only these change, each loss carries gradient, and a broken run goes on bit for bit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from models import byte_tokenizer, tiny_llama
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from braid_fusion import FusionConfig, FusionTrainer, ResonanceWrapper, TrainingConfig, create_fusion_dataset
from braid_fusion.errors import (
    CheckpointMismatchError,
    NonFiniteStateError,
    TrainingConfigError,
    TrainingDataError,
)
from braid_fusion.grafting import training
from braid_fusion.grafting.graft_loss import graft_loss
from braid_fusion.training.checkpoint import read_checkpoint, steps_in

TOKENIZER = byte_tokenizer()
TEXTS = ["the cat is in the hat", "there the other hat " * 4, "in the inn", "a hat", "he is in there then"]


def dataset(texts: list[str] = TEXTS) -> Any:
    return create_fusion_dataset(texts, TOKENIZER, max_length=24)


def grafted(config: FusionConfig | None = None, seed: int = 0) -> ResonanceWrapper:
    return ResonanceWrapper(tiny_llama(seed), config or FusionConfig(fusion_positions=(0, 2)))


def with_dropout() -> ResonanceWrapper:
    """Dropout in the base model takes part in training, as in any adapter's."""
    config = GPT2Config(
        vocab_size=262, n_positions=32, n_embd=16, n_layer=3, n_head=2, bos_token_id=261, eos_token_id=261
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ResonanceWrapper(GPT2LMHeadModel(config), FusionConfig.full(fusion_positions=(0, 2)))


def trainer(
    model: ResonanceWrapper, evaluate: bool = False, on_progress: Any = None, **config: Any
) -> FusionTrainer:
    given: dict[str, Any] = {"learning_rate": 3e-3, "max_steps": 12, "batch_size": 3, "log_every": 1}
    return FusionTrainer(
        model=model,
        train_dataset=dataset(),
        tokenizer=TOKENIZER,
        config=TrainingConfig(**{**given, **config}),
        eval_dataset=dataset(TEXTS[:2]) if evaluate else None,
        on_progress=on_progress,
    )


@pytest.mark.parametrize("freeze_base", [True, False])
def test_it_learns_and_the_base_keeps_every_bit(freeze_base: bool) -> None:
    model = ResonanceWrapper(tiny_llama(0), FusionConfig(fusion_positions=(0, 2)), freeze_base=freeze_base)
    asked = [parameter.requires_grad for parameter in model.parameters()]
    before = {name: tensor.clone() for name, tensor in model.base_model.state_dict().items()}
    grafts = [parameter.detach().clone() for parameter in model.fusion_parameters()]
    result = trainer(model, max_steps=40).train()
    for name, tensor in model.base_model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == asked
    assert any(not torch.equal(p, old) for p, old in zip(model.fusion_parameters(), grafts, strict=True))
    assert result.history[-1]["lm_loss"] < 0.8 * result.history[0]["lm_loss"]
    assert (result.steps, result.stopped_by, result.best_loss) == (40, "steps", None)
    assert result.num_parameters == sum(p.numel() for p in model.fusion_parameters())
    assert not model.training


@pytest.mark.parametrize(("weight", "figure"), [("coherence", "coherence"), ("kuramoto", "kuramoto_order")])
def test_an_auxiliary_loss_raises_what_it_is_for(weight: str, figure: str) -> None:
    """With so large a weight that the language model's loss counts for nothing beside it."""
    reached = {}
    for factor in (0.0, 1000.0):
        result = trainer(
            grafted(),
            True,
            max_steps=40,
            eval_every=40,
            learning_rate=1e-2,
            **{f"{weight}_loss_weight": factor},
        ).train()
        reached[factor] = [result.history[0][figure], result.evaluations[-1].values[figure]]
    first, last = reached[1000.0]
    assert last > first + 0.1 * (1 - first)
    assert last > reached[0.0][1] + 0.05


@pytest.mark.parametrize("weight", ["coherence", "kuramoto"])
def test_the_loss_is_the_sum_and_so_is_its_gradient(weight: str) -> None:
    model = grafted()
    with torch.no_grad():  # an output map of zeros would hide the language model's gradient
        for parameter in model.fusion_parameters():
            parameter.add_(0.05)
    batch = trainer(model)._collate([dataset()[0], dataset()[1]])
    parameters = [p for p in model.fusion_parameters() if p.requires_grad]

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))

    figures = graft_loss(model, batch, {weight: 0.3})
    both = gradients(figures["loss"])
    alone = gradients(graft_loss(model, batch, {})["loss"])
    model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    auxiliary = model.auxiliary_losses()[weight]
    extra = gradients(auxiliary)
    torch.testing.assert_close(figures["loss"], figures["lm_loss"] + 0.3 * auxiliary)
    assert any(gradient.abs().sum() > 0 for gradient in extra)
    for together, first, second in zip(both, alone, extra, strict=True):
        torch.testing.assert_close(together, first + 0.3 * second, atol=1e-5, rtol=1e-4)  # float32


def test_the_loss_is_the_models_own_over_real_tokens() -> None:
    model = grafted()
    items = [dataset()[0], dataset()[3]]
    figures = graft_loss(model, trainer(model)._collate(items), {})
    losses = [model(input_ids=item["input_ids"][None], labels=item["labels"][None]).loss for item in items]
    counts = [len(item["input_ids"]) - 1 for item in items]
    expected = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(figures["lm_loss"], expected.detach(), atol=1e-5, rtol=1e-5)  # float32
    assert int(figures["tokens"]) == sum(counts)


def test_accumulated_batches_equal_one_large_batch() -> None:
    models = [grafted(), grafted()]
    results = [
        trainer(model, max_steps=3, batch_size=5 // parts, gradient_accumulation_steps=parts).train()
        for model, parts in zip(models, (1, 5), strict=True)
    ]
    for one, other in zip(models[0].fusion_parameters(), models[1].fusion_parameters(), strict=True):
        torch.testing.assert_close(
            one, other, atol=2e-4, rtol=1e-3
        )  # AdamW's division lifts float32's rounding
    for one, other in zip(results[0].history, results[1].history, strict=True):
        assert one["tokens"] == other["tokens"]
        assert one["lm_loss"] == pytest.approx(other["lm_loss"], rel=1e-4)


class BrokenOffError(Exception):
    """The process ends here."""


def _without_seconds(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in history]


@pytest.mark.parametrize("broken_after", [4, 9])
def test_a_run_that_was_broken_off_goes_on_bit_for_bit(tmp_path: Path, broken_after: int) -> None:
    def fail(progress: Any) -> None:
        if progress.step == broken_after:
            raise BrokenOffError

    common: dict[str, Any] = {
        "eval_every": 5,
        "checkpoint_every": 3,
        "gradient_accumulation_steps": 2,
        "coherence_loss_weight": 0.1,
        "kuramoto_loss_weight": 0.05,
    }
    straight_model, model = with_dropout(), with_dropout()
    straight = trainer(straight_model, True, **common, output_dir=tmp_path / "straight").train()
    with pytest.raises(BrokenOffError):
        trainer(with_dropout(), True, fail, **common, output_dir=tmp_path / "broken").train()
    torch.manual_seed(77)
    result = trainer(model, True, **common, output_dir=tmp_path / "broken").train(tmp_path / "broken")

    for one, other in zip(model.parameters(), straight_model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert result.evaluations == straight.evaluations
    assert (result.final_loss, result.best_loss) == (straight.final_loss, straight.best_loss)
    assert _without_seconds(result.history) == _without_seconds(straight.history)
    assert [line.get("step") for line in result.history if "loss" in line] == list(range(1, 13))
    states = [read_checkpoint(tmp_path / name / "checkpoints") for name in ("straight", "broken")]
    for number, moments in states[0]["optimisers"][0]["state"].items():
        for name, tensor in moments.items():
            assert torch.equal(states[1]["optimisers"][0]["state"][number][name], tensor), name


def test_dropout_of_the_base_takes_part_and_depends_on_the_seed_alone() -> None:
    results = []
    for seed, global_seed in ((0, 1), (0, 2), (3, 1)):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        results.append(trainer(with_dropout(), max_steps=3, batch_size=5, seed=seed).train().final_loss)
        assert torch.equal(torch.get_rng_state(), before)
    assert results[0] == results[1] != results[2]


def test_checkpoints_hold_the_grafted_layers_and_nothing_of_the_base(tmp_path: Path) -> None:
    model = grafted()
    result = trainer(model, output_dir=tmp_path, checkpoint_every=5).train()
    assert [step for step, _ in steps_in(tmp_path / "checkpoints")] == [10, 12]
    assert result.checkpoint_path == tmp_path / "checkpoints" / "step-00000012.ckpt"
    tensors = read_checkpoint(tmp_path / "checkpoints")["tensors"]
    names = {f"fusion_layers.{name}" for name, _ in model.fusion_layers.named_parameters()}
    assert names <= set(tensors)
    assert all(name.startswith("fusion_layers.") for name in tensors)
    assert sum(tensor.numel() for tensor in tensors.values()) < 1.1 * result.num_parameters + 1000


def test_the_files_of_a_run_are_there_and_fit_another_wrapper(tmp_path: Path) -> None:
    model = grafted()
    result = trainer(model, True, output_dir=tmp_path, eval_every=4).train()
    assert result.log_path is not None and result.weights_path is not None and result.plot_path is not None
    assert result.plot_path.read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in result.log_path.read_text().splitlines()]
    assert lines == result.history
    assert {"lm_loss", "coherence", "kuramoto_order", "tokens", "gradient_norm"} <= lines[0].keys()
    assert [evaluation.step for evaluation in result.evaluations] == [4, 8, 12]
    assert json.dumps(result.to_dict())
    other = grafted()
    other.load_fusion_weights(result.weights_path)
    for one, two in zip(model.fusion_parameters(), other.fusion_parameters(), strict=True):
        assert torch.equal(one, two)
    assert load_file(tmp_path / "checkpoints" / "best.safetensors")


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = trainer(grafted(), max_steps=2).train()
    assert (result.log_path, result.checkpoint_path, result.weights_path, result.plot_path) == (None,) * 4
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_there_is_a_warning_and_no_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(training, "find_spec", lambda name: None)
    assert trainer(grafted(), max_steps=1, output_dir=tmp_path).train().plot_path is None
    assert "pip install '.[plots]'" in caplog.text


def test_early_stopping_ends_with_the_best_weights() -> None:
    model = grafted()
    run = trainer(
        model,
        True,
        max_steps=300,
        eval_every=2,
        early_stopping_patience=2,
        learning_rate=0.3,
        max_grad_norm=None,
    )
    result = run.train()
    assert result.stopped_by == "early_stopping"
    assert result.steps < 300
    values = [evaluation.values["loss"] for evaluation in result.evaluations]
    assert result.best_loss == min(values) < values[-1]
    assert run.evaluate()["loss"] == result.best_loss


def test_evaluations_are_means_over_tokens_without_dropout() -> None:
    model = with_dropout().train()
    whole = trainer(model, True, batch_size=20).evaluate()
    single = trainer(model, True, batch_size=1).evaluate()
    assert model.training
    assert whole == pytest.approx(single, rel=1e-4)
    assert set(whole) == {"loss", "coherence", "kuramoto_order"}
    assert math.isfinite(whole["loss"])


def test_a_run_in_bf16_learns() -> None:
    result = trainer(grafted(), max_steps=30, precision="bf16").train()
    assert result.final_loss < result.history[0]["loss"]


@pytest.mark.parametrize("weight", ["coherence", "kuramoto"])
def test_a_loss_that_the_model_has_not_is_refused(weight: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = grafted()
    others = {"coherence": torch.ones(()), "kuramoto": torch.ones(())}
    del others[weight]
    monkeypatch.setattr(model, "auxiliary_losses", lambda: others)
    wanted = f"expected 0 for this model: its grafted layers measure {next(iter(others))}"
    message = f"{weight}_loss_weight: got 0.1, {wanted}"
    with pytest.raises(TrainingConfigError, match=message):
        trainer(model, **{f"{weight}_loss_weight": 0.1}).train()


def test_a_model_without_grafted_layers_is_refused() -> None:
    with pytest.raises(TrainingConfigError, match="model: got LlamaForCausalLM, expected a ResonanceWrapper"):
        FusionTrainer(tiny_llama(0), dataset(), TOKENIZER)


def test_stopping_early_needs_something_to_evaluate_on() -> None:
    with pytest.raises(TrainingConfigError, match="early_stopping_patience: got 1 without eval_dataset"):
        trainer(grafted(), eval_every=1, early_stopping_patience=1)
    with pytest.raises(TrainingConfigError, match="eval_dataset: got None"):
        trainer(grafted()).evaluate()


def test_states_that_are_not_finite_stop_training_and_change_nothing() -> None:
    model = grafted(FusionConfig(fusion_positions=(1,)))
    seen: list[torch.Tensor] = []

    def spoil(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        seen.append(torch.cat([p.detach().flatten() for p in model.fusion_parameters()]))
        return output * (torch.nan if len(seen) == 3 else 1.0)

    model.base_model.model.embed_tokens.register_forward_hook(spoil)
    with pytest.raises(NonFiniteStateError, match="layer 1"):
        trainer(model).train()
    assert torch.equal(torch.cat([p.detach().flatten() for p in model.fusion_parameters()]), seen[2])
    assert not torch.equal(seen[1], seen[2])
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in model.base_model.parameters())
    assert not model.training


def test_texts_beyond_the_context_are_refused() -> None:
    long = create_fusion_dataset(["the " * 400], TOKENIZER, max_length=300)
    with pytest.raises(TrainingDataError, match="got 300 tokens, expected at most 256, the model's context"):
        FusionTrainer(grafted(), long, TOKENIZER, TrainingConfig(max_steps=9, batch_size=2)).train()


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    trainer(grafted(), output_dir=tmp_path, max_steps=2).train()
    with pytest.raises(
        CheckpointMismatchError, match=r"auxiliary_loss_weights\.coherence: the checkpoint has 0"
    ):
        trainer(grafted(), max_steps=2, coherence_loss_weight=0.2).train(tmp_path)
    with pytest.raises(CheckpointMismatchError, match=r"\(frozen\)"):
        trainer(grafted(seed=1), max_steps=2).train(tmp_path)
    other = FusionConfig(fusion_positions=(0, 2), fusion_alpha=0.5)
    with pytest.raises(CheckpointMismatchError, match=r"fusion_config.fusion_alpha: the checkpoint has 3.0"):
        trainer(grafted(other), max_steps=2).train(tmp_path)
    with pytest.raises(CheckpointMismatchError, match=r"another source of data: .*sampled_ids_sha256"):
        FusionTrainer(
            grafted(),
            dataset(["another text entirely"] * 5),
            TOKENIZER,
            TrainingConfig(learning_rate=3e-3, max_steps=2, batch_size=3),
        ).train(tmp_path)
    with pytest.raises(CheckpointMismatchError, match="choose another folder"):
        trainer(grafted(), output_dir=tmp_path, max_steps=2).train()
