# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The package on its real task: what reinforcement learning does to the tiny checkpoint."""

from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_diffusion import DiffusionGenerationConfig, TraceRLConfig, TraceRLTrainer
from trl_diffusion.checkpoints import tiny_checkpoint
from trl_diffusion.evaluation import complete
from trl_diffusion.tasks import solve_rate, sudoku_dataset, sudoku_reward


def inverted(**kwargs):
    return [-reward for reward in sudoku_reward(**kwargs)]


def test_the_solve_rate_rises_and_falls_when_the_reward_is_inverted(tmp_path):
    path = tiny_checkpoint("sudoku-llada-tiny")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    held_out = sudoku_dataset("test", 96, num_clues=(5, 6))

    def measure() -> float:
        config = DiffusionGenerationConfig(max_new_tokens=17, num_denoising_steps=8, eos_token_id=1)
        texts = complete(model, tokenizer, list(held_out["prompt"]), config, batch_size=96).texts
        return solve_rate(texts, list(held_out["puzzle"]), list(held_out["solution"]))

    def train(reward, steps):
        config = TraceRLConfig(
            output_dir=str(tmp_path),
            max_completion_length=17,
            num_denoising_steps=8,
            num_generations=8,
            per_device_train_batch_size=64,
            learning_rate=5e-4,
            lr_scheduler_type="constant",
            max_steps=steps,
            seed=1,
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        rows = sudoku_dataset("train", 400, num_clues=(5, 6))
        TraceRLTrainer(model, reward, config, train_dataset=rows, processing_class=tokenizer).train()

    start = measure()
    train(sudoku_reward, 20)
    risen = measure()
    train(inverted, 20)
    fallen = measure()
    assert start < 0.1
    assert risen > start + 0.3
    assert fallen < risen / 2
