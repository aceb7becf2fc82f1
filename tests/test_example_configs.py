# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The YAML files of examples/configs: each is a command's, every key is an option, and the settings are valid for the
processes that the file asks for."""

import runpy
from pathlib import Path

import pytest
import yaml
from transformers import TrainingArguments
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from trl_diffusion import DiffusionSFTConfig
from trl_diffusion.checkpoints import tiny_checkpoints
from trl_diffusion.models.auto import supported_model_types
from trl_diffusion.scripts.launching import find_accelerate_config
from trl_diffusion.scripts.training import TRAINING_COMMANDS, make_parser


EXAMPLES = Path(__file__).parents[1] / "examples"
FILES = {path.stem: path for path in sorted((EXAMPLES / "configs").glob("*.yaml"))}
ALIGNED = "length_aligned_sft_tiny"  # of a script with arguments of its own
# What the ids of published models begin with → `model_type` of their family.
FAMILIES = {"GSAI-ML/LLaDA-8B-": "llada", "JetLM/SDAR-4B-": "sdar", "Dream-org/Dream-v0-": "Dream"}


def command_of(name: str) -> str:
    return next(command for command in TRAINING_COMMANDS if name.startswith(command.replace("-", "_") + "_"))


def settings(path: Path, monkeypatch):
    """The three dataclasses, as each of the processes builds them that the file asks for."""
    content = yaml.safe_load(path.read_text())
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda self: content.get("num_processes", 1)))
    parser = make_parser(command_of(path.stem))
    # These processes have GPUs, and this one may have none.
    return parser.build(parser.split(["--config", str(path), "--use_cpu", "true"]))


def test_there_is_a_file_for_each_method_and_machine():
    for command in TRAINING_COMMANDS:
        kinds = {name.split("_")[-1] for name in FILES if name != ALIGNED and command_of(name) == command}
        machines = {
            "unmask-policy": {"tiny", "4bit", "ddp"},  # sharded weights are refused, and there is no adapter
            "grpo": {"tiny", "qlora"},
        }
        assert kinds == machines.get(command, {"tiny", "qlora", "zero3", "fsdp2"}), command


@pytest.mark.parametrize("name", [name for name in FILES if name != ALIGNED])
def test_a_file_is_valid_for_its_command_and_its_processes(name, monkeypatch):
    path = FILES[name]
    assert f"trl-diffusion {command_of(name)} --config examples/configs/{path.name}" in path.read_text() or (
        name.endswith("_tiny")
    )
    content = yaml.safe_load(path.read_text())
    script, config, model = settings(path, monkeypatch)
    if name.endswith("_tiny"):
        assert model.model_name_or_path in tiny_checkpoints() and "num_processes" not in content
        return
    (model_type,) = (kind for start, kind in FAMILIES.items() if model.model_name_or_path.startswith(start))
    assert model_type in supported_model_types()
    processes = content.get("num_processes", 1)
    assert processes == (8 if "_8gpu_" in name else 1) and f"{processes} GPUs" in path.read_text().replace(
        "one GPU", "1 GPUs"
    )
    if processes == 8:
        launcher = yaml.safe_load(Path(find_accelerate_config(content["accelerate_config"])).read_text())
        assert launcher["num_processes"] == 8
        assert launcher["distributed_type"] == {
            "zero3": "DEEPSPEED", "fsdp2": "FSDP", "ddp": "MULTI_GPU"
        }[name.split("_")[-1]]  # fmt: skip
    if name.endswith(("zero3", "fsdp2")):
        # Refused with sharded weights: decoding held-out rows, a value model.
        assert script.num_test == 0 and getattr(config, "value_model", None) is None
    if name.endswith("qlora"):
        assert get_quantization_config(model).load_in_4bit and get_peft_config(model).target_modules
        assert str(get_quantization_config(model).bnb_4bit_compute_dtype) == "torch.bfloat16"
    if command_of(name) != "sft":
        batch = processes * config.per_device_train_batch_size * config.gradient_accumulation_steps
        assert config.generation_batch_size == batch and batch % config.num_generations == 0
        prompts = batch // config.num_generations
        assert f"{prompts} prompts of {config.num_generations} completions" in path.read_text()


def test_the_files_for_eight_gpus_have_the_papers_settings(monkeypatch):
    def of(name, *fields):
        config = settings(FILES[name], monkeypatch)[1]
        return tuple(getattr(config, field) for field in fields)

    def lr_scheduler(name, kind):
        return of(f"{name}_8gpu_{kind}", "lr_scheduler_type")[0].value

    for kind in ("zero3", "fsdp2"):
        fields = ("generation_batch_size", "num_generations", "max_completion_length", "learning_rate", "threshold")
        more = ("unmasking", "temperature", "difficulty_range", "truncated_reward", "shrinkage", "max_grad_norm")
        assert of(f"tracerl_sdar4b_8gpu_{kind}", *fields) == (1024, 16, 2000, 1e-6, 0.9)
        own = ("threshold", 1.0, [0.2, 0.8], 0.0, 1, 1.0)
        assert of(f"tracerl_sdar4b_8gpu_{kind}", *more) == own and lr_scheduler("tracerl_sdar4b", kind) == "constant"
        fields = ("generation_batch_size", "num_generations", "max_completion_length", "learning_rate")
        more = ("block_length", "num_denoising_steps", "num_mc_samples", "max_steps")
        assert of(f"bgpo_llada8b_8gpu_{kind}", *fields, *more) == (128, 8, 512, 5e-7, 32, 256, 16, 700)
        more = ("objective", "temperature", "beta", "num_iterations")
        assert of(f"bgpo_llada8b_8gpu_{kind}", *more) == ("bgpo", 1.0, 0.0, 1)
        assert lr_scheduler("bgpo_llada8b", kind) == "constant"
        more = ("block_length", "num_denoising_steps", "num_iterations", "temperature", "hint_entropy_quantile")
        assert of(f"igpo_llada8b_8gpu_{kind}", *fields, *more) == (512, 8, 256, 5e-7, 32, 128, 4, 1.2, 0.2)
        hints = ("hint_ratio_range", "hint_chunk_length", "max_replaced_fraction")
        assert of(f"igpo_llada8b_8gpu_{kind}", *hints) == ([0.2, 0.6], [5, 10], 0.5)
        optimizer = ("adam_beta2", "weight_decay", "max_grad_norm", "warmup_steps")
        assert of(f"igpo_llada8b_8gpu_{kind}", *optimizer) == (0.99, 0.1, 0.2, 50)
        model = settings(FILES[f"igpo_llada8b_8gpu_{kind}"], monkeypatch)[2]
        assert (model.lora_r, model.lora_alpha, model.lora_dropout, model.load_in_4bit) == (128, 64, 0.05, False)
    fields = ("generation_batch_size", "num_generations", "alpha", "expert_steering", "num_iterations", "epsilon")
    assert of("unmask_policy_llada8b_8gpu_ddp", *fields) == (128, 8, 3.0, True, 2, 0.5)
    optimizer = ("learning_rate", "warmup_steps", "adam_beta2", "weight_decay", "max_grad_norm", "num_train_epochs")
    assert of("unmask_policy_llada8b_8gpu_ddp", *optimizer) == (3e-5, 100, 0.99, 0.1, 0.2, 1)


def test_the_file_of_the_aligned_example_is_valid():
    arguments = runpy.run_path(str(EXAMPLES / "length_aligned_sft.py"))["AlignmentArguments"]
    parser = TrlParser((arguments, DiffusionSFTConfig, ModelConfig))
    _, config, model = parser.parse_args_and_config(["--config", str(FILES[ALIGNED])])
    assert config.canvas_length == 30 and model.model_name_or_path in tiny_checkpoints()
