"""Loading, tokens, cards, threads and the end of sessions."""

from __future__ import annotations

import copy
import gc
import json
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from families import VOCAB, make_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from braid_rpc.errors import (
    ConfigError,
    ConflictError,
    ContextLengthError,
    CorruptWeightsError,
    InvalidRequestError,
    ShapeMismatchError,
    StepOrderError,
    UnknownModelError,
    UnknownSessionError,
    UnsupportedModelError,
)
from braid_rpc.steps import OpenSession, Segment, SpanStep
from braid_services.shard import spans
from braid_services.shard.backend import ShardBackend
from braid_services.shard.config import ShardConfig

from .conftest import Driver, make_backend, plain_logits

# float32: sums taken in another order.
TOLERANCE = 1e-5


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = {word: i for i, word in enumerate(["[UNK]", "once", "upon", "a", "time", "naïve"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(2)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template="{{ messages }}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_model("llama").save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def load(folder: Path | str, **settings: Any) -> ShardBackend:
    return ShardBackend.load(ShardConfig(**{"name": "code", "model": str(folder), **settings}))


@pytest.mark.parametrize("model", ["stories260K", "aidreams260K"])
def test_real_models_load_and_keep_their_numbers_when_cut(model: str, shared_dir: Path) -> None:
    backend = load(shared_dir / "models" / model)
    ids, offsets = backend.tokenize("Once upon a time, there was a little girl named Lily.")
    assert offsets[0][0] == 0
    assert backend.detokenize(ids) == "Once upon a time, there was a little girl named Lily."
    driver = Driver(backend)
    driver.stream.open([OpenSession("a", len(ids))])
    prompt = torch.tensor(ids)
    got = [driver.run([("a", 0, prompt[:5])], cuts=(1, 2, 3)).logits]
    got += [driver.run([("a", i, prompt[i : i + 1])], cuts=(2,)).logits for i in range(5, len(ids))]
    expected = plain_logits(backend, prompt)
    worst = float((torch.cat([g for g in got if g is not None]) - expected).abs().max())
    assert worst <= TOLERANCE * float(expected.abs().max())
    driver.stream.end()


def test_the_card_says_what_is_served(folder: Path) -> None:
    card = load(folder, cache_bytes=10**6, block_tokens=16).card
    assert (card.name, card.model_id, card.family) == ("code", str(folder), "llama")
    assert (card.num_layers, card.width, card.vocab_size, card.context_length) == (3, 32, VOCAB, 64)
    assert (card.dtype, card.eos_token_ids, card.block_tokens) == ("float32", (1,), 16)
    assert card.cache_bytes_total == card.cache_bytes_free == 10**6
    assert card.num_parameters == sum(p.numel() for p in make_model("llama").parameters())


def test_the_model_hash_survives_saving_and_sees_any_change(folder: Path) -> None:
    in_memory = make_backend(make_model("llama"), make_tokenizer())
    loaded = load(folder)
    assert loaded.card.model_hash == in_memory.card.model_hash
    assert loaded.card.tokenizer_hash == in_memory.card.tokenizer_hash != ""
    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[3, 5] += 1e-3
    assert make_backend(model).card.model_hash != in_memory.card.model_hash
    assert make_backend(make_model("llama", rms_norm_eps=1e-4)).card.model_hash != in_memory.card.model_hash


def test_tokens_carry_character_offsets_and_are_never_truncated(folder: Path) -> None:
    backend = load(folder)
    ids, offsets = backend.tokenize("once upon a naïve time")
    assert ids == [1, 2, 3, 5, 4]
    assert ["once upon a naïve time"[start:end] for start, end in offsets][3] == "naïve"
    assert backend.detokenize([1, 4]) == "once time"
    assert json.loads(backend.tokenizer_json())["truncation"] is None
    assert backend.chat_format.template == "{{ messages }}"
    with pytest.raises(InvalidRequestError, match=str(VOCAB)):
        backend.detokenize([VOCAB])


def test_a_model_without_a_tokenizer_says_so_when_asked(tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path)
    backend = load(tmp_path)
    assert backend.card.tokenizer_hash == ""
    for ask in (backend.tokenizer_json, lambda: backend.tokenize("x"), lambda: backend.detokenize([1])):
        with pytest.raises(UnsupportedModelError, match="without a tokenizer"):
            ask()


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match="nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(UnknownModelError, match=r"config\.json"):
        load(tmp_path)


def test_a_name_that_no_hub_knows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnknownModelError, match="braid-tests/no-such-model"):
        load("braid-tests/no-such-model")


def test_a_config_of_no_language_model_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "not-a-model"}')
    with pytest.raises(UnsupportedModelError, match="not-a-model"):
        load(folder)


def test_damaged_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptWeightsError, match="cannot read the weights"):
        load(folder)


def test_missing_tensors_are_refused_instead_of_made_up(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CorruptWeightsError, match=r"layers\.1\.mlp\.down_proj"):
        load(folder)


@pytest.mark.parametrize(("key", "value"), [("dtype", "int3"), ("device", "abacus"), ("device", "cuda:99")])
def test_wrong_settings_are_named(key: str, value: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=f"{key}: got '{value}'"):
        load(folder, **{key: value})


def test_wrong_numbers_are_caught_by_the_parity_check(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = spans.SpanRun.advance

    def sloppy(run: spans.SpanRun, end_layer: int, hidden: torch.Tensor | None) -> torch.Tensor:
        return honest(run, end_layer, hidden) * 1.001

    monkeypatch.setattr(spans.SpanRun, "advance", sloppy)
    with pytest.raises(UnsupportedModelError, match="llama: logits of a run span by span differ"):
        make_backend(make_model("llama"))


def test_an_unknown_argument_to_attention_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")
    for layer in model.model.layers:
        forward = layer.self_attn.forward

        def with_bias(*args: Any, forward: Any = forward, **kwargs: Any) -> Any:
            return forward(*args, alibi_slopes=torch.ones(4), **kwargs)

        monkeypatch.setattr(layer.self_attn, "forward", with_bias)
    with pytest.raises(UnsupportedModelError, match="alibi_slopes"):
        make_backend(model)


def test_long_rotary_tables_limit_the_context_to_where_they_do_not_change() -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "original_max_position_embeddings": 24,
    }
    model = make_model("phi3", rope_parameters=rope, original_max_position_embeddings=24)
    assert make_backend(model).context_length == 24


def test_two_backends_may_serve_one_model() -> None:
    model, ids = make_model("llama"), torch.arange(6)
    backends = [make_backend(model), make_backend(model)]
    assert backends[0].spans is backends[1].spans
    backends.append(make_backend(copy.deepcopy(model)))
    for backend in backends:
        driver = Driver(backend)
        driver.stream.open([OpenSession("a", 6)])
        got = driver.run([("a", 0, ids)], logit_rows=(2, 5)).logits
        assert got is not None
        expected = plain_logits(backend, ids)[[2, 5]]
        assert float((got - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())
        driver.stream.end()


def test_a_path_from_the_home_folder_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load(f"~/{folder.name}").tokenizer is not None


def test_the_model_stays_usable_on_its_own_while_a_run_is_suspended(backend: ShardBackend) -> None:
    ids = torch.arange(6)
    with torch.inference_mode():
        before = backend.model(input_ids=ids[None]).logits
        forward = backend.forward(ids, [6])
        hidden = forward.run_to(1)
        between = backend.model(input_ids=ids[None]).logits
        _, after = forward.finish(hidden)
    assert torch.equal(before, between)
    assert torch.allclose(after, before[0], atol=TOLERANCE)


def test_many_streams_on_many_threads_do_not_mix(backend: ShardBackend) -> None:
    def talk(number: int) -> float:
        ids = torch.randint(VOCAB, (16,), generator=torch.Generator().manual_seed(number))
        driver = Driver(backend)
        driver.stream.open([OpenSession("same name", 2)])
        got = [driver.run([("same name", i, ids[i : i + 1])], cuts=(1, 2)).logits for i in range(16)]
        driver.stream.end()
        expected = plain_logits(backend, ids)
        difference = (torch.cat([g for g in got if g is not None]) - expected).abs().max()
        return float(difference / expected.abs().max())

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(talk, range(12))) <= TOLERANCE


def test_a_suspended_batch_stays_on_its_thread(backend: ShardBackend) -> None:
    stream = backend.stream()
    stream.open([OpenSession("a", 0)])
    hidden = stream.step(SpanStep(1, 0, 1, False, (Segment("a", 0, 2),), torch.arange(2))).hidden
    with ThreadPoolExecutor(1) as pool:
        going_on = pool.submit(stream.step, SpanStep(1, 1, 3, True, hidden=hidden))
        with pytest.raises(ConflictError, match="another thread"):
            going_on.result()
        pool.submit(stream.end).result()
    with pytest.raises(ConflictError, match="ended"):
        stream.open([OpenSession("b", 0)])


def test_a_first_span_sent_again_after_a_later_one_failed_is_not_answered_from_memory(
    backend: ShardBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("inside the model")

    stream = backend.stream()
    stream.open([OpenSession("a", 4)])
    step = SpanStep(1, 0, 1, False, (Segment("a", 0, 4),), torch.arange(4), (3,))
    hidden = stream.step(step).hidden
    with monkeypatch.context() as broken, pytest.raises(RuntimeError, match="inside the model"):
        broken.setattr(spans.SpanRun, "finish", fail)
        stream.step(SpanStep(1, 1, 3, True, hidden=hidden))
    with pytest.raises(StepOrderError, match="above the last"):
        stream.step(step)
    stream.end()


def test_a_dropped_forward_is_freed_without_the_cycle_collector(backend: ShardBackend) -> None:
    gc.disable()
    try:
        forward = backend.forward(torch.arange(4), [4])
        forward.run_to(1)
        run = weakref.ref(forward._run)
        assert run() is not None
        del forward
        assert run() is None
    finally:
        gc.enable()


def test_sessions_that_nobody_touches_are_evicted_even_if_nobody_calls() -> None:
    backend = make_backend(make_model("llama"), session_ttl_s=0.2)
    stream = backend.stream()
    stream.open([OpenSession("a", 8)])
    hidden = stream.step(SpanStep(1, 0, 1, False, (Segment("a", 0, 2),), torch.arange(2))).hidden
    wait_until(lambda: backend.pool.num_sessions == 0)
    assert backend.card.cache_bytes_free == backend.card.cache_bytes_total
    with pytest.raises((UnknownSessionError, StepOrderError)):
        stream.step(SpanStep(1, 1, 3, True, hidden=hidden))
    with pytest.raises(UnknownSessionError, match="evicted"):
        stream.crop("a", 0)
    stream.open([OpenSession("a", 8)])
    stream.end()
    assert backend.card.cache_bytes_free == backend.card.cache_bytes_total


def wait_until(holds: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "waited too long"
        threading.Event().wait(0.01)


def test_a_forward_refuses_what_does_not_fit(backend: ShardBackend) -> None:
    ids = torch.arange(6)
    with pytest.raises(ContextLengthError, match=r"65 tokens.*64"):
        backend.forward(torch.zeros(65, dtype=torch.long), [65])
    with pytest.raises(ShapeMismatchError):
        backend.forward(ids, [3, 4])
    with pytest.raises(InvalidRequestError, match="logit_rows"):
        backend.forward(ids, [6], logit_rows=[6])
    forward = backend.forward(ids, [6])
    with pytest.raises(StepOrderError, match="run_to"):
        forward.resume(torch.zeros(6, 32), 1)
    forward.run_to(2)
    with pytest.raises(StepOrderError, match="got 1"):
        forward.run_to(1)
    with pytest.raises(StepOrderError, match="finish"):
        forward.run_to(3)
    with pytest.raises(ShapeMismatchError, match=r"\(5, 32\)"):
        forward.resume(torch.zeros(5, 32), 2)
    forward.finish()
    with pytest.raises(StepOrderError, match="finished"):
        forward.finish()


def test_gradients_through_spans_equal_those_of_a_plain_forward(backend: ShardBackend) -> None:
    ids = torch.arange(10)
    shift = torch.zeros(32, requires_grad=True)
    forward = backend.forward(ids, [4, 6])
    _, logits = forward.finish(forward.run_to(1) + shift)
    logits.log_softmax(-1)[:, 3].sum().backward()

    plain_shift = torch.zeros(32, requires_grad=True)

    def add(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0] + plain_shift, *args[1:])

    handle = backend.spans.layers[1].register_forward_pre_hook(add)
    for part in torch.split(ids, [4, 6]):
        backend.model(input_ids=part[None]).logits[0].log_softmax(-1)[:, 3].sum().backward()
    handle.remove()
    assert torch.allclose(shift.grad, plain_shift.grad, rtol=1e-4, atol=TOLERANCE)


def test_base_parameters_are_untouched_by_backward(backend: ShardBackend) -> None:
    before = {name: parameter.clone() for name, parameter in backend.model.named_parameters()}
    forward = backend.forward(torch.arange(5), [5])
    scale = torch.ones((), requires_grad=True)
    _, logits = forward.finish(forward.run_to(1) * scale)
    logits.sum().backward()
    for name, parameter in backend.model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
        assert not parameter.requires_grad
