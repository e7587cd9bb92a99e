"""Shards with 8-bit and 4-bit weights: their own numbers however they are cut or packed, and honest cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import VOCAB
from models import save_tiny_model, tiny_llama
from transformers import GPT2Config, GPT2LMHeadModel

from braid_rpc.errors import ConfigError
from braid_rpc.steps import OpenSession
from braid_services.shard import quantization
from braid_services.shard.backend import ShardBackend
from braid_services.shard.config import ShardConfig
from braid_services.shard.fingerprint import model_hash
from braid_services.shard.quantization import QUANTIZATIONS, Int8Linear, Linear4bitOnCpu

from .conftest import Driver, make_backend, plain_logits

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

# Relative to the largest logit: the arithmetic is that of the plain forward, in another order.
PARITY = {torch.float32: 2e-5, torch.bfloat16: 1e-1}
# How far quantized weights are from what they were, relative to their norm: of normally distributed ones,
# 127 steps to each side of zero leave 0.6 to 0.8 %, the 16 of nf4 in blocks of 64 about 9 %.
WEIGHT_ERROR = {"int8": 0.015, "nf4": 0.12}
# float32: a row's numbers in a batch and alone (property 5).
BATCH_TOLERANCE = 1e-4


def backend_of(kind: str, dtype: torch.dtype = torch.float32) -> ShardBackend:
    return make_backend(tiny_llama(3, vocab_size=VOCAB).to(dtype), quantization=kind)


def gpt2() -> GPT2LMHeadModel:
    """Its layers are transposed (Conv1D), and its head is its embedding."""
    torch.manual_seed(4)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model.eval()


def dequantized(layer: torch.nn.Module) -> torch.Tensor | None:
    """The weights (N, K) that a layer stands for, from their definition; None: it isn't quantized."""
    if isinstance(layer, Int8Linear):
        return layer.weight.float() * layer.scale[:, None]
    if isinstance(layer, Linear4bitOnCpu):
        state = layer.weight.quant_state
        packed = layer.weight.flatten().long()
        codes = state.code[torch.stack((packed >> 4, packed & 15), dim=1)].view(-1, state.blocksize)
        return (codes * state.absmax[:, None]).view(layer.out_features, layer.in_features)
    return None


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.float() - expected.float()).abs().max() / expected.abs().max())


def ids_of(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCAB, (length,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", PARITY)
@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_cutting_a_quantized_model_anywhere_changes_nothing(kind: str, dtype: torch.dtype) -> None:
    backend = backend_of(kind, dtype)
    ids = ids_of(12)
    expected = plain_logits(backend, ids)
    driver = Driver(backend)
    for cuts in ((), (1,), (0, 1, 2)):
        driver.stream.open([OpenSession(str(cuts), 12)])
        first = driver.run([(str(cuts), 0, ids[:7])], cuts).logits
        later = driver.run([(str(cuts), 7, ids[7:])], cuts).logits
        assert first is not None
        assert later is not None
        assert relative_error(torch.cat([first, later]), expected) <= PARITY[dtype]
    driver.stream.end()


@pytest.mark.parametrize("kind", QUANTIZATIONS)
@pytest.mark.parametrize("make", [lambda: tiny_llama(3, vocab_size=VOCAB), gpt2], ids=["llama", "gpt2"])
def test_a_quantized_model_is_the_model_with_rounded_weights(kind: str, make: Any) -> None:
    model = make()
    backend = make_backend(model, quantization=kind)
    rounded = make()
    num_rounded = 0
    for name, layer in backend.model.named_modules():
        weight_NK = dequantized(layer)
        if weight_NK is None:
            continue
        num_rounded += 1
        own = rounded.get_submodule(name)
        given = own.weight if isinstance(own, torch.nn.Linear) else own.weight.T
        with torch.no_grad():
            assert 1e-4 < float((weight_NK - given).norm() / given.norm()) <= WEIGHT_ERROR[kind], name
            given.copy_(weight_NK)
    assert num_rounded == sum(
        type(one).__name__ in ("Linear", "Conv1D") and "lm_head" not in name
        for name, one in model.named_modules()
    )
    ids = ids_of(12)
    with torch.inference_mode():
        expected, plain = (one(input_ids=ids[None]).logits[0] for one in (rounded, model))
    got = plain_logits(backend, ids)
    assert relative_error(got, expected) <= 1e-4
    assert relative_error(got, plain) > 1e-3


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_an_outlier_in_one_session_does_not_reach_another(kind: str) -> None:
    """The reason why int8 quantizes weights only: LLM.int8 chooses its outlier columns over all packed rows."""
    backend = make_backend(tiny_llama(3, width=128, vocab_size=VOCAB), quantization=kind)
    driver = Driver(backend)
    ids = ids_of(5)

    def widen(hidden: torch.Tensor) -> torch.Tensor:
        loud = hidden.clone()
        loud[5:, 7] = 1e3  # still above LLM.int8's threshold of 6 after the layer's norm
        return loud

    driver.stream.open([OpenSession("alone", 5), OpenSession("packed", 5), OpenSession("loud", 5)])
    alone = driver.run([("alone", 0, ids)], cuts=(1,)).logits
    packed = driver.run([("packed", 0, ids), ("loud", 0, ids_of(5, 1))], cuts=(1,), change=widen).logits
    assert alone is not None
    assert packed is not None
    assert relative_error(packed[:5], alone) <= BATCH_TOLERANCE
    driver.stream.end()


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_gradients_flow_through_quantized_layers_to_injected_states(kind: str) -> None:
    backend = backend_of(kind)
    before = model_hash(backend.model)
    ids = ids_of(6)

    def loss_with(push: torch.Tensor) -> torch.Tensor:
        forward = backend.forward(ids, [6])
        hidden = forward.run_to(1)
        return forward.finish(hidden + push)[1].logsumexp(-1).mean()

    push = torch.zeros(6, backend.spans.width, requires_grad=True)
    loss_with(push).backward()
    assert push.grad is not None
    direction = push.grad / push.grad.norm()
    step = 0.05
    with torch.no_grad():
        slope = float(loss_with(step * direction) - loss_with(-step * direction)) / (2 * step)
    assert slope == pytest.approx(float(push.grad.norm()), rel=0.02)
    assert model_hash(backend.model) == before


@pytest.mark.parametrize(("alias", "kind"), [("8bit", "int8"), ("4bit", "nf4")])
def test_a_folder_loads_under_either_name_and_its_card_says_so(alias: str, kind: str, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", 1)
    plain = ShardBackend.load(ShardConfig("a", str(folder), threads=0))
    loaded = [
        ShardBackend.load(ShardConfig("a", str(folder), threads=0, quantization=name, dtype=dtype))
        for name, dtype in ((alias, "float32"), (kind, "bfloat16"))
    ]
    assert [backend.card.quantization for backend in (plain, *loaded)] == ["", kind, kind]
    assert plain.card.model_hash != loaded[0].card.model_hash == loaded[1].card.model_hash
    assert plain.card.num_parameters == loaded[0].card.num_parameters == loaded[1].card.num_parameters
    in_memory = make_backend(tiny_llama(1), quantization=kind)
    assert in_memory.card.model_hash == loaded[0].card.model_hash
    ids = ids_of(9)
    assert torch.equal(plain_logits(in_memory, ids), plain_logits(loaded[0], ids))


def test_the_two_kinds_have_hashes_of_their_own() -> None:
    hashes = {make_backend(tiny_llama(1), quantization=kind).card.model_hash for kind in ("", *QUANTIZATIONS)}
    assert len(hashes) == 3


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_weights_take_less_memory(kind: str) -> None:
    backend = backend_of(kind)
    layer = backend.spans.layers[0].mlp.down_proj
    full_bytes = layer.in_features * layer.out_features * 4
    assert layer.weight.nbytes == full_bytes // {"int8": 4, "nf4": 8}[kind]


@pytest.mark.parametrize("double", [False, True], ids=["plain", "double"])
@pytest.mark.parametrize(
    "shape", [(64, 64), (32, 32), (64, 96), (96, 160), (20, 20), (7, 10), (33, 65), (1, 1)]
)
def test_four_bits_mean_what_they_say_whatever_the_shape(shape: tuple[int, int], double: bool) -> None:
    from bitsandbytes.functional import dequantize_blockwise
    from bitsandbytes.nn import Params4bit

    torch.manual_seed(3)
    given_NK = torch.randn(shape)
    weight = Params4bit(given_NK, requires_grad=False, quant_type="nf4", compress_statistics=double).to("cpu")
    state = weight.quant_state
    scales = state.absmax
    if double:
        scales = dequantize_blockwise(state.absmax, state.state2) + state.offset
    packed = weight.data.flatten().long()
    codes = state.code[torch.stack((packed >> 4, packed & 15), dim=1)].flatten()[: given_NK.numel()]
    weight_NK = (codes * scales.repeat_interleave(state.blocksize)[: given_NK.numel()]).view(shape)
    bias_N = torch.randn(shape[0])
    input = torch.randn(3, shape[1], requires_grad=True)
    output = Linear4bitOnCpu(weight, state, bias_N)(input)
    torch.testing.assert_close(output, input @ weight_NK.T + bias_N)
    torch.testing.assert_close(torch.autograd.grad(output.sum(), input)[0], weight_NK.sum(0).expand_as(input))


def test_a_model_stored_quantized_is_served_as_it_is(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = save_tiny_model(tmp_path / "model", 1)
    quantized = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=quantization.recipe("nf4", torch.float32), device_map={"": "cpu"}
    )
    quantized.save_pretrained(folder)
    backend = ShardBackend.load(ShardConfig("a", str(folder), threads=0))
    assert backend.card.quantization == "nf4"
    with pytest.raises(ConfigError, match=r"got 'int8', but the model is stored as 'nf4' already"):
        ShardBackend.load(ShardConfig("a", str(folder), threads=0, quantization="int8"))


def test_a_copy_is_quantized_and_the_model_left_alone() -> None:
    model = tiny_llama(1)
    before = model_hash(model)
    backend = make_backend(model, quantization="int8")
    assert backend.model is not model
    assert model_hash(model) == before
    assert not any(isinstance(module, Int8Linear) for module in model.modules())


def test_an_unknown_kind_is_refused_with_those_known(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", 1)
    with pytest.raises(ConfigError, match=r"got 'fp8', expected None or one of int8, nf4, 8bit, 4bit"):
        ShardBackend.load(ShardConfig("a", str(folder), quantization="fp8"))


def test_a_missing_package_is_named_with_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny_model(tmp_path / "model", 1)
    monkeypatch.setattr(quantization, "find_spec", lambda name: None if name == "bitsandbytes" else object())
    with pytest.raises(ConfigError, match=r"needs bitsandbytes, .* pip install '\.\[quantization\]'"):
        ShardBackend.load(ShardConfig("a", str(folder), quantization="int8"))


def test_a_device_that_cannot_is_refused() -> None:
    with pytest.raises(ConfigError, match="on device 'mps', expected one of cpu, cuda, xpu"):
        quantization.check_possible("int8", torch.device("mps"), "shard 'a'")
