"""What a wrapper is to those who train it, copy it, move it, or hand it what it can't take."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from families import VOCAB, make_model
from grafts import LookingBack, graft, randomise
from torch import Tensor, nn

from braid_fusion import FusionConfig, GraftCacheError, NonFiniteStateError, ResonanceWrapper
from braid_fusion.errors import FusionShapeError, GraftConfigError


def ids_of(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def logits(model: Any, ids: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, **options).logits


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_moves_the_grafts_and_not_one_bit_of_the_base(checkpointing: bool) -> None:
    model = make_model("gpt2")
    before = copy.deepcopy(model.state_dict())
    wrapper = ResonanceWrapper(model, FusionConfig.full()).train()
    if checkpointing:
        wrapper.activation_checkpointing_enable()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    optimiser = torch.optim.AdamW([p for p in wrapper.parameters() if p.requires_grad], lr=3e-3)
    ids, losses = ids_of(2, 12), []
    for _ in range(6):
        torch.manual_seed(0)  # dropout
        loss = wrapper(input_ids=ids, labels=ids).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_a_wrapper_takes_when_given_nothing_is_the_preset_that_learned_the_most() -> None:
    wrapper = ResonanceWrapper(make_model("gpt2"))
    own = FusionConfig.full().resolve(wrapper.fusion_config.hidden_dim, wrapper.config.num_hidden_layers)
    assert wrapper.fusion_config == own
    layer = next(iter(wrapper.fusion_layers.values()))
    assert type(layer)(own.hidden_dim).config.enabled_components == own.enabled_components


def test_checkpointed_gradients_are_the_plain_ones() -> None:
    gradients = []
    for checkpointing in (False, True):
        wrapper = graft(make_model("llama"), 0, 2).train()
        if checkpointing:
            wrapper.activation_checkpointing_enable()
        mask = torch.tensor([[0] * 4 + [1] * 5, [1] * 9])
        ids = ids_of(2, 9)
        wrapper(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
        gradients.append([parameter.grad for parameter in wrapper.fusion_parameters()])
    for left, right in zip(*gradients, strict=True):
        assert float(left.abs().max()) > 0
        torch.testing.assert_close(left, right, atol=1e-7, rtol=1e-5)


def test_transformers_own_trainer_trains_it(tmp_path: Any) -> None:
    pytest.importorskip("accelerate", reason="transformers' trainer needs accelerate")
    from transformers import Trainer, TrainingArguments

    wrapper = ResonanceWrapper(make_model("llama"), FusionConfig.minimal())
    before = copy.deepcopy(wrapper.state_dict())
    rows = [{"input_ids": row, "labels": row} for row in ids_of(6, 10)]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=3, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True
    )
    Trainer(model=wrapper, args=arguments, train_dataset=rows).train()
    moved = {name for name, tensor in wrapper.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(name.startswith("fusion_layers.") for name in moved)


def test_an_unfrozen_base_trains_too() -> None:
    wrapper = ResonanceWrapper(make_model("llama"), FusionConfig.minimal(), freeze_base=False).train()
    wrapper(input_ids=ids_of(1, 8), labels=ids_of(1, 8)).loss.backward()
    assert all(parameter.grad is not None for parameter in wrapper.base_model.parameters())


def test_unwrapping_leaves_no_hook_and_the_gradients_as_they_were() -> None:
    model = make_model("llama")
    model.model.embed_tokens.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    before = logits(model, ids_of(1, 7))
    wrapper = graft(model)
    assert not torch.equal(logits(model, ids_of(1, 7)), before)
    assert wrapper.unwrap() is model
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert torch.equal(logits(model, ids_of(1, 7)), before)
    ResonanceWrapper(model)


def test_a_copy_is_a_wrapper_of_its_own(tmp_path: Any) -> None:
    wrapper = graft(make_model("llama"), looking_back=False).train()
    ids = ids_of(1, 7)
    wrapper(input_ids=ids, labels=ids).loss.backward()
    wrapper.eval()
    twin = copy.deepcopy(wrapper)
    assert torch.equal(logits(twin, ids), logits(wrapper, ids))
    randomise(twin)
    assert not torch.equal(logits(twin, ids), logits(wrapper, ids))
    assert torch.equal(logits(twin.base_model, ids), logits(twin, ids))
    same = ResonanceWrapper(make_model("llama", seed=9), FusionConfig.full(fusion_alpha=0.5))
    same.load_state_dict(wrapper.state_dict())
    assert torch.equal(logits(same, ids), logits(wrapper, ids))
    torch.save(wrapper, tmp_path / "whole.pt")
    whole = torch.load(tmp_path / "whole.pt", weights_only=False)
    assert torch.equal(logits(whole, ids), logits(wrapper, ids))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    model = make_model("llama").requires_grad_(False).to(dtype)
    before = logits(model, ids_of(1, 7))
    wrapper = ResonanceWrapper(model, FusionConfig.full())
    assert torch.equal(logits(wrapper, ids_of(1, 7)), before)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert {parameter.dtype for parameter in wrapper.fusion_parameters()} == {wanted}
    assert wrapper.to(torch.float32).dtype == torch.float32
    assert torch.isfinite(logits(wrapper, ids_of(1, 7))).all()


def test_modes_and_attributes_are_the_models() -> None:
    wrapper = ResonanceWrapper(make_model("llama").train(), FusionConfig.minimal())
    assert wrapper.training
    assert all(layer.training for layer in wrapper.fusion_layers.values())
    wrapper.eval()
    assert not any(module.training for module in wrapper.modules())
    assert wrapper.config is wrapper.base_model.config
    assert wrapper.device == torch.device("cpu")
    assert wrapper.can_generate()
    wrapper.generation_config = copy.deepcopy(wrapper.generation_config)
    assert wrapper.base_model.generation_config is wrapper.generation_config
    assert wrapper.num_fusion_parameters() == sum(p.numel() for p in wrapper.parameters() if p.requires_grad)
    with pytest.raises(AttributeError, match="no_such_thing"):
        wrapper.no_such_thing  # noqa: B018


def test_wrapping_what_cannot_be_wrapped() -> None:
    model = make_model("llama")
    wrapper = ResonanceWrapper(model, FusionConfig.minimal())
    with pytest.raises(GraftConfigError, match=r"wrapped already.*unwrap\(\)"):
        ResonanceWrapper(model)
    with pytest.raises(GraftConfigError, match="got a ResonanceWrapper"):
        ResonanceWrapper(wrapper)
    wrapper.unwrap()
    with pytest.raises(GraftConfigError, match="got Linear, expected a causal language model"):
        ResonanceWrapper(nn.Linear(2, 2))
    layerless = make_model("llama")
    layerless.model.layers = nn.ModuleList()
    with pytest.raises(
        GraftConfigError, match=r"llama \(LlamaForCausalLM\): got 0 lists of 3 decoder layers"
    ):
        ResonanceWrapper(layerless)
    with pytest.raises(GraftConfigError, match="hidden_dim: got 64, expected the model's width 32"):
        ResonanceWrapper(model, FusionConfig(hidden_dim=64))
    with pytest.raises(GraftConfigError, match=r"fusion_positions: got 3.*0 to 2"):
        ResonanceWrapper(model, FusionConfig(fusion_positions=(1, 3)))
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_masks_of_another_shape_are_refused() -> None:
    wrapper = graft(make_model("gpt2"))
    with pytest.raises(FusionShapeError, match=r"attention_mask: got \(1, 4\) with 1 sequences of 6"):
        from braid_fusion.grafting.forward_pass import ForwardPass

        ForwardPass(torch.ones(1, 4), None, None, False).fit(torch.zeros(1, 6, 32))
    block = torch.ones(6, 6).tril().bool()[None, None]
    ids = ids_of(1, 6)
    torch.testing.assert_close(logits(wrapper, ids, attention_mask=block), logits(wrapper, ids))


def test_texts_packed_into_one_row_are_refused() -> None:
    wrapper = graft(make_model("llama"))
    with pytest.raises(FusionShapeError, match="cu_seq_lens_q: got several texts packed into one row"):
        logits(wrapper, ids_of(1, 6), cu_seq_lens_q=torch.tensor([0, 2, 6], dtype=torch.int32))
    logits(wrapper, ids_of(1, 6))


class Poisoning(LookingBack):
    """Makes row ``at`` of the sequence NaN."""

    at = 3

    def fuse(self, hidden_TD: Tensor, context: Any) -> Any:
        output = super().fuse(hidden_TD, context)
        for row in range(context.row_counts[-1]):
            if context.positions[-1] + row == self.at:
                output.hidden_TD[-context.row_counts[-1] + row, 5] = torch.nan
        return output


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_nan_in_states_names_its_place_and_leaves_the_cache_as_it_was(family: str) -> None:
    wrapper = graft(make_model(family), 0, 1, 2)
    ids, mask = ids_of(2, 9), torch.tensor([[1] * 9, [0, 0] + [1] * 7])
    healthy = wrapper.fusion_layers["1"]
    with torch.no_grad():
        whole = wrapper(input_ids=ids, attention_mask=mask, use_cache=False).logits
        for start in (4, 5, 6):
            cache = wrapper(input_ids=ids[:, :start], attention_mask=mask[:, :start]).past_key_values
            wrapper.fusion_layers["1"] = poison = Poisoning(32)
            poison.at = start - 1
            with pytest.raises(NonFiniteStateError) as error:
                wrapper(input_ids=ids[:, start:], attention_mask=mask, past_key_values=cache)
            assert (error.value.layer_idx, error.value.sequence, error.value.position) == (1, 1, start + 1)
            assert f"behind layer 1: got NaN or infinity at position {start + 1} of sequence 1" in str(
                error.value
            )
            wrapper.fusion_layers["1"] = healthy
            again = wrapper(input_ids=ids[:, start:], attention_mask=mask, past_key_values=cache).logits
            torch.testing.assert_close(again[0], whole[0, start:], atol=1e-4, rtol=1e-4)


def test_generation_stops_at_nan_and_goes_on_afterwards() -> None:
    wrapper = graft(make_model("llama"), 1)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    expected = wrapper.generate(ids_of(1, 4), **options)
    healthy = wrapper.fusion_layers["1"]
    wrapper.fusion_layers["1"] = poison = Poisoning(32)
    poison.at = 6
    with pytest.raises(NonFiniteStateError, match=r"layer 1.* position 6 of sequence 0 \(1 position"):
        wrapper.generate(ids_of(1, 4), **options)
    wrapper.fusion_layers["1"] = healthy
    assert torch.equal(wrapper.generate(ids_of(1, 4), **options), expected)
    wrapper.fusion_layers["1"] = poison
    wrapper.check_finite = False
    assert torch.isnan(logits(wrapper, ids_of(1, 9))).any()


@pytest.mark.parametrize("layer_idx", [0, 2])
def test_nan_that_the_model_itself_made_is_named_where_it_is(layer_idx: int) -> None:
    """Components that look back would carry it to earlier positions: what they leave out is 0 times NaN."""
    wrapper = graft(make_model("llama"), 0, 2, looking_back=False)
    ids, mask = ids_of(2, 9), torch.tensor([[1] * 9, [0, 0] + [1] * 7])

    def spoil(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[1, 6, 3] = torch.inf
        return output

    handle = wrapper.base_model.model.layers[layer_idx].mlp.register_forward_hook(spoil)
    with pytest.raises(NonFiniteStateError) as error:
        logits(wrapper, ids, attention_mask=mask)
    assert (error.value.layer_idx, error.value.sequence, error.value.position) == (layer_idx, 1, 6)
    assert "(1 position" in str(error.value)
    handle.remove()
    logits(wrapper, ids, attention_mask=mask)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_call_that_fails_in_between_leaves_no_rows(error: type[BaseException]) -> None:
    wrapper = graft(make_model("llama"), 0)
    ids = ids_of(1, 8)

    def fail(*_: Any) -> None:
        raise error

    with torch.no_grad():
        whole = wrapper(input_ids=ids)
        cache = wrapper(input_ids=ids[:, :5]).past_key_values
        handle = wrapper.base_model.model.layers[1].register_forward_pre_hook(fail)
        with pytest.raises(error):
            wrapper(input_ids=ids[:, 5:], past_key_values=cache)
        handle.remove()
        assert torch.equal(wrapper(input_ids=ids).logits, whole.logits)
        # The first layer's keys are there, the others' are not: nothing can go on from that.
        with pytest.raises(GraftCacheError, match="got 8 positions of keys with grafted rows of 5"):
            wrapper(input_ids=ids[:, 5:], past_key_values=cache)
        cache.layers[0].crop(-3)
        again = wrapper(input_ids=ids[:, 5:], past_key_values=cache).logits
    torch.testing.assert_close(again, whole.logits[:, 5:], atol=1e-5, rtol=1e-4)
