# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Adapters trained on LLaDA's remote code: translated whole, or refused."""

import json

import pytest
import torch
from conftest import DATA, golden_model
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, IA3Config, LoHaConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from trl_diffusion import AutoModelForDiffusionLM, DiffusionGenerationConfig, DiffusionSFTConfig, DiffusionSFTTrainer


BASE = DATA / "models" / "llada"


def tree(weights: dict[str, torch.Tensor]) -> nn.Module:
    """A module tree with the names of the remote code, so that PEFT itself makes the adapter on it."""
    root = nn.Module()
    for key, value in weights.items():
        *path, last, kind = key.split(".")
        assert kind == "weight"
        parent = root
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent._modules[part]
        if value.ndim == 1:
            module = nn.LayerNorm(len(value), bias=False)
        elif last == "wte":
            module = nn.Embedding(*value.shape)
        else:
            module = nn.Linear(value.shape[1], value.shape[0], bias=False)
        module.weight.data.copy_(value)
        parent.add_module(last, module)
    return root


def remote_adapter(folder, base=BASE, seed=0, **kwargs):
    """Writes an adapter as PEFT writes it on the remote code. Returns the weights with the adapter merged in."""
    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 8, "init_lora_weights": False, "task_type": None, **kwargs}
    weights = load_file(base / "model.safetensors")
    model = get_peft_model(tree(weights), LoraConfig(**settings))
    model.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": str(base), "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    merged = {key: value.clone() for key, value in weights.items()}
    adapter = load_file(folder / "adapter_model.safetensors")
    for key, a in adapter.items():
        if key.endswith("lora_A.weight"):
            b = adapter[key.replace("lora_A", "lora_B")]
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            merged[f"{name}.weight"] += b @ a * 2  # alpha / r
        if key.endswith("lora_embedding_A"):
            b = adapter[key.replace("embedding_A", "embedding_B")]
            merged["model.transformer.wte.weight"] += (b @ a).T * 2
    return merged


def expected_logits(merged, folder, ids):
    folder.mkdir()
    save_file(merged, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text((BASE / "config.json").read_text())
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(ids).logits


IDS = torch.arange(20).view(2, 10)


@pytest.mark.parametrize(
    "target_modules",
    [
        ["q_proj", "k_proj", "v_proj"],
        ["q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj"],
        ["q_proj", "ff_proj", "ff_out"],  # both the projection and the head
        ["q_proj", "transformer.ff_out"],  # the head alone
        ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"],  # d1's: four of them exist
        r".*blocks\.1\.(attn_out|ff_out)",
        ["wte", "v_proj"],
    ],
)
def test_an_adapter_of_the_remote_code_is_translated(target_modules, tmp_path):
    merged = remote_adapter(tmp_path / "adapter", target_modules=target_modules)
    model = AutoModelForDiffusionLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32).eval()
    expected = expected_logits(merged, tmp_path / "merged", IDS)
    with torch.no_grad():
        found = model(IDS).logits
    assert (found - golden_model("llada")(IDS).logits).abs().max() > 0.1
    assert torch.allclose(found, expected, atol=1e-4)
    # Saved again, it is an adapter that PEFT and the Auto classes load.
    model.save_pretrained(tmp_path / "native")
    again = PeftModel.from_pretrained(golden_model("llada"), tmp_path / "native").eval()
    with torch.no_grad():
        assert torch.allclose(again(input_ids=IDS).logits, expected, atol=1e-4)
        assert torch.allclose(
            AutoModelForCausalLM.from_pretrained(tmp_path / "native", dtype=torch.float32).eval()(IDS).logits,
            expected,
            atol=1e-4,
        )


def test_layers_that_the_adapter_was_restricted_to(tmp_path):
    merged = remote_adapter(
        tmp_path / "adapter", target_modules=["q_proj", "ff_proj"], layers_to_transform=[1], layers_pattern="blocks"
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.allclose(model(IDS).logits, expected_logits(merged, tmp_path / "merged", IDS), atol=1e-4)


def test_the_translated_config_names_modules_briefly(tmp_path):
    remote_adapter(tmp_path, target_modules=["q_proj", "ff_proj"])
    model = AutoModelForDiffusionLM.from_pretrained(tmp_path)
    assert set(model.peft_config["default"].target_modules) == {"q_proj", "gate_proj"}


@pytest.mark.parametrize("load", [PeftModel.from_pretrained, None])
def test_peft_by_itself_does_not_load_such_an_adapter_in_part(load, tmp_path):
    remote_adapter(tmp_path, target_modules=["q_proj", "ff_proj"])
    with pytest.raises(ValueError, match="loaded in part.*AutoModelForDiffusionLM"):
        if load is None:
            AutoPeftModelForCausalLM.from_pretrained(tmp_path)
        else:
            load(golden_model("llada"), tmp_path)


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"target_modules": ["q_proj"], "modules_to_save": ["ln_f"]}, "modules_to_save"),
        ({"target_modules": ["q_proj"], "rank_pattern": {"blocks.0.q_proj": 2}}, "rank_pattern"),
        ({"target_modules": ["attn_out"], "alpha_pattern": {"attn_out": 2}}, "alpha_pattern"),
    ],
)
def test_what_is_not_translated_is_refused(settings, reason, tmp_path):
    remote_adapter(tmp_path, **settings)
    with pytest.raises(ValueError, match=f"remote code of LLaDAModelLM.*{reason}"):
        AutoModelForDiffusionLM.from_pretrained(tmp_path)


def test_a_fused_projection_is_refused(tmp_path):
    base = DATA / "models" / "llada2_moe"
    weights = load_file(base / "model.safetensors")
    plain = tmp_path / "plain"
    plain.mkdir()
    kept = {key: value for key, value in weights.items() if "expert_bias" not in key}
    save_file(kept, plain / "model.safetensors")
    remote_adapter(tmp_path / "adapter", base=plain, target_modules=["query_key_value"])
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": str(base)})
    )
    with pytest.raises(ValueError, match="query_key_value.*not translated"):
        AutoModelForDiffusionLM.from_pretrained(tmp_path / "adapter")


def test_an_adapter_of_another_model_is_refused(tmp_path):
    remote_adapter(tmp_path, target_modules=["q_proj"])
    weights = load_file(tmp_path / "adapter_model.safetensors")
    save_file(
        {key: value[..., :-1].contiguous() for key, value in weights.items()}, tmp_path / "adapter_model.safetensors"
    )
    with pytest.raises((ValueError, RuntimeError), match="size|shape"):
        AutoModelForDiffusionLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("change", ["lacks", "no place", "shapes"])
def test_a_refused_adapter_leaves_the_model_as_it_was(change, tmp_path):
    remote_adapter(tmp_path, target_modules=["q_proj", "v_proj"])
    weights = load_file(tmp_path / "adapter_model.safetensors")
    name = next(key for key in weights if "v_proj" in key)
    if change == "lacks":
        del weights[name]
    elif change == "no place":
        weights[name.replace("v_proj", "attn_out").replace("lora_A", "lora_other")] = torch.ones(2, 2)
    else:
        weights[name] = weights[name][..., :-1].contiguous()
    save_file(weights, tmp_path / "adapter_model.safetensors")
    model = golden_model("llada").train()
    with torch.no_grad():
        before = model(IDS).logits
        with pytest.raises((ValueError, RuntimeError)):
            model.load_adapter(str(tmp_path))
        assert torch.equal(model(IDS).logits, before)
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    model.eval()
    # A sound one can be loaded then.
    merged = remote_adapter(tmp_path / "sound", target_modules=["q_proj", "ff_proj"])
    model.load_adapter(str(tmp_path / "sound"))
    with torch.no_grad():
        assert torch.allclose(model(IDS).logits, expected_logits(merged, tmp_path / "merged", IDS), atol=1e-4)


def test_a_refused_hot_swap_leaves_the_adapter_as_it_was(tmp_path):
    for seed, folder in enumerate(("one", "two")):
        remote_adapter(tmp_path / folder, seed=seed, target_modules=["q_proj", "ff_proj"])
    weights = load_file(tmp_path / "two" / "adapter_model.safetensors")
    del weights[next(key for key in weights if "ff_proj" in key)]
    save_file(weights, tmp_path / "two" / "adapter_model.safetensors")
    model = golden_model("llada")
    model.load_adapter(str(tmp_path / "one"))
    with torch.no_grad():
        before = model(IDS).logits
        with pytest.raises(ValueError, match="lacks"):
            model.load_adapter(str(tmp_path / "two"), adapter_name="default", hotswap=True)
        assert torch.equal(model(IDS).logits, before)


@pytest.mark.parametrize("names", [("default", "second"), ("q", "model")])
def test_a_second_adapter(names, tmp_path):
    expected = {}
    for index, (name, modules) in enumerate(zip(names, (["q_proj", "ff_proj"], ["q_proj", "attn_out"]), strict=True)):
        merged = remote_adapter(tmp_path / name, seed=index, target_modules=modules)
        expected[name] = expected_logits(merged, tmp_path / f"merged-{name}", IDS)
    model = golden_model("llada")
    for name in names:
        model.load_adapter(str(tmp_path / name), adapter_name=name)
    for name in names:
        model.set_adapter(name)
        with torch.no_grad():
            assert torch.allclose(model.eval()(IDS).logits, expected[name], atol=1e-4)


def test_rank_stabilised_and_weight_decomposed_adapters(tmp_path):
    for settings in ({"use_rslora": True}, {"use_dora": True}):
        folder = tmp_path / next(iter(settings))
        native = get_peft_model(
            golden_model("llada"),
            LoraConfig(
                target_modules=["q_proj", "gate_proj"], init_lora_weights=False, task_type="CAUSAL_LM", **settings
            ),
        ).eval()
        native.save_pretrained(folder)
        with torch.no_grad():
            expected = native(input_ids=IDS).logits
            model = AutoModelForDiffusionLM.from_pretrained(folder, dtype=torch.float32).eval()
            assert torch.allclose(model(IDS).logits, expected, atol=1e-4)
        # The same adapter under the remote code's names.
        weights = load_file(folder / "adapter_model.safetensors")
        remote = {}
        for key, value in weights.items():
            key = key.replace("model.layers", "model.transformer.blocks").replace("self_attn.", "")
            remote[key.replace("mlp.gate_proj", "ff_proj")] = value
        save_file(remote, folder / "adapter_model.safetensors")
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["q_proj", "ff_proj"]}))
        with torch.no_grad():
            model = AutoModelForDiffusionLM.from_pretrained(folder, dtype=torch.float32).eval()
            assert torch.allclose(model(IDS).logits, expected, atol=1e-4)


@pytest.mark.parametrize("load", ["auto", "peft"])
@pytest.mark.parametrize("kind", ["ia3", "loha", "modules_to_save"])
def test_other_kinds_of_remote_adapters_are_refused_by_every_road(kind, load, tmp_path):
    torch.manual_seed(0)
    modules = ["q_proj", "ff_proj"]
    config = {
        "ia3": IA3Config(target_modules=modules, feedforward_modules=["ff_proj"], init_ia3_weights=False),
        "loha": LoHaConfig(target_modules=modules, init_weights=False),
        "modules_to_save": LoraConfig(target_modules=["q_proj"], modules_to_save=["ln_f"]),
    }[kind]
    get_peft_model(tree(load_file(BASE / "model.safetensors")), config).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    saved |= {"base_model_name_or_path": str(BASE), "task_type": "CAUSAL_LM"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(saved))
    with pytest.raises((ValueError, KeyError)):
        if load == "auto":
            AutoModelForDiffusionLM.from_pretrained(tmp_path)
        else:
            PeftModel.from_pretrained(golden_model("llada"), tmp_path)


def test_single_experts_are_refused(tmp_path):
    weights = load_file(DATA / "models" / "lladamoe" / "model.safetensors")
    key = "base_model.model.model.layers.0.mlp.experts.3.up_proj"
    out_features, in_features = weights["model.layers.0.mlp.experts.3.up_proj.weight"].shape
    save_file(
        {f"{key}.lora_A.weight": torch.ones(2, in_features), f"{key}.lora_B.weight": torch.ones(out_features, 2)},
        tmp_path / "adapter_model.safetensors",
    )
    LoraConfig(
        r=2,
        target_modules=["up_proj"],
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(DATA / "models" / "lladamoe"),
    ).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="single expert.*stacked"):
        AutoModelForDiffusionLM.from_pretrained(tmp_path)


def test_trainers_refuse_what_they_would_train_wrongly(tokenizer, tmp_path):
    remote_adapter(tmp_path / "adapter", target_modules=["q_proj"])
    args = DiffusionSFTConfig(str(tmp_path / "out"), use_cpu=True, bf16=False)
    dataset = Dataset.from_dict({"prompt": ["0"], "completion": ["1"]})
    injected = AutoModelForDiffusionLM.from_pretrained(tmp_path / "adapter")
    for model, message in ((str(tmp_path / "adapter"), "is an adapter"), (injected, "has an adapter inside")):
        with pytest.raises(ValueError, match=f"{message}.*PeftModel.from_pretrained"):
            DiffusionSFTTrainer(model, args, train_dataset=dataset, processing_class=tokenizer)


def test_native_adapters_pass_through(every_family, tmp_path):
    torch.manual_seed(0)
    target = "all-linear"
    model = get_peft_model(
        golden_model(every_family), LoraConfig(target_modules=target, init_lora_weights=False, task_type="CAUSAL_LM")
    ).eval()
    ids = torch.arange(12).view(1, 12)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    model.save_pretrained(tmp_path)
    for loaded in (
        AutoModelForDiffusionLM.from_pretrained(tmp_path, dtype=torch.float32),
        PeftModel.from_pretrained(golden_model(every_family), tmp_path),
    ):
        with torch.no_grad():
            assert torch.allclose(loaded.eval()(input_ids=ids).logits, expected, atol=1e-5)


def test_generation_settings_of_an_adapter_that_cannot_be_read_are_missed_aloud(tmp_path, monkeypatch, caplog):
    remote_adapter(tmp_path, target_modules=["q_proj"])
    base = AutoModelForDiffusionLM.from_pretrained(tmp_path).generation_config.to_dict()
    assert not caplog.records  # an adapter of another tool has none
    steps = {"max_new_tokens": 12, "num_denoising_steps": 5}
    DiffusionGenerationConfig(**steps).save_pretrained(tmp_path)
    assert AutoModelForDiffusionLM.from_pretrained(tmp_path).generation_config.num_denoising_steps == 5

    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("trl_diffusion.models.auto.cached_file", unreachable)
    found = AutoModelForDiffusionLM.from_pretrained(tmp_path).generation_config
    assert found.num_denoising_steps == base["num_denoising_steps"]
    assert "could not be found out (no network)" in caplog.text
    (tmp_path / "generation_config.json").write_text("{")
    monkeypatch.undo()
    with pytest.raises((OSError, ValueError), match="JSON"):
        AutoModelForDiffusionLM.from_pretrained(tmp_path)
