# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""`AutoModelForDiffusionLM`, the ordinary Auto classes, and what they refuse."""

import json
import shutil

import pytest
import torch
from conftest import DATA, FAMILIES, golden_model, random_model
from datasets import Dataset
from tokenizers import pre_tokenizers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    DiffusionGemmaConfig,
    DiffusionGemmaForBlockDiffusion,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from trl_diffusion import (
    AutoModelForDiffusionLM,
    DiffusionGRPOConfig,
    DiffusionGRPOTrainer,
    DiffusionSFTConfig,
    DiffusionSFTTrainer,
)
from trl_diffusion.models import DreamConfig, LLaDA2MoeConfig, LLaDAConfig, SDARConfig
from trl_diffusion.tasks import character_tokenizer


REMOTE_CODE = "raise SystemExit('remote code was executed')\n"


def copy_with_remote_code(family, folder):
    """A golden checkpoint with the files its `auto_map` points to, which must never run."""
    shutil.copytree(DATA / "models" / family, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForMaskedLM")
    config["auto_map"] = {name: f"remote.Any{name}" for name in names}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "remote.py").write_text(REMOTE_CODE)


@pytest.mark.parametrize("trust", [None, True])
@pytest.mark.parametrize(
    "auto_class", [AutoModelForDiffusionLM, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModel]
)
def test_no_auto_class_executes_remote_code(every_family, auto_class, trust, tmp_path, caplog):
    copy_with_remote_code(every_family, tmp_path)
    model = auto_class.from_pretrained(tmp_path, trust_remote_code=trust, dtype=torch.float32)
    assert type(model) is FAMILIES[every_family][1]
    assert ("trust_remote_code=True has no effect" in caplog.text) == bool(trust)
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), golden_model(every_family).state_dict().values(), strict=True)
    )


def test_arguments_reach_the_model(every_family):
    folder = DATA / "models" / every_family
    model, info = AutoModelForDiffusionLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="eager", device_map={"": "meta"}, output_loading_info=True
    )
    assert model.dtype == torch.bfloat16 and model.config._attn_implementation == "eager"
    assert model.device.type == "meta" and not info["missing_keys"]
    assert model.mask_token_id == 252


def test_the_block_length_can_be_given():
    for family in ("sdar", "a2d-qwen3"):
        model = AutoModelForDiffusionLM.from_pretrained(DATA / "models" / family, block_length=8)
        assert model.block_length == 8 and model.attention == "block_causal"
    assert AutoModelForDiffusionLM.from_pretrained(DATA / "models" / "a2d-qwen3").attention == "full"


def test_published_constants():
    """Ids and blocks that the published configs leave out."""
    assert (SDARConfig(vocab_size=151936).mask_token_id, SDARConfig(vocab_size=151936).block_length) == (151669, 4)
    assert LLaDA2MoeConfig(vocab_size=157184).mask_token_id == 156895 and LLaDA2MoeConfig().block_length == 32
    assert LLaDAConfig(vocab_size=126464).mask_token_id == 126336
    assert DreamConfig(vocab_size=152064).mask_token_id == 151666
    # LLaDA-MoE calls itself "llada" too.
    config = LLaDAConfig.from_dict({"model_type": "llada", "num_experts": 64, "vocab_size": 157184})
    assert config.mask_token_id == 156895 and config.model_type == "lladamoe"
    assert config.to_dict()["model_type"] == "llada"


def without_mask_token(tokenizer, folder, family="a2d-llama", **model_kwargs):
    model = random_model(family, tokenizer, mask_token_id=None, eos_token_id=None, **model_kwargs)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def test_the_mask_token_and_eos_come_from_the_tokenizer(tokenizer, tmp_path, caplog):
    without_mask_token(tokenizer, tmp_path)
    with pytest.raises(ValueError, match="no tokenizer was found.*mask_token_id="):
        AutoModelForDiffusionLM.from_pretrained(tmp_path)
    given = AutoModelForDiffusionLM.from_pretrained(tmp_path, mask_token_id=1)
    assert given.mask_token_id == 1
    assert "generation will run to the end of the canvas" in caplog.text
    tokenizer.save_pretrained(tmp_path)
    model = AutoModelForDiffusionLM.from_pretrained(tmp_path)
    assert model.mask_token_id == tokenizer.mask_token_id
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id


def test_a_mask_token_that_the_tokenizer_does_not_declare(tmp_path):
    """LLaDA's tokenizer has `<|mdm_mask|>` among its tokens and no `mask_token`."""
    tokenizer = character_tokenizer("01234")
    tokenizer.add_tokens(["<|mask|>"])
    expected = tokenizer.convert_tokens_to_ids("<|mask|>")
    tokenizer.mask_token = None
    without_mask_token(tokenizer, tmp_path, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).mask_token is None
    assert AutoModelForDiffusionLM.from_pretrained(tmp_path).mask_token_id == expected


def test_trainers_take_a_mask_token_that_is_not_declared_where_the_config_has_none(tmp_path):
    tokenizer = character_tokenizer("01234")
    assert tokenizer.mask_token == "<|mask|>"
    tokenizer.mask_token = None
    dataset = Dataset.from_dict({"prompt": ["0"], "completion": ["1"]})
    for given, expected in ((None, tokenizer.convert_tokens_to_ids("<|mask|>")), (3, 3)):
        model = random_model("a2d-llama", tokenizer, mask_token_id=given)
        args = DiffusionSFTConfig(str(tmp_path), use_cpu=True, bf16=False)
        DiffusionSFTTrainer(model, args, train_dataset=dataset, processing_class=tokenizer)
        assert model.mask_token_id == expected


def test_a_tokenizer_without_any_mask_token_is_reported(tokenizer, tmp_path):
    without_mask_token(tokenizer, tmp_path, family="sdar")  # writes it otherwise
    tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="neither the config nor the tokenizer names a mask token"):
        AutoModelForDiffusionLM.from_pretrained(tmp_path)


def test_the_code_of_a_tokenizer_is_not_executed_to_find_the_mask_token(tokenizer, tmp_path):
    without_mask_token(tokenizer, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Odd", "auto_map": {"AutoTokenizer": ["remote.Odd", None]}})
    )
    (tmp_path / "remote.py").write_text(REMOTE_CODE)
    with pytest.raises(ValueError, match="no tokenizer was found"):
        AutoModelForDiffusionLM.from_pretrained(tmp_path, trust_remote_code=True)


def test_unknown_architectures_are_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "mystery", "architectures": ["Mystery"], "auto_map": {"AutoConfig": "remote.Any"}})
    )
    (tmp_path / "remote.py").write_text(REMOTE_CODE)
    with pytest.raises(ValueError, match="model_type='mystery'.*Supported: Dream, a2d-llama.*sdar_moe"):
        AutoModelForDiffusionLM.from_pretrained(tmp_path, trust_remote_code=True)


def test_a_subfolder(tmp_path):
    shutil.copytree(DATA / "models" / "llada", tmp_path / "inner")
    for folder in (tmp_path, str(tmp_path)):
        assert AutoModelForDiffusionLM.from_pretrained(folder, subfolder="inner").mask_token_id == 252


def test_a_folder_without_config_is_reported(tmp_path):
    with pytest.raises(ValueError, match="has no config.json"):
        AutoModelForDiffusionLM.from_pretrained(tmp_path)


def test_an_adapter_without_a_base_model_is_reported(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": None, "peft_type": "LORA"}))
    with pytest.raises(ValueError, match="names no base_model_name_or_path"):
        AutoModelForDiffusionLM.from_pretrained(tmp_path)


def test_an_autoregressive_checkpoint_is_pointed_to_convert(tmp_path):
    config = Qwen3Config(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="autoregressive.*trl-diffusion convert"):
        AutoModelForDiffusionLM.from_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="Qwen3Config"):
        Qwen3ForCausalLM(config).save_pretrained(tmp_path)
        AutoModelForDiffusionLM.from_pretrained(str(tmp_path), config=config)


def byte_level_files(folder):
    """The files of Dream's tokenizer: no tokenizer.json, a class of the repository."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate([*letters, "th", "the", "Ġthe"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e\nĠ the\n")
    special = {
        len(vocabulary): "<|endoftext|>",
        len(vocabulary) + 1: "<|beginoftext|>",
        len(vocabulary) + 2: "<|mask|>",
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "DreamTokenizer",
                "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
                "added_tokens_decoder": {
                    str(index): {
                        "content": token,
                        "special": True,
                        "lstrip": False,
                        "rstrip": False,
                        "normalized": False,
                        "single_word": False,
                    }
                    for index, token in special.items()
                },
                "bos_token": "<|beginoftext|>",
                "eos_token": "<|endoftext|>",
                "pad_token": "<|endoftext|>",
                "mask_token": "<|mask|>",
            }
        )
    )
    (folder / "tokenization_dream.py").write_text(REMOTE_CODE)
    return vocabulary, special


@pytest.mark.parametrize("trust", [None, True])
def test_dreams_tokenizer_is_native(tmp_path, trust):
    shutil.copytree(DATA / "models" / "dream", tmp_path, dirs_exist_ok=True)
    vocabulary, special = byte_level_files(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=trust)
    assert type(tokenizer).__module__.startswith("trl_diffusion.")
    text = "the<|mask|> the\n12<|endoftext|>"
    pieces = ["the", "<|mask|>", "Ġthe", "Ċ", "1", "2", "<|endoftext|>"]
    ids = {**vocabulary, **{token: index for index, token in special.items()}}
    assert tokenizer(text)["input_ids"] == [ids[piece] for piece in pieces]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.mask_token_id == len(vocabulary) + 2 and tokenizer.bos_token == "<|beginoftext|>"
    again = tmp_path / "again"
    tokenizer.save_pretrained(again)
    assert AutoTokenizer.from_pretrained(again)(text)["input_ids"] == tokenizer(text)["input_ids"]


@pytest.fixture
def gemma(tmp_path):
    text = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "global_head_dim": 16,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    torch.manual_seed(0)
    config = DiffusionGemmaConfig(text_config=text, vision_config=vision, canvas_length=8)
    DiffusionGemmaForBlockDiffusion(config).save_pretrained(tmp_path)
    return tmp_path


def test_diffusion_gemma_is_loaded_and_generates_its_own_way(gemma):
    model = AutoModelForDiffusionLM.from_pretrained(gemma, dtype=torch.float32)
    assert type(model) is DiffusionGemmaForBlockDiffusion
    output = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=8, max_denoising_steps=2)
    sequences = output if isinstance(output, torch.Tensor) else output.sequences
    assert sequences.size(1) > 3 and torch.equal(sequences[:, :3], torch.tensor([[5, 6, 7]]))


@pytest.mark.parametrize("as_path", [True, False])
@pytest.mark.parametrize(
    "trainer_class, config_class, extra",
    [
        (DiffusionSFTTrainer, DiffusionSFTConfig, {}),
        (DiffusionGRPOTrainer, DiffusionGRPOConfig, {"reward_funcs": lambda completions, **kwargs: [0.0]}),
    ],
)
def test_trainers_say_that_uniform_corruption_is_not_supported(
    gemma, tokenizer, tmp_path, as_path, trainer_class, config_class, extra
):
    model = str(gemma) if as_path else AutoModelForDiffusionLM.from_pretrained(gemma)
    dataset = Dataset.from_dict({"prompt": ["0"], "completion": ["1"]})
    with pytest.raises(ValueError, match="no mask token.*uniform corruption is not supported yet"):
        trainer_class(
            model=model,
            args=config_class(str(tmp_path / "out"), use_cpu=True, bf16=False),
            train_dataset=dataset,
            processing_class=tokenizer,
            **extra,
        )


def test_trainers_do_not_pass_trust_remote_code_on(tokenizer, tmp_path, caplog):
    copy_with_remote_code("llada", tmp_path)
    tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["remote.Tokenizer", None]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "mask_token_id": tokenizer.mask_token_id}))
    args = DiffusionSFTConfig(str(tmp_path / "out"), use_cpu=True, bf16=False, trust_remote_code=True)
    dataset = Dataset.from_dict({"prompt": ["0"], "completion": ["1"]})
    DiffusionSFTTrainer(str(tmp_path), args, train_dataset=dataset)
    assert "trust_remote_code=True has no effect" in caplog.text
