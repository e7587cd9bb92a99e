"""Generating from a grafted model: the figures are those of its own forward, and what follows from them follows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from families import make_model
from grafts import graft
from models import byte_tokenizer, tiny_llama
from torch import Tensor, nn

from braid_fusion import FusionConfig, GenerationConfig, LyapunovMonitor, ResonanceGenerator, ResonanceWrapper
from braid_fusion.errors import StabilityError
from braid_fusion.grafting.generation import GeneratedToken, GenerationResult

# float32, one position at a time and all at once.
TOLERANCE = 1e-4
PROMPT = "In the other garden there"
SAMPLED: dict[str, Any] = {"max_new_tokens": 20, "seed": 3, "temperature": 0.9, "eos_token_ids": ()}


@pytest.fixture
def tokenizer() -> Any:
    return byte_tokenizer()


@pytest.fixture
def wrapper() -> ResonanceWrapper:
    return graft(tiny_llama(1), looking_back=False)


@pytest.fixture
def generator(wrapper: ResonanceWrapper, tokenizer: Any) -> ResonanceGenerator:
    return ResonanceGenerator(wrapper, tokenizer, GenerationConfig(**SAMPLED))


def flattened(model: nn.Module, rate: float) -> None:
    """From the 5th forward on, each one is less sure of what comes next than the one before."""
    calls = iter(range(10_000))

    def flatten(head: nn.Module, args: Any, logits_BTV: Tensor) -> Tensor:
        return logits_BTV * 3.0 * math.exp(-rate * max(0, next(calls) - 5))

    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    head.register_forward_hook(flatten)


def test_stability_aware_generation_as_in_the_grafting_document(tokenizer: Any) -> None:
    """The grafting document's "Stability-Aware Generation" on a model of the same family."""
    base_model = make_model("gpt2", vocab_size=262, n_positions=128)
    model = ResonanceWrapper(base_model, FusionConfig.standard(), freeze_base=True)
    gen_config = GenerationConfig(temperature=0.7, auto_temperature=True, stop_on_instability=True)
    result = ResonanceGenerator(model, tokenizer, gen_config).generate("Long ago, a miller", max_length=40)
    metrics = result.stability_metrics
    told = f"{metrics.mean_coherence:.3f} {metrics.lyapunov_estimate:.4f} {metrics.is_stable}"
    assert isinstance(result, GenerationResult) and result.prompt == "Long ago, a miller"
    assert result.finish_reason in ("length", "eos") and told.endswith("True") and "nan" not in told
    assert len(tokenizer(result.prompt)["input_ids"]) + len(result.tokens) <= 40
    assert all(token.coherence is not None and token.kuramoto_order is not None for token in result.tokens)


def test_figures_are_those_of_the_whole_text_at_once(
    generator: ResonanceGenerator, wrapper: ResonanceWrapper, tokenizer: Any
) -> None:
    prompt = tokenizer(PROMPT)["input_ids"]
    result = generator.generate(PROMPT)
    with torch.no_grad():
        logits_TV = wrapper(input_ids=torch.tensor([[*prompt, *result.token_ids]])).logits[0]
    logprobs_TV = logits_TV.log_softmax(-1)[len(prompt) - 1 : -1]
    rows = [
        {name: rows_BT[0, len(prompt) - 1 : -1] for name, rows_BT in measured.items()}
        for measured in wrapper.last_row_metrics().values()
    ]
    tokens = result.tokens
    expected = -(logprobs_TV.exp() * logprobs_TV).sum(-1)
    assert [token.entropy for token in tokens] == pytest.approx(expected.tolist(), abs=TOLERANCE)
    picked = logprobs_TV[torch.arange(len(tokens)), torch.tensor(result.token_ids)]
    assert [token.logprob for token in tokens] == pytest.approx(picked.tolist(), abs=TOLERANCE)
    for name, told in (("gate_coherence", "coherence"), ("kuramoto_order", "kuramoto_order")):
        mean_T = torch.stack([measured[name] for measured in rows]).mean(0)
        assert [getattr(token, told) for token in tokens] == pytest.approx(mean_T.tolist(), abs=TOLERANCE)
    monitor = LyapunovMonitor()
    estimates = [monitor.observe(entropy) for entropy in expected.tolist()]
    assert [token.lyapunov_estimate for token in tokens[1:]] == pytest.approx(estimates[1:], abs=TOLERANCE)
    assert tokens[0].lyapunov_estimate is None and {token.temperature for token in tokens} == {0.9}
    assert [token.token for token in tokens] == tokenizer.convert_ids_to_tokens(list(result.token_ids))
    coherences = [token.coherence or 0.0 for token in tokens]
    assert result.stability_metrics.mean_coherence == pytest.approx(sum(coherences) / 20)
    assert result.stability_metrics.mean_entropy == pytest.approx(float(expected.mean()), abs=TOLERANCE)


@pytest.mark.parametrize("bare", [False, True])
def test_greedy_is_what_the_model_itself_generates(
    wrapper: ResonanceWrapper, tokenizer: Any, bare: bool
) -> None:
    model = wrapper.unwrap() if bare else wrapper
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    expected = model.generate(ids, max_new_tokens=20, do_sample=False, eos_token_id=-1, pad_token_id=0)
    result = ResonanceGenerator(model, tokenizer).generate(
        PROMPT, temperature=0.0, max_new_tokens=20, eos_token_ids=()
    )
    assert [*result.token_ids] == expected[0, ids.shape[1] :].tolist()
    assert math.isnan(result.stability_metrics.mean_coherence) is bare
    assert (result.tokens[0].coherence is None) is bare


def test_the_same_seed_draws_the_same_and_the_global_generator_is_left_alone(
    generator: ResonanceGenerator,
) -> None:
    before = torch.get_rng_state()
    first, again = generator.generate(PROMPT), generator.generate(PROMPT)
    assert first.token_ids == again.token_ids != generator.generate(PROMPT, seed=4).token_ids
    assert generator.generate(PROMPT, seed=None).token_ids != generator.generate(PROMPT, seed=None).token_ids
    assert torch.equal(before, torch.get_rng_state())


def test_a_stream_gives_the_same_tokens_and_the_result_at_its_end(generator: ResonanceGenerator) -> None:
    whole = generator.generate(PROMPT)
    tokens: list[GeneratedToken] = []

    steps = generator.stream(PROMPT)
    with pytest.raises(StopIteration) as end:
        while True:
            tokens.append(next(steps))
    result = end.value.value
    assert tuple(tokens) == result.tokens == whole.tokens
    assert result.generated_text == whole.generated_text == "".join(token.text for token in tokens)


def test_characters_come_whole(tokenizer: Any) -> None:
    text = "“größe” 🧶 in the"
    ids = iter(tokenizer(text)["input_ids"])
    model = tiny_llama(1)
    head: Any = model.get_output_embeddings()

    def dictate(head: nn.Module, args: Any, logits_BTV: Tensor) -> Tensor:
        forced_BTV = torch.zeros_like(logits_BTV)
        forced_BTV[..., next(ids)] = 50.0
        return forced_BTV

    head.register_forward_hook(dictate)
    count = len(tokenizer(text)["input_ids"])
    result = ResonanceGenerator(model, tokenizer).generate("x", max_new_tokens=count)
    assert result.generated_text == text
    assert all("\N{REPLACEMENT CHARACTER}" not in token.text for token in result.tokens)
    assert any(token.text == "" for token in result.tokens), "parts of characters are held back"
    ids = iter(tokenizer(text)["input_ids"])
    cut = ResonanceGenerator(model, tokenizer).generate("x", max_new_tokens=1)
    assert cut.generated_text == "\N{REPLACEMENT CHARACTER}"


def test_a_text_that_diverges_is_ended_if_that_is_asked_for(
    wrapper: ResonanceWrapper, tokenizer: Any
) -> None:
    flattened(wrapper, 0.05)
    options = {**SAMPLED, "max_new_tokens": 100}
    ended = ResonanceGenerator(wrapper, tokenizer, GenerationConfig(stop_on_instability=True, **options))
    result = ended.generate(PROMPT)
    assert result.finish_reason == "instability" and 16 <= len(result.tokens) < 60
    assert not result.stability_metrics.is_stable
    assert result.stability_metrics.lyapunov_estimate == result.tokens[-1].lyapunov_estimate > 0.02


def test_the_temperature_is_lowered_while_a_text_diverges(wrapper: ResonanceWrapper, tokenizer: Any) -> None:
    flattened(wrapper, 0.05)
    options = {**SAMPLED, "max_new_tokens": 60}
    result = ResonanceGenerator(
        wrapper, tokenizer, GenerationConfig(auto_temperature=True, **options)
    ).generate(PROMPT)
    temperatures = [token.temperature for token in result.tokens]
    assert temperatures[:15] == [0.9] * 15 and 0.45 <= min(temperatures) < 0.6
    assert result.finish_reason == "length" and not result.stability_metrics.is_stable


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("at", [0, 4])
def test_states_that_are_not_finite_end_a_text_cleanly(tokenizer: Any, bare: bool, at: int) -> None:
    # Row by row: components that look back let NaN pass between the rows of one call.
    row_by_row = ("prime", "kuramoto", "coherence_gate")
    wrapper = graft(tiny_llama(1), looking_back=False, enabled_components=row_by_row)
    model = wrapper.unwrap() if bare else wrapper
    whole = ResonanceGenerator(model, tokenizer, GenerationConfig(**SAMPLED)).generate(PROMPT)
    calls = iter(range(100))

    def spoil(layer: nn.Module, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        if next(calls) == at:
            hidden = hidden.clone()
            hidden[:, -1, 0] = torch.nan
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    # Before the grafted layer behind it.
    handle = model.model.layers[1].register_forward_hook(spoil, prepend=True)
    result = ResonanceGenerator(model, tokenizer, GenerationConfig(**SAMPLED)).generate(PROMPT)
    handle.remove()
    assert result.finish_reason == "non_finite_state" and not result.stability_metrics.is_stable
    assert result.token_ids == whole.token_ids[:at]
    position = len(tokenizer(PROMPT)["input_ids"]) + at - 1
    assert result.error is not None
    assert f"behind layer {2 if bare else 1}" in result.error and f"position {position}" in result.error
    assert ResonanceGenerator(model, tokenizer, GenerationConfig(**SAMPLED)).generate(PROMPT) == whole


def test_ends_and_limits(generator: ResonanceGenerator, tokenizer: Any) -> None:
    whole = generator.generate(PROMPT)
    end = whole.token_ids[5]
    ended = generator.generate(PROMPT, eos_token_ids=(end,))
    assert (
        ended.finish_reason == "eos" and ended.token_ids == whole.token_ids[: whole.token_ids.index(end) + 1]
    )
    prompt = tokenizer(PROMPT)["input_ids"]
    assert len(generator.generate(PROMPT, max_length=len(prompt) + 3).tokens) == 3
    assert len(generator.generate(PROMPT, max_new_tokens=None, max_length=len(prompt) + 30).tokens) == 30
    full = generator.generate(PROMPT, max_new_tokens=10_000)
    assert len(prompt) + len(full.tokens) == 256 and full.finish_reason == "length"
    by_ids = generator.generate(prompt)
    assert by_ids.token_ids == whole.token_ids and by_ids.prompt == PROMPT


def test_a_model_in_training_generates_without_dropout_and_stays_in_training(tokenizer: Any) -> None:
    wrapper = graft(make_model("gpt2", vocab_size=262), looking_back=False)
    expected = ResonanceGenerator(wrapper.eval(), tokenizer, GenerationConfig(**SAMPLED)).generate(PROMPT)
    wrapper.train()
    assert ResonanceGenerator(wrapper, tokenizer, GenerationConfig(**SAMPLED)).generate(PROMPT) == expected
    assert wrapper.training and wrapper.base_model.training and wrapper.fusion_layers.training


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"temperature": -1.0}, "temperature: got -1.0, expected a finite number from 0"),
        ({"temperature": math.nan}, "temperature: got nan"),
        ({"temperature": "hot"}, "temperature: got 'hot', expected a number"),
        ({"top_k": None}, "top_k: got None, expected a whole number"),
        ({"max_new_tokens": 2.5}, "max_new_tokens: got 2.5, expected a whole number"),
        ({"top_k": -1}, "top_k: got -1"),
        ({"top_p": 0.0}, "top_p: got 0.0"),
        ({"max_length": 0}, "max_length: got 0"),
        ({"max_length": 5}, r"prompt: got \d+ tokens, expected fewer than max_length \(5\)"),
        ({"max_new_tokens": 0}, "max_new_tokens: got 0"),
        ({"seed": -1}, "seed: got -1"),
        ({"window": 2}, "window: got 2"),
        ({"threshold": -1.0}, "threshold: got -1.0"),
        ({"warmth": 1.0}, r"generate: got \['warmth'\], expected among temperature, top_k"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(
    generator: ResonanceGenerator, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(StabilityError, match=match):
        generator.stream(PROMPT, **options)


def test_a_prompt_without_a_token_or_too_long_is_refused(generator: ResonanceGenerator) -> None:
    with pytest.raises(StabilityError, match="prompt: got an empty prompt"):
        generator.generate("")
    with pytest.raises(
        StabilityError, match=r"got 300 tokens, expected fewer than the model's positions \(256\)"
    ):
        generator.generate([5] * 300)


@pytest.mark.parametrize(
    ("prompt", "match"),
    [
        (["one", "two"], r"prompt: got \['one', 'two'\], expected one text"),
        (None, "prompt: got None, expected one text"),
        ([1.5], r"prompt: got \[1.5\], expected one text"),
        ([5, -1], "prompt: got token id -1, expected ids from 0 to"),
        ([10**9], "prompt: got token id 1000000000, expected ids from 0 to"),
    ],
)
def test_what_is_no_prompt_is_refused(generator: ResonanceGenerator, prompt: Any, match: str) -> None:
    with pytest.raises(StabilityError, match=match):
        generator.generate(prompt)
