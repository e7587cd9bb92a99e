"""`BraidedLLM` and `ModelWrapper`: what the braiding guide does with them works, and gives the right numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from braids import oracle_log_probs, shaken
from models import save_tiny_model, tiny_backend
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW

from braid_orchestrator import BraidedLLM, ModelWrapper, train_fusion_layers
from braid_orchestrator.config.values import BraidConfig, FusionConfig, PointConfig, ReadoutConfig
from braid_rpc.errors import (
    ConfigError,
    CorruptWeightsError,
    InvalidRequestError,
    ShapeMismatchError,
    UnknownModelError,
    UnknownVersionError,
    WeightMismatchError,
)
from braid_services.shard.config import ShardConfig

# Sums of a few thousand float32 products in another order.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def wrappers() -> list[ModelWrapper]:
    return [
        ModelWrapper.from_backend(tiny_backend("left", 1, width=32, num_layers=3)),
        ModelWrapper.from_backend(tiny_backend("right", 2, width=48, num_layers=4)),
    ]


def make(wrappers: list[ModelWrapper], **options: object) -> BraidedLLM:
    options = {"fusion_strategy": "mlp", "fusion_layers": [1, 2], **options}
    return BraidedLLM(wrappers, **options)  # type: ignore[arg-type]


def test_an_untrained_braid_is_its_anchor(wrappers: list[ModelWrapper]) -> None:
    braided = make(wrappers)
    inputs = wrappers[0].encode("def main(self):")
    alone = wrappers[0].forward(**inputs)
    output = braided.forward(**inputs)
    torch.testing.assert_close(output.logits, alone.logits, atol=TOLERANCE, rtol=TOLERANCE)
    assert len(output.hidden_states) == len(alone.hidden_states) == wrappers[0].num_layers + 1
    for braided_state, own_state in zip(output.hidden_states, alone.hidden_states, strict=True):
        torch.testing.assert_close(braided_state, own_state, atol=TOLERANCE, rtol=TOLERANCE)
    with braided:
        assert braided.generate("def main", 8) == wrappers[0].generate("def main", 8)


def test_use_braiding_false_is_the_anchor_alone(wrappers: list[ModelWrapper]) -> None:
    with shaken(make(wrappers)) as braided:
        alone = wrappers[0].generate("the thing", 12)
        assert braided.generate("the thing", 12, use_braiding=False) == alone
        assert braided.generate("the thing", 12) != alone


@pytest.mark.parametrize("readout", ["mixture", "gate"])
def test_forward_equals_the_oracle(wrappers: list[ModelWrapper], readout: str) -> None:
    braided = shaken(make(wrappers, fusion_strategy=["router", "attention"], readout=readout))
    ids = wrappers[0].encode("if the caller is right")["input_ids"]
    expected = oracle_log_probs(braided.plan, braided.stack, braided.backends, ids[0].tolist())
    output = braided.forward(ids)
    torch.testing.assert_close(output.logits[0], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.weights.sum(-1), torch.ones(ids.shape), atol=TOLERANCE, rtol=0.0)


def test_generation_follows_forward(wrappers: list[ModelWrapper]) -> None:
    """Greedy tokens of the engine, with caches, are the best of the whole text at once."""
    with shaken(make(wrappers, readout="gate")) as braided:
        prompt = wrappers[0].encode("import the")["input_ids"]
        ids = prompt
        for _ in range(10):
            ids = torch.cat([ids, braided.forward(ids).logits[:, -1:].argmax(-1)], dim=1)
        completion = braided.complete("import the", 10, ignore_eos=True)
        assert [token.token_id for token in completion.tokens] == ids[0, prompt.shape[1] :].tolist()
        assert sum(completion.weights.values()) == pytest.approx(1.0, abs=1e-5)


def test_padding_on_either_side_changes_nothing(wrappers: list[ModelWrapper]) -> None:
    braided = shaken(make(wrappers, readout="gate"))
    texts = ["a longer text here", "short"]
    batch = wrappers[0].encode(texts)
    together = braided.forward(**batch, labels=batch["input_ids"])
    length = int(batch["attention_mask"][1].sum())
    left = {name: value.clone() for name, value in batch.items()}
    for name in left:
        left[name][1] = batch[name][1].roll(batch[name].shape[1] - length)
    on_the_left = braided.forward(**left, labels=left["input_ids"])
    alone = [braided.forward(wrappers[0].encode(text)["input_ids"]) for text in texts]
    for index, output in enumerate(alone):
        size = output.logits.shape[1]
        torch.testing.assert_close(together.logits[index, :size], output.logits[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(on_the_left.logits[1, -length:], alone[1].logits[0], atol=1e-4, rtol=1e-4)
    assert not together.logits[1, length:].any()
    assert together.loss is not None and on_the_left.loss is not None
    torch.testing.assert_close(together.loss, on_the_left.loss, atol=TOLERANCE, rtol=TOLERANCE)


def test_the_loss_is_that_of_transformers(wrappers: list[ModelWrapper]) -> None:
    batch = wrappers[0].encode(["the first of them", "two"])
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    expected = wrappers[0].model(**batch, labels=labels).loss
    loss = make(wrappers).forward(**batch, labels=batch["input_ids"]).loss
    torch.testing.assert_close(loss, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_the_guides_own_training_loop(wrappers: list[ModelWrapper], tmp_path: Path) -> None:
    braided = make(wrappers, fusion_strategy="learned_weighted", fusion_layers=[0, 1, 2])
    before = [parameter.clone() for model in braided.models for parameter in model.parameters()]
    batch = wrappers[0].encode(["the way that it is", "the way it was"])
    labels = batch["input_ids"][:, 1:]
    dataloader = [{**batch, "labels": labels}] * 15

    def compute_loss(logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten())

    for model in braided.models:
        for param in model.parameters():
            param.requires_grad = False
    for param in braided.fusion_modules.parameters():
        param.requires_grad = True
    optimizer = AdamW(braided.fusion_modules.parameters(), lr=1e-2)
    losses = []
    for batch in dataloader:
        output = braided.forward(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        loss = compute_loss(output.logits, batch["labels"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    braided.save_fusion_layers(tmp_path / "fusion_weights.pt")

    assert losses[-1] < 0.9 * losses[0]
    after = [parameter for model in braided.models for parameter in model.parameters()]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    fresh = make(wrappers, fusion_strategy="learned_weighted", fusion_layers=[0, 1, 2])
    fresh.load_fusion_layers(tmp_path / "fusion_weights.pt")
    torch.testing.assert_close(
        fresh.forward(batch["input_ids"]).logits, braided.forward(batch["input_ids"]).logits
    )


def test_every_fusion_parameter_gets_a_gradient(wrappers: list[ModelWrapper]) -> None:
    braided = shaken(make(wrappers, readout="gate"))
    batch = wrappers[0].encode(["all of it", "and some"])
    loss = braided.forward(**batch, labels=batch["input_ids"]).loss
    assert loss is not None
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in braided.parameters())


class Halving(nn.Module):
    def __init__(self, num_models: int, hidden_dim: int) -> None:
        super().__init__()
        self.map = nn.Linear(num_models * hidden_dim, hidden_dim)

    def forward(self, hidden_states: list[Tensor]) -> Tensor:
        return self.map(torch.cat(hidden_states, dim=-1)) / 2


def test_a_class_of_ones_own_fuses(wrappers: list[ModelWrapper]) -> None:
    braided = make(wrappers, fusion_strategy=Halving)
    assert isinstance(braided.fusion_modules["1"].strategy, Halving)
    with shaken(braided):
        assert braided.generate("anything", 4, ignore_eos=True)


def test_modules_are_exchanged_by_layer(wrappers: list[ModelWrapper], tmp_path: Path) -> None:
    braided = shaken(make(wrappers))
    ids = wrappers[0].encode("some text")["input_ids"]
    before = braided.forward(ids).logits
    with braided:
        first = braided.generate("some text", 12, ignore_eos=True)
        braided.fusion_modules["2"] = Halving(2, 32)
        after = braided.forward(ids).logits
        assert (before - after).abs().max() > 1e-3
        braided.fusion_modules["0"] = Halving(2, 32)  # a layer that had no fusion point
        assert list(braided.fusion_modules) == ["0", "1", "2"]
        assert [point.layers[0] for point in braided.plan.points] == [0, 1, 2]
        torch.testing.assert_close(braided.forward(ids).logits, after)  # a new point starts without effect
        assert braided.generate("some text", 12, ignore_eos=True) != first
    braided.save_fusion_layers(tmp_path / "v1")
    with pytest.raises(WeightMismatchError, match="Halving"):
        make(wrappers, fusion_layers=[0, 1, 2]).load_fusion_layers(tmp_path / "v1")
    with pytest.raises(ConfigError, match="early"):
        braided.fusion_modules["early"] = Halving(2, 32)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors", "v1"])
def test_saved_layers_come_back(wrappers: list[ModelWrapper], tmp_path: Path, name: str) -> None:
    braided = shaken(make(wrappers, readout="gate"))
    braided.save_fusion_layers(tmp_path / name)
    fresh = make(wrappers, readout="gate")
    fresh.load_fusion_layers(tmp_path / name)
    for saved, loaded in zip(braided.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(saved, loaded)
    with pytest.raises(WeightMismatchError, match=r"readout\.kind"):
        make(wrappers).load_fusion_layers(tmp_path / name)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_damaged_files_are_refused(wrappers: list[ModelWrapper], tmp_path: Path, name: str) -> None:
    braided = make(wrappers)
    braided.save_fusion_layers(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptWeightsError, match=name):
        braided.load_fusion_layers(tmp_path / name)
    with pytest.raises(UnknownVersionError, match="nowhere"):
        braided.load_fusion_layers(tmp_path / "nowhere")


def test_a_configuration_with_its_weights(tmp_path: Path) -> None:
    folders = [save_tiny_model(tmp_path / name, seed) for seed, name in enumerate(("left", "right"))]
    config = BraidConfig(
        name="tiny",
        anchor="right",
        shards=tuple(ShardConfig(name=folder.name, model=str(folder), threads=0) for folder in folders),
        points=(PointConfig(0.5),),
        readout=ReadoutConfig("gate"),
    )
    with shaken(BraidedLLM.from_config(config)) as braided:
        braided.save_fusion_layers(tmp_path / "fusion" / "v1", {"steps": 0})
        text = braided.generate("a", 8, ignore_eos=True)
    again = BraidConfig(
        **{
            **{name: getattr(config, name) for name in config.__slots__},
            "fusion": FusionConfig(weights=str(tmp_path / "fusion")),
        }
    )
    with BraidedLLM.from_config(again) as braided:
        assert braided.generate("a", 8, ignore_eos=True) == text
        assert braided.plan.anchor == 1


def test_a_configuration_imports_what_its_points_are_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_strategy_of_its_own.py").write_text(
        "from braid_fusion import register_strategy\nfrom braid_fusion.strategies import WeightedFusion\n"
        'register_strategy("test: imported")(type("Imported", (WeightedFusion,), {}))\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    folder = save_tiny_model(tmp_path / "model", 1)
    config = BraidConfig(
        name="tiny",
        anchor="model",
        shards=(ShardConfig(name="model", model=str(folder), threads=0),),
        points=(PointConfig(0.5, strategy="test: imported"),),
        fusion=FusionConfig(imports=("a_strategy_of_its_own",)),
    )
    assert BraidedLLM.from_config(config).plan.points[0].strategy == "test: imported"


def test_models_by_name_get_different_names(tmp_path: Path) -> None:
    folder = str(save_tiny_model(tmp_path / "twin", 1))
    braided = BraidedLLM(
        [{"model_name": folder}, {"model_name": folder}, {"model_name": folder, "role": "x"}]
    )
    assert [model.name for model in braided.models] == ["twin", "twin-1", "x"]
    assert [model.role for model in braided.models] == [None, None, "x"]
    assert list(braided.fusion_modules) == ["1", "2"]  # after each quarter of three layers


def test_training_on_texts_lowers_the_loss(wrappers: list[ModelWrapper]) -> None:
    braided = make(wrappers, readout="gate")
    seen = []
    texts = ["the same again, " * 12]
    record = train_fusion_layers(
        braided, texts, num_steps=12, window=24, batch_size=4, on_progress=lambda p: seen.append(p.loss)
    )
    assert record.steps == 12
    assert seen[-1] < seen[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion_layers": [7]}, "layer 7"),
        ({"fusion_strategy": "nonsense"}, "nonsense"),
        ({"fusion_strategy": ["mlp"]}, "got 1 for 2 layers"),
        ({"readout": "vote"}, "vote"),
        ({"injection": "overwrite"}, "overwrite"),
        ({"anchor": "middle"}, "middle"),
        ({"anchor": 2}, "anchor: got 2"),
        ({"fusion_options": {"heat": 1}}, "heat"),
    ],
)
def test_wrong_options_are_named(
    wrappers: list[ModelWrapper], options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make(wrappers, **options)


def test_wrong_models_are_named(wrappers: list[ModelWrapper], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected at least one"):
        BraidedLLM([])
    with pytest.raises(ConfigError, match="second 'left'"):
        BraidedLLM([wrappers[0], wrappers[0]])
    with pytest.raises(ConfigError, match="wheight"):
        BraidedLLM([{"model_name": "x", "wheight": 1}])
    with pytest.raises(UnknownModelError):
        ModelWrapper(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="got '3bit', expected None or one of int8, nf4, 8bit, 4bit"):
        ModelWrapper(tmp_path / "nothing", quantization="3bit")


def test_quantized_models_are_braided_under_the_guides_names(wrappers: list[ModelWrapper]) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    model, tokenizer = wrappers[1].model, wrappers[1].tokenizer
    small = ModelWrapper.from_model(model, tokenizer, "small", quantization="8bit")
    assert small.backend.card.quantization == "int8"
    alone = ModelWrapper.from_model(model, tokenizer, "again", quantization="int8").generate("some text", 6)
    with make([small, wrappers[0]]) as braided:
        assert braided.generate("some text", 6, temperature=0.0) == alone


def test_wrong_inputs_are_named(wrappers: list[ModelWrapper]) -> None:
    braided = make(wrappers)
    ids = torch.ones(2, 3, dtype=torch.int64)
    with pytest.raises(ShapeMismatchError, match="input_ids"):
        braided.forward(ids[0])
    with pytest.raises(ShapeMismatchError, match="attention_mask"):
        braided.forward(ids, attention_mask=ids[:, :2])
    with pytest.raises(InvalidRequestError, match="text 1 has no token"):
        braided.forward(ids, attention_mask=torch.tensor([[1, 1, 1], [0, 0, 0]]))
    with pytest.raises(InvalidRequestError, match="empty"):
        wrappers[0].encode("")


def test_caches_are_free_after_generating(wrappers: list[ModelWrapper]) -> None:
    with make(wrappers, readout="gate") as braided:
        free = [backend.card.cache_bytes_free for backend in braided.backends]
        braided.generate("some text", 6)
        next(iter(braided.stream("some text", 50)))
    assert [backend.card.cache_bytes_free for backend in braided.backends] == free


def test_importing_the_package_loads_no_torch() -> None:
    program = "import sys, braid_orchestrator; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", program], check=True)


PROGRAM = """
import os, signal, threading
from models import tiny_backend
from braid_orchestrator import BraidedLLM, ModelWrapper

parents = [ModelWrapper.from_backend(tiny_backend(name, 1, width=256, num_layers=8)) for name in ("a", "b")]
events = BraidedLLM(parents, fusion_strategy="mlp", fusion_layers=[1, 2]).stream("def main", 40)
next(events), next(events)
"""


def run_program(ending: str) -> subprocess.CompletedProcess[str]:
    tests = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), *filter(None, sys.path)])}
    program = [sys.executable, "-c", PROGRAM + ending]
    return subprocess.run(program, capture_output=True, text=True, env=environment, check=False, timeout=200)


@pytest.mark.parametrize("ending", ["", "os.kill(os.getpid(), signal.SIGINT)"], ids=["end", "interrupt"])
def test_a_program_that_ends_while_generating_ends_quietly(ending: str) -> None:
    done = run_program(ending)
    assert "engine" not in done.stderr
    assert done.stderr.count("Traceback") == (1 if ending else 0)
    assert (done.returncode != 0) == bool(ending), done.stderr


def test_a_thread_that_outlives_the_main_one_generates_to_the_end() -> None:
    count = "print(len(list(events)))"
    here, there = (run_program(one) for one in (count, f"threading.Thread(target=lambda: {count}).start()"))
    assert (there.returncode, there.stderr) == (0, "")
    assert there.stdout == here.stdout
    assert int(there.stdout) > 10
