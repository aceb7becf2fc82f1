# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

import pytest
import torch
from conftest import random_model
from peft import LoraConfig, get_peft_model

from trl_diffusion import DiffusionValueModel, TraceRLConfig
from trl_diffusion.likelihood import MaskedView, value_views


VALUE_FILES = {"config.json", "value_config.json", "value_model.safetensors"}


def lora(model, **kwargs):
    return get_peft_model(model, LoraConfig(target_modules="all-linear", r=2, **kwargs))


def trained(value_model):
    """A value model whose head, and whatever else it trains, has moved."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in value_model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return value_model


def batch():
    torch.manual_seed(0)
    prompts, mask = torch.randint(3, 8, (3, 5)), torch.ones(3, 5, dtype=torch.long)
    prompts[1, :2], mask[1, :2] = 0, 0
    canvas = torch.randint(3, 8, (3, 6))
    return prompts, mask, canvas


def view(masked):
    return MaskedView(masked, masked)


def test_values_are_zero_at_first_and_read_where_the_policy_reads(every_family, tokenizer):
    model = random_model(every_family, tokenizer)
    value_model = DiffusionValueModel.from_policy(model)
    prompts, mask, canvas = batch()
    masked = torch.rand(canvas.shape) < 0.6
    assert not value_views(value_model, prompts, mask, canvas, [view(masked)]).any()
    head = value_model.backbone.get_output_embeddings().weight
    torch.nn.init.normal_(head)
    found = value_views(value_model, prompts, mask, canvas, [view(masked)])
    assert found.dtype == torch.float32 and (found[~masked] == 0).all() and (found[masked] != 0).all()
    # One row at a time, from the policy's own hidden states; blocks before a token's own are clean.
    for row, column in masked.nonzero().tolist():
        prompt = prompts[row][mask[row].bool()]
        ids, place, kwargs = torch.cat([prompt, canvas[row]]), len(prompt) + column, {}
        noisy = torch.cat([torch.zeros_like(prompt, dtype=torch.bool), masked[row]])
        if model.attention == "block_causal":
            block = torch.arange(len(ids)) // model.block_length
            noisy &= block == block[place]
            kwargs = {"attention_mask": (block[:, None] >= block[None])[None, None]}
            kwargs["position_ids"] = torch.arange(len(ids))[None]
        state = torch.where(noisy, model.mask_token_id, ids)[None]
        hidden = []
        hook = model.get_output_embeddings().register_forward_pre_hook(lambda m, args, kept=hidden: kept.append(args))
        with torch.no_grad():
            model(state, **kwargs)
        hook.remove()
        wanted = hidden[0][0][0, place - model.logits_shift] @ head[0]
        assert found[row, column].item() == pytest.approx(wanted.item(), abs=2e-4)


@pytest.mark.parametrize("trains", ["full", "lora", "head"])
@pytest.mark.parametrize("adapter", [False, True])
def test_what_is_trained_what_is_shared_and_what_is_saved(family, tokenizer, tmp_path, trains, adapter):
    model = random_model(family, tokenizer)
    names = [name for name, _ in model.named_parameters() if "lm_head" not in name]
    policy = lora(model) if adapter else model
    value_model = DiffusionValueModel.from_policy(policy, trains, lora_r=3)
    parameters = dict(value_model.backbone.named_parameters())
    head = value_model.backbone.get_output_embeddings().weight
    assert head.shape == (1, 32) and head.requires_grad and not any("lora_A.default" in name for name in parameters)
    for name, parameter in parameters.items():
        assert parameter.requires_grad == (trains == "full" or parameter is head or "lora_" in name), name
    assert any("lora_" in name for name in parameters) == (trains == "lora")
    policy_pointers = {parameter.data_ptr() for parameter in policy.parameters()}
    shared = {name for name, parameter in parameters.items() if parameter.data_ptr() in policy_pointers}
    assert len(shared) == (len(names) if adapter and trains != "full" else 0)

    trained(value_model).save_pretrained(tmp_path)
    saved = {p.name for p in tmp_path.iterdir()}
    assert saved == VALUE_FILES
    if shared:
        with pytest.raises(ValueError, match="shares frozen weights with its policy"):
            DiffusionValueModel.from_pretrained(tmp_path)
        again = DiffusionValueModel.from_pretrained(tmp_path, policy=policy)
    else:
        again = DiffusionValueModel.from_pretrained(tmp_path)
    prompts, mask, canvas = batch()
    everything = [view(torch.ones_like(canvas, dtype=torch.bool))]
    wanted = value_views(value_model, prompts, mask, canvas, everything)
    assert torch.equal(value_views(again, prompts, mask, canvas, everything), wanted) and wanted.any()


def test_the_dtype_is_kept(tokenizer, tmp_path):
    policy = random_model("llada", tokenizer).to(torch.bfloat16)
    DiffusionValueModel.from_policy(policy).save_pretrained(tmp_path)
    again = DiffusionValueModel.from_pretrained(tmp_path)
    assert {p.dtype for p in again.backbone.model.parameters()} == {torch.bfloat16}
    assert again.backbone.get_output_embeddings().weight.dtype == torch.float32


def test_wrong_value_models_are_named(tokenizer, tmp_path):
    model = random_model("llada", tokenizer)
    with pytest.raises(ValueError, match="trains='all'"):
        DiffusionValueModel(model, "all")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no value model is there"):
        DiffusionValueModel.from_pretrained(tmp_path / "empty")
    DiffusionValueModel.from_policy(model, "lora", 2).save_pretrained(tmp_path / "value")
    other = DiffusionValueModel.from_policy(model, "lora", 3)
    with pytest.raises(ValueError, match="not those of this value model.*lora_r=3"):
        other.load_weights(tmp_path / "value")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"value_model": "big"}, "value_model='big' must be"),
        ({"value_learning_rate": 1e-3}, "value_learning_rate=0.001 has no effect without value_model"),
        ({"gae_lambda": 0.9}, "gae_lambda=0.9 has no effect without value_model"),
        ({"push_value_model": True}, "push_value_model=True has no effect"),
        ({"value_model": "head", "value_lora_r": 4}, "value_lora_r=4 has no effect with value_model='head'"),
        ({"value_model": "full", "value_learning_rate": 0.0}, "value_learning_rate=0.0 must be positive"),
        ({"value_model": "full", "gamma": 1.5}, r"gamma=1.5 must lie in \[0, 1\]"),
    ],
)
def test_wrong_settings_are_named(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        TraceRLConfig(str(tmp_path), bf16=False, **settings)
