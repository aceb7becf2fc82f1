# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Every family through the trainers, and quantized: the cells of docs/models.md.

That the pieces compute the right thing is shown elsewhere (test_models, test_families, test_replay, test_sft); here
each family goes through all of them, from its files.
"""

import pytest
import torch
from conftest import FAMILIES, golden_model, random_model
from peft import LoraConfig, PeftModel
from policies import policy_trainer, small_policy
from rl import prompts, rl_trainer
from test_sft import config as sft_config
from test_sft import rows
from transformers import BitsAndBytesConfig

from trl_diffusion import AutoModelForDiffusionLM, DiffusionSFTTrainer
from trl_diffusion.models import diffusion_model
from trl_diffusion.tasks import character_tokenizer


LORA = {"r": 4, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


@pytest.fixture
def saved(every_family, tokenizer, tmp_path):
    """A tiny checkpoint in Hub format, with its tokenizer."""
    random_model(every_family, tokenizer, spread=0.1).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def sft(model, tokenizer, folder, peft_config=None, **kwargs):
    args = sft_config(folder, **{"learning_rate": 0.005, **kwargs})
    return DiffusionSFTTrainer(
        model, args, train_dataset=rows(), eval_dataset=rows(), processing_class=tokenizer, peft_config=peft_config
    )


def test_sft_from_a_path_and_back(saved, every_family, tokenizer, tmp_path):
    trainer = sft(saved, tokenizer, tmp_path / "sft", max_steps=20)
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    first = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < first
    untouched = [name for name, parameter in trainer.model.named_parameters() if torch.equal(before[name], parameter)]
    assert not untouched
    trainer.save_model(str(tmp_path / "trained"))
    again = AutoModelForDiffusionLM.from_pretrained(tmp_path / "trained", dtype=torch.float32)
    assert type(again) is FAMILIES[every_family][1]
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in trainer.model.state_dict().items())


def sum_of_digits(completions, **kwargs):
    """A reward that differs between the completions of whatever random model."""
    return [float(sum(map(ord, completion)) % 7) for completion in completions]


def test_tracerl_trains(saved, tokenizer, tmp_path):
    trainer = rl_trainer("tracerl", saved, tokenizer, tmp_path / "rl", reward=sum_of_digits, max_steps=2)
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    assert any(not torch.equal(before[name], parameter) for name, parameter in trainer.model.named_parameters())
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


def test_bgpo_trains(saved, tokenizer, tmp_path):
    settings = {"objective": "elbo", "num_iterations": 2, "num_mc_samples": 2, "learning_rate": 1e-3, "max_steps": 6}
    trainer = rl_trainer("bgpo", saved, tokenizer, tmp_path / "rl", reward=sum_of_digits, **settings)
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    assert any(not torch.equal(before[name], parameter) for name, parameter in trainer.model.named_parameters())
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())
    # The old scores are those of the same copies: as long as the policy has not moved they are equal.
    spreads = [row["elbo/difference_std"] for row in trainer.state.log_history if "elbo/difference_std" in row]
    assert max(spreads[::2]) < 1e-4 < max(spreads[1::2])


def test_igpo_trains(saved, tokenizer, tmp_path):
    """The trace of every prompt begins as a completion must to be right; its last token is the answer."""
    dataset = prompts().map(lambda row: {"reasoning": "1234120"})

    def begins_right(completions, **kwargs):
        return [float(completion.startswith("12341")) for completion in completions]

    settings = {
        "hint_ratio_range": [1.0, 1.0],
        "num_iterations": 2,
        "learning_rate": 1e-3,
        "max_steps": 4,
    }
    trainer = rl_trainer(
        "igpo",
        saved,
        tokenizer,
        tmp_path / "rl",
        reward=begins_right,
        dataset=dataset,
        answer_finder=lambda trace: [(len(trace) - 1, len(trace))],
        beta=0.1,
        **settings,
    )
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    assert any(not torch.equal(before[name], parameter) for name, parameter in trainer.model.named_parameters())
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())
    logs = [row for row in trainer.state.log_history if "hints/replaced" in row]
    assert max(row["hints/replaced"] for row in logs) > 0 and all("kl" in row for row in logs)


def test_unmask_policy_trains(saved, tokenizer, tmp_path):
    """A policy for the family, beside an expert; the model stays as it is."""
    policy = small_policy(entropy=True)
    trainer = policy_trainer(
        saved, tokenizer, tmp_path / "rl", policy, sum_of_digits, block_length=4, expert_steering=True,
        expert_block_length=4, alpha=0.5, max_steps=2,
    )  # fmt: skip
    models = {"policy": policy, "dllm": trainer.dllm}
    before = {
        name: {key: value.clone() for key, value in model.state_dict().items()} for name, model in models.items()
    }
    trainer.train()
    for name, model in models.items():
        same = all(torch.equal(before[name][key], value) for key, value in model.state_dict().items())
        assert same == (name == "dllm") and all(parameter.isfinite().all() for parameter in model.parameters())
    assert any("expert/reward" in row for row in trainer.state.log_history)


@pytest.mark.parametrize("name", ["sft", "tracerl"])
def test_lora_leaves_the_base_alone(name, saved, tokenizer, tmp_path):
    peft_config = LoraConfig(**LORA)
    if name == "sft":
        trainer = sft(saved, tokenizer, tmp_path / name, peft_config=peft_config)
    else:
        trainer = rl_trainer(name, saved, tokenizer, tmp_path / name, sum_of_digits, peft_config=peft_config)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.train()
    for key, value in trainer.model.state_dict().items():
        if "lora_" not in key:
            assert torch.equal(before[key], value), key
    assert any("lora_B" in key and value.any() for key, value in trainer.model.state_dict().items())
    trainer.save_model(str(tmp_path / "adapter"))
    again = PeftModel.from_pretrained(AutoModelForDiffusionLM.from_pretrained(saved), tmp_path / "adapter").eval()
    ids = torch.randint(3, 8, (1, 9))
    trainer.model.eval()
    with torch.no_grad():
        assert torch.allclose(again(input_ids=ids).logits, trainer.model(input_ids=ids).logits, atol=1e-5)


QUANTIZED = {
    "4-bit": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.float32,
    },
    "8-bit": {"load_in_8bit": True},
}


@pytest.mark.parametrize("bits", QUANTIZED)
@pytest.mark.parametrize("family", ["llada", "dream", "sdar", "a2d-llama", "a2d-qwen2", "a2d-qwen3", "mmada"])
def test_quantized_with_lora_and_gradient_checkpointing(family, bits, tmp_path):
    tokenizer = character_tokenizer("01234")
    random_model(family, tokenizer, hidden_size=64, intermediate_size=128, spread=0.1).save_pretrained(tmp_path / "m")
    model = AutoModelForDiffusionLM.from_pretrained(
        tmp_path / "m", dtype=torch.float32, quantization_config=BitsAndBytesConfig(**QUANTIZED[bits])
    )
    kinds = {type(module).__name__ for module in model.modules()}
    assert ("Linear4bit" if bits == "4-bit" else "Linear8bitLt") in kinds
    trainer = sft(
        model,
        tokenizer,
        tmp_path / "sft",
        peft_config=LoraConfig(**LORA),
        activation_checkpointing=True,
        learning_rate=0.01,
        per_device_train_batch_size=8,
    )
    before = {key: value.clone() for key, value in trainer.model.state_dict().items() if torch.is_tensor(value)}
    first = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.state.global_step == 3 and diffusion_model(trainer.model).is_activation_checkpointing
    last = trainer.evaluate()["eval_loss"]
    print(f"{bits} {family}: loss {first:.3f} -> {last:.3f} in 3 steps")
    assert last < first
    for key, value in trainer.model.state_dict().items():
        if torch.is_tensor(value) and "lora_" not in key:
            assert torch.equal(before[key], value), key


@pytest.mark.parametrize("bits", QUANTIZED)
@pytest.mark.parametrize("family", ["llada", "dream", "sdar", "llada2_moe"])
def test_a_quantized_model_is_saved_and_loaded(family, bits, tmp_path):
    tokenizer, config = character_tokenizer("01234"), BitsAndBytesConfig(**QUANTIZED[bits])
    random_model(family, tokenizer, hidden_size=64, intermediate_size=128, head_dim=16).save_pretrained(tmp_path / "m")
    model = AutoModelForDiffusionLM.from_pretrained(tmp_path / "m", dtype=torch.float32, quantization_config=config)
    if family == "llada2_moe":
        with pytest.raises(ValueError, match="quantized and cannot be saved in its Hub format"):
            model.save_pretrained(tmp_path / "again")
        return
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForDiffusionLM.from_pretrained(tmp_path / "again", dtype=torch.float32)
    ids = torch.randint(3, 8, (1, 6))
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize("name", ["sft", "tracerl"])
def test_a_compiled_model_trains(name, family, tokenizer, tmp_path):
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}
    model = random_model(family, tokenizer)
    if name == "sft":
        trainer = sft(model, tokenizer, tmp_path, **compiled)
    else:
        trainer = rl_trainer(name, model, tokenizer, tmp_path, sum_of_digits, **compiled)
    before = model.lm_head.weight.clone()
    trainer.train()
    assert not torch.equal(before, model.lm_head.weight)


@pytest.mark.parametrize("family", ["llada", "dream", "sdar"])
def test_a_4_bit_model_has_the_same_gradient_before_and_after_generating(family, tmp_path):
    tokenizer = character_tokenizer("01234")
    random_model(family, tokenizer, hidden_size=64, intermediate_size=128, head_dim=16).save_pretrained(tmp_path)
    model = AutoModelForDiffusionLM.from_pretrained(
        tmp_path, dtype=torch.float32, quantization_config=BitsAndBytesConfig(**QUANTIZED["4-bit"])
    )
    embedding = model.get_input_embeddings().weight.requires_grad_(True)
    ids = torch.arange(3, 8).view(1, 5)
    gradients = []
    for _ in range(2):
        model.train()
        model(ids, labels=ids).loss.backward()
        gradients.append(embedding.grad.clone())
        embedding.grad = None
        model.generate(ids, max_new_tokens=4)
    assert torch.equal(*gradients) and gradients[0].any()


def test_the_same_model_generates_with_sdpa_eager_and_flex_attention(every_family):
    ids = torch.arange(3, 11).view(1, 8)
    found = []
    for implementation in ("sdpa", "eager", "flex_attention"):
        model = golden_model(every_family, attn_implementation=implementation)
        found.append(model.generate(ids, max_new_tokens=8, num_denoising_steps=4))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
