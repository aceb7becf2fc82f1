# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Autoregressive checkpoints turned into diffusion formats."""

import json

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from trl_diffusion import (
    AutoModelForDiffusionLM,
    DiffusionGenerationConfig,
    DiffusionSFTConfig,
    DiffusionSFTTrainer,
)
from trl_diffusion.models.from_autoregressive import convert_autoregressive
from trl_diffusion.scripts.cli import main
from trl_diffusion.tasks import character_tokenizer


SOURCES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"attention_bias": True}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 8}),
    "qwen3_moe": (
        Qwen3MoeConfig,
        Qwen3MoeForCausalLM,
        {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    ),
    "mistral": (MistralConfig, MistralForCausalLM, {}),
}


@pytest.fixture
def source(request, tmp_path):
    """A tiny autoregressive checkpoint whose tokenizer knows no mask token."""
    config_class, model_class, extra = SOURCES[request.param]
    tokenizer = character_tokenizer("01234")
    tokenizer.mask_token = None
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    torch.manual_seed(0)
    config = config_class(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "initializer_range": 0.3,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **extra,
        }
    )
    model = model_class(config)
    model.generation_config.update(do_sample=True, temperature=0.6, top_k=20)
    model.save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def hand_masked(model, ids, visible):
    """Logits of the autoregressive original under a mask written out by hand."""
    mask = torch.tensor([[[[bool(visible(q, k)) for k in range(ids.size(1))] for q in range(ids.size(1))]]])
    with torch.no_grad():
        return model(ids, attention_mask=mask).logits


CASES = [
    ("llama", "a2d", None, "a2d-llama"),
    ("llama", "a2d", 3, "a2d-llama"),
    ("qwen2", "a2d", None, "a2d-qwen2"),
    ("qwen3", "a2d", None, "a2d-qwen3"),
    ("qwen3", "sdar", None, "sdar"),
    ("qwen3", "sdar", 3, "sdar"),
    ("qwen3_moe", "sdar", None, "sdar_moe"),
]


@pytest.mark.parametrize("source, to, block_length, model_type", CASES, indirect=["source"])
def test_the_result_is_the_original_with_its_attention_opened(source, to, block_length, model_type, tmp_path):
    arguments = ["convert", "--model", str(source), "--to", to, "--output_dir", str(tmp_path / "out")]
    if block_length is not None:
        arguments += ["--block_length", str(block_length)]
    mask_token = "<|MASK|>" if to == "sdar" else "<|mask|>"
    assert main([*arguments, "--mask_token", mask_token]) == 0
    original = AutoModelForCausalLM.from_pretrained(source).eval()
    known = original.config.vocab_size
    model = AutoModelForDiffusionLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.config.model_type == model_type
    assert model.mask_token_id == tokenizer.mask_token_id and tokenizer.mask_token == mask_token
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(source).chat_template

    block = block_length or (4 if to == "sdar" else 100)
    ids = torch.tensor([[3, 4, 5, 6, 7, 3, 5, 7, 6]])
    with torch.no_grad():
        found = model(ids).logits[..., :known]
    text = [token for token in range(known) if token != model.mask_token_id]
    expected = hand_masked(original, ids, lambda q, k: k // block <= q // block)[..., text]
    causal = hand_masked(original, ids, lambda q, k: k <= q)[..., text]
    to_masked, to_causal = (found[..., text] - expected).abs().max(), (found[..., text] - causal).abs().max()
    print(f"{model_type}: {to_masked:.1e} from the hand-masked original, {to_causal:.2f} from the causal one")
    assert to_masked <= 2e-5
    assert to_causal > 0.1


@pytest.mark.parametrize("source, to, block_length, model_type", CASES, indirect=["source"])
def test_the_result_is_trained_and_generates(source, to, block_length, model_type, tmp_path):
    convert_autoregressive(str(source), to, str(tmp_path / "out"), block_length=block_length)
    args = DiffusionSFTConfig(
        str(tmp_path / "sft"),
        max_steps=60,
        learning_rate=5e-3,
        per_device_train_batch_size=8,
        logging_steps=20,
        report_to="none",
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    dataset = Dataset.from_dict({"prompt": ["012", "34"] * 8, "completion": ["1234", "33"] * 8})
    sft = DiffusionSFTTrainer(str(tmp_path / "out"), args, train_dataset=dataset)
    sft.train()
    losses = [entry["loss"] for entry in sft.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    tokenizer = sft.processing_class
    ids = torch.tensor([tokenizer("012", add_special_tokens=False)["input_ids"]])
    sequences = sft.model.generate(ids, max_new_tokens=5)
    assert tokenizer.decode(sequences[0, 3:], skip_special_tokens=True).replace(" ", "") == "1234"


@pytest.mark.parametrize("source", ["qwen3"], indirect=True)
def test_mask_token_rows(source, tmp_path):
    """Appended where the vocabulary is full, else put into a row to spare; the mean of the other rows both times."""
    weights = load_file(source / "model.safetensors")
    known = len(weights["lm_head.weight"])
    appended = convert_autoregressive(str(source), "a2d", str(tmp_path / "appended"), mask_token="<new>")
    assert appended.mask_token_id == known and appended.config.vocab_size == known + 1
    config = json.loads((source / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(source)
    assert len(tokenizer) == known
    original = AutoModelForCausalLM.from_pretrained(source)
    original.resize_token_embeddings(known + 5)
    original.save_pretrained(source)
    spare = convert_autoregressive(str(source), "a2d", str(tmp_path / "spare"), mask_token="<new>")
    assert spare.mask_token_id == known and spare.config.vocab_size == known + 5
    for model in (appended, spare):
        for key, matrix in (
            ("model.embed_tokens.weight", model.get_input_embeddings()),
            ("lm_head.weight", model.lm_head),
        ):
            assert torch.equal(matrix.weight[:known], weights[key])
            assert torch.allclose(matrix.weight[known], weights[key].mean(0), atol=1e-6)
    assert config["vocab_size"] == known


@pytest.mark.parametrize("source", ["llama"], indirect=True)
def test_generation_defaults_are_the_special_tokens_alone(source, tmp_path):
    convert_autoregressive(str(source), "a2d", str(tmp_path / "out"))
    saved = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(source)
    assert saved["eos_token_id"] == tokenizer.eos_token_id and saved["pad_token_id"] == tokenizer.pad_token_id
    # Greedy, in transformers' terms and ours.
    assert saved["do_sample"] is False and saved.get("top_k") is None
    assert DiffusionGenerationConfig.from_pretrained(tmp_path / "out").temperature == 0.0


@pytest.mark.parametrize("source", ["llama"], indirect=True)
def test_bad_input(source, tmp_path, capsys):
    with pytest.raises(ValueError, match="to='bert' must be one of a2d, sdar"):
        convert_autoregressive(str(source), "bert", str(tmp_path / "out"))
    with pytest.raises(ValueError, match="model_type='llama'; to='sdar' takes qwen3, qwen3_moe"):
        convert_autoregressive(str(source), "sdar", str(tmp_path / "out"))
    with pytest.raises(FileExistsError, match="not an empty folder"):
        convert_autoregressive(str(source), "a2d", str(source))
    with pytest.raises(ValueError, match="block_length=0 must be at least 1"):
        convert_autoregressive(str(source), "a2d", str(tmp_path / "out"), block_length=0)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ValueError, match="is quantized"):
        convert_autoregressive(str(source), "a2d", str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == [source]  # nothing was left behind
    assert main(["convert", "--model", str(source), "--to", "a2d", "--output_dir", str(source)]) == 1
    assert "trl-diffusion convert: output_dir=" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["mistral"], indirect=True)
def test_an_architecture_without_conversion_is_refused(source, tmp_path):
    with pytest.raises(ValueError, match="model_type='mistral'; to='a2d' takes llama, qwen2, qwen3"):
        convert_autoregressive(str(source), "a2d", str(tmp_path / "out"))


@pytest.mark.parametrize("source", ["llama"], indirect=True)
@pytest.mark.parametrize("token, use", [("3", "an ordinary token of its text"), ("eos", "eos"), ("pad", "pad")])
def test_a_mask_token_that_means_something_else_is_refused(source, token, use, tmp_path):
    if token != "3":
        token = getattr(AutoTokenizer.from_pretrained(source), f"{token}_token")
    with pytest.raises(ValueError, match=f"is {use} in this tokenizer"):
        convert_autoregressive(str(source), "a2d", str(tmp_path / "out"), mask_token=token)


@pytest.mark.parametrize("source", ["llama"], indirect=True)
def test_a_mask_token_beyond_the_vocabulary_gets_a_row(source, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"mask_token": "<new>"})
    tokenizer.save_pretrained(source)
    known = AutoModelForCausalLM.from_pretrained(source).config.vocab_size
    model = convert_autoregressive(str(source), "a2d", str(tmp_path / "out"))
    assert model.mask_token_id == known and model.config.vocab_size == known + 1
    model.generate(torch.tensor([[3, 4]]), max_new_tokens=3)


@pytest.mark.parametrize("source", ["llama"], indirect=True)
def test_a_failure_while_writing_leaves_nothing(source, tmp_path, monkeypatch):
    import trl_diffusion.models.from_autoregressive as module

    def fail(self, *args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(module.PreTrainedTokenizerBase, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        convert_autoregressive(str(source), "a2d", str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == [source]
