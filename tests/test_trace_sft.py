# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""From a model's rollouts to supervised training in the states it drew its tokens in."""

import pytest
import torch
from conftest import random_model
from datasets import Dataset
from rl import share_of_ones
from sft import sft_trainer
from test_replay import slow_logprobs

from trl_diffusion import DiffusionGenerationConfig, collect_traces


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_trace_sft_replays_what_was_collected(family, tokenizer, tmp_path, temperature):
    """The loss is the mean of the recorded −log p, but for the mask token, which draws leave out and SFT does not."""
    model = random_model(family, tokenizer, seed=6)
    model.get_output_embeddings().weight.data[tokenizer.mask_token_id] = 0.0
    dataset = Dataset.from_dict({"prompt": ["0123", "012", "31420", "2"] * 3})
    settings = DiffusionGenerationConfig(
        max_new_tokens=10, temperature=temperature, eos_token_id=tokenizer.eos_token_id, num_denoising_steps=7
    )
    traces = collect_traces(model, tokenizer, dataset, share_of_ones, settings, seed=3, progress=False)
    tails = [len(tail) for tail in traces["tail_ids"]]
    assert min(tails) == 0 and (max(tails) > 0 or temperature == 0)  # some end early
    assert all(len(ids) + tail == 10 for ids, tail in zip(traces["completion_ids"], tails, strict=True))
    trainer = sft_trainer(model, tokenizer, tmp_path, traces, masking="trace", per_device_train_batch_size=12)
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(12)])
    assert (batch["labels"] != -100).sum(1).tolist() == [len(ids) for ids in traces["completion_ids"]]
    with torch.no_grad():
        trainer.model.train()
        loss = trainer.compute_loss(trainer.model, batch).item()

    # Each row alone, step by step, with the mask token in the distribution.
    total, count = 0.0, 0
    for row in traces:
        canvas = torch.tensor(row["completion_ids"] + row["tail_ids"])
        steps = torch.tensor(row["unmask_step"] + row["tail_unmask_step"])
        prompt = torch.tensor([row["prompt_ids"]])
        rollout = _Rollout(prompt, torch.ones_like(prompt), canvas[None], steps[None], row["block_length"])
        replayed = slow_logprobs(model, rollout, 0, 1.0)[: len(row["completion_ids"])]
        # The record is reproduced, with the tail in sight.
        assert torch.allclose(replayed, torch.tensor(row["logprobs"]), atol=1e-4)
        with_mask = slow_logprobs(_WithMask(model), rollout, 0, 1.0)[: len(row["completion_ids"])]
        total, count = total - with_mask.double().sum().item(), count + len(with_mask)
    assert loss == pytest.approx(total / count, rel=1e-5)


class _Rollout:
    def __init__(self, prompt_ids, prompt_mask, canvas_ids, unmask_step, block_length):
        self.prompt_ids, self.prompt_mask, self.canvas_ids = prompt_ids, prompt_mask, canvas_ids
        self.unmask_step, self.block_length = unmask_step, block_length


class _WithMask:
    """A model whose mask token the slow loop does not exclude: it looks for another one."""

    def __init__(self, model):
        self.model = model

    def __getattr__(self, name):
        return getattr(self.model, name)

    def __call__(self, ids, **kwargs):
        output = self.model(ids, **kwargs)
        # A column more, which the slow loop sets to −inf in the place of the mask token's.
        logits = output.logits
        mask = self.model.mask_token_id
        output.logits = torch.cat([logits, logits[..., mask : mask + 1]], dim=-1)
        return output
