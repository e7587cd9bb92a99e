"""What a trained wrapper generates is what its whole forward says: the grafted layers are in every step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from families import FAMILIES, VOCAB, make_model
from grafts import graft
from torch import Tensor
from transformers import DynamicCache

from braid_fusion import FusionConfig, GraftCacheError, ResonanceWrapper

# float32, relative to the largest logit: sums taken in another order.
TOLERANCE = 1e-4
PADDED = torch.tensor([[0] * 4 + [1] * 7, [1] * 11])


def ids_of(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def assert_close(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    assert float((got - expected).abs().max()) <= TOLERANCE * max(float(expected.abs().max()), 1.0)


@pytest.fixture(params=["looking-back", "full"])
def wrapper(request: pytest.FixtureRequest) -> ResonanceWrapper:
    """All components in float64: oscillators near their fixed points make much of a last bit's difference."""
    if request.param == "full":
        return graft(make_model("llama").double(), looking_back=False)
    return graft(make_model("llama"))


@pytest.fixture
def back() -> ResonanceWrapper:
    return graft(make_model("llama"), 0, 2)


def rows_of(cache: Any) -> Any:
    return cache.layers[-1]


def positions_of(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


def greedy(model: Any, ids: Tensor, mask: Tensor, steps: int) -> Tensor:
    """Token by token, the whole text anew each time."""
    for _ in range(steps):
        with torch.no_grad():
            logits = model(
                input_ids=ids, attention_mask=mask, position_ids=positions_of(mask), use_cache=False
            ).logits
        ids = torch.cat([ids, logits[:, -1].argmax(-1)[:, None]], 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return ids


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_of_any_size_equal_the_whole_text_in_every_family(family: str) -> None:
    model = graft(make_model(family), 0, 2)
    ids = ids_of(2, 11)
    positions = positions_of(PADDED)
    with torch.no_grad():
        whole = model(input_ids=ids, attention_mask=PADDED, position_ids=positions, use_cache=False).logits
        cache, got, start = None, [], 0
        for end in (2, 3, 8, 9, 10, 11):  # the first call is all padding in one of the sequences
            out = model(
                input_ids=ids[:, start:end],
                attention_mask=PADDED[:, :end],
                position_ids=positions[:, start:end],
                past_key_values=cache,
                use_cache=True,
            )
            cache, start = out.past_key_values, end
            got.append(out.logits)
    steps = torch.cat(got, 1)
    assert_close(steps[0, 4:], whole[0, 4:])
    assert_close(steps[1], whole[1])
    with torch.no_grad():
        alone = model(input_ids=ids[:1, 4:], use_cache=False).logits
    assert_close(whole[0, 4:], alone[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_generating_with_a_cache_equals_recomputing_each_step(family: str) -> None:
    model = graft(make_model(family), 0, 2)
    ids = ids_of(2, 11)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    got = model.generate(ids, attention_mask=PADDED, **options)
    assert torch.equal(got, greedy(model, ids, PADDED, 6))
    assert not torch.equal(got, model.unwrap().generate(ids, attention_mask=PADDED, **options))


def test_every_step_of_generate_has_the_logits_of_the_whole_forward(wrapper: ResonanceWrapper) -> None:
    ids = ids_of(1, 6)
    out = wrapper.generate(
        ids,
        max_new_tokens=10,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    with torch.no_grad():
        whole = wrapper(input_ids=out.sequences, use_cache=False).logits
        plain = wrapper.unwrap()(input_ids=out.sequences, use_cache=False).logits
    assert_close(torch.cat(out.logits), whole[0, 5:-1])
    assert float((whole - plain).abs().max()) > 0.1


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "num_return_sequences": 2, "do_sample": False},
        {"num_beams": 4, "do_sample": False, "length_penalty": 0.3},
        {"do_sample": True, "num_return_sequences": 3, "top_k": 20},
        {"num_beams": 2, "do_sample": True},
    ],
    ids=["beams", "four-beams", "sampling", "beams-sampled"],
)
def test_cache_or_none_the_same_texts(wrapper: ResonanceWrapper, options: dict[str, Any]) -> None:
    results = []
    for use_cache in (True, False):
        torch.manual_seed(2)
        results.append(
            wrapper.generate(
                ids_of(2, 11),
                attention_mask=PADDED,
                max_new_tokens=9,
                eos_token_id=None,
                pad_token_id=2,
                use_cache=use_cache,
                **options,
            )
        )
    assert torch.equal(results[0], results[1])


def test_a_sequence_does_not_depend_on_its_batch(back: ResonanceWrapper) -> None:
    ids = ids_of(3, 7)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    together = back.generate(ids, attention_mask=torch.ones_like(ids), **options)
    for index in range(3):
        alone = back.generate(ids[index : index + 1], **options)
        assert torch.equal(together[index], alone[0])


def test_the_prompt_lookup_and_an_assistant_crop_the_rows_too(back: ResonanceWrapper) -> None:
    ids = torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 5, 6]])
    options = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    expected = back.generate(ids, **options)
    assert torch.equal(back.generate(ids, prompt_lookup_num_tokens=3, **options), expected)
    assistant = make_model("llama", seed=3)
    assistant.generation_config.eos_token_id = None
    assert torch.equal(back.generate(ids, assistant_model=assistant, **options), expected)


def test_trained_layers_of_all_components_agree_in_float32() -> None:
    """Whole texts against steps, with weights as training leaves them; `wrapper` has wilder ones, in float64."""
    wrapper = ResonanceWrapper(make_model("llama"), FusionConfig.full()).train()
    optimiser = torch.optim.AdamW(wrapper.fusion_parameters(), lr=3e-3)
    for step in range(20):
        ids = ids_of(4, 24, seed=step)
        optimiser.zero_grad()
        wrapper(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
    wrapper.eval()
    ids = ids_of(2, 40, seed=99)
    with torch.no_grad():
        whole = wrapper(input_ids=ids, use_cache=False).logits
        cache, steps = None, []
        for position in range(40):
            out = wrapper(input_ids=ids[:, position : position + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits)
        assert_close(torch.cat(steps, 1), whole)
        assert float((wrapper.unwrap()(input_ids=ids).logits - whole).abs().max()) > 0.01


@pytest.mark.parametrize("mask", [PADDED, torch.ones_like(PADDED)], ids=["padded", "whole"])
def test_a_cache_of_fixed_size_works_too(back: ResonanceWrapper, mask: Tensor) -> None:
    """Without padding transformers leaves the mask out where it may, and the places not filled yet need one."""
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    ids = ids_of(2, 11)
    expected = back.generate(ids, attention_mask=mask, **options)
    got = back.generate(ids, attention_mask=mask, cache_implementation="static", **options)
    assert torch.equal(got, expected)
    back.generation_config.cache_implementation = "static"
    assert torch.equal(back.generate(ids, attention_mask=mask, **options), expected)


def test_a_cache_filled_in_inference_mode_or_with_gradients_goes_on(back: ResonanceWrapper) -> None:
    ids = ids_of(2, 11)
    with torch.no_grad():
        whole = back(input_ids=ids, use_cache=False).logits
    with torch.inference_mode():
        cache = back(input_ids=ids[:, :6]).past_key_values
    with torch.no_grad():
        assert_close(back(input_ids=ids[:, 6:], past_key_values=cache).logits, whole[:, 6:])
    gradients = []
    for split in (11, 6):
        back.zero_grad()
        first = back(input_ids=ids[:, :split])
        parts = [first.logits]
        if split < 11:
            parts.append(back(input_ids=ids[:, split:], past_key_values=first.past_key_values).logits)
        torch.cat(parts, 1).square().mean().backward()
        gradients.append([parameter.grad for parameter in back.fusion_parameters()])
    for left, right in zip(*gradients, strict=True):
        assert_close(right, left)


def test_rows_live_in_the_cache_and_follow_it(back: ResonanceWrapper) -> None:
    ids, mask = ids_of(2, 11), PADDED
    with torch.no_grad():
        out = back(input_ids=ids, attention_mask=mask)
        cache = out.past_key_values
        assert rows_of(cache).lengths == [7, 11]
        branch = copy.deepcopy(cache)
        cache.crop(-9)
        assert rows_of(cache).lengths == [0, 2]
        assert rows_of(branch).lengths == [7, 11]
        again = back(input_ids=ids[:, 2:], attention_mask=mask, past_key_values=cache).logits
        assert_close(again[1], out.logits[1, 2:])
        assert_close(again[0, 2:], out.logits[0, 4:])
        cache.reset()
        fresh = back(input_ids=ids, attention_mask=mask, past_key_values=cache).logits
        assert_close(fresh[1], out.logits[1])
        # Swap the sequences, double one of them, and go on: each goes on as its own.
        branch.batch_select_indices(torch.tensor([1, 0]))
        branch.batch_repeat_interleave(2)
        branch.reorder_cache(torch.tensor([0, 0, 2, 1]))
        assert rows_of(branch).lengths == [11, 11, 7, 11]
        new = torch.tensor([[9], [10], [9], [11]])
        swapped = torch.cat([mask[[1, 1, 0, 1]], torch.ones(4, 1, dtype=mask.dtype)], 1)
        went_on = back(input_ids=new, attention_mask=swapped, past_key_values=branch).logits
        texts = torch.cat([ids[[1, 1, 0, 1]], new], 1)
        whole = back(input_ids=texts, attention_mask=swapped, use_cache=False).logits
    assert_close(went_on[:, 0], whole[:, -1])


def test_rows_are_freed_with_the_cache(back: ResonanceWrapper) -> None:
    import gc
    import weakref

    with torch.no_grad():
        cache = back(input_ids=ids_of(1, 5)).past_key_values
    watch = weakref.ref(rows_of(cache))
    assert rows_of(cache).num_bytes() > 0
    del cache
    gc.collect()
    assert watch() is None


def test_a_cache_from_elsewhere_is_refused(back: ResonanceWrapper) -> None:
    ids = ids_of(1, 6)
    with torch.no_grad():
        theirs = graft(make_model("llama"), 0, 2)(input_ids=ids).past_key_values
        bare = make_model("llama")(input_ids=ids).past_key_values
        for cache, why in ((theirs, "another wrapper"), (bare, "without the rows")):
            with pytest.raises(GraftCacheError, match=why):
                back(input_ids=ids[:, :1], past_key_values=cache)
        back.train()
        trained = back(input_ids=ids, use_cache=True).past_key_values
        with pytest.raises(GraftCacheError, match="outside training mode"):
            back(input_ids=ids[:, :1], past_key_values=trained)


def test_whoever_runs_the_model_runs_the_grafts(back: ResonanceWrapper) -> None:
    ids = ids_of(1, 6)
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    with torch.no_grad():
        whole = back(input_ids=ids)
        assert torch.equal(back.base_model(ids).logits, whole.logits)
        states = back.base_model.model(ids).last_hidden_state
        assert torch.equal(back.base_model.lm_head(states), whole.logits)
        as_tuple = back(input_ids=ids, return_dict=False, past_key_values=DynamicCache())
        assert torch.equal(as_tuple[0], whole.logits)
        follow = back(input_ids=ids[:, :1], past_key_values=as_tuple[1], return_dict=False)
        assert rows_of(follow[1]).lengths == [7]
        embedded = back(inputs_embeds=back.get_input_embeddings()(ids))
        assert torch.equal(embedded.logits, whole.logits)
        inside = back(input_ids=ids, output_hidden_states=True).hidden_states
        bare = make_model("llama")(input_ids=ids, output_hidden_states=True).hidden_states
    assert torch.equal(back.base_model.generate(ids, **options), back.generate(ids, **options))
    assert torch.equal(inside[0], bare[0])
    assert not torch.equal(inside[1], bare[1])  # behind layer 0, where the first graft is


def test_states_recorded_before_wrapping_are_recorded_changed_afterwards() -> None:
    model, ids = make_model("llama"), ids_of(1, 6)
    with torch.no_grad():
        bare = model(input_ids=ids, output_hidden_states=True).hidden_states
        changed = graft(model, 1)(input_ids=ids, output_hidden_states=True).hidden_states
    assert torch.equal(changed[1], bare[1])
    assert not torch.equal(changed[2], bare[2])
