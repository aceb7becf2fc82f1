# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What stands behind the EOS of a row in supervised training, and what else a training run leaves alone."""

import random
from collections import Counter

import pytest
import torch
from conftest import random_model
from datasets import Dataset
from sft import recorded_rows, sft_config, sft_trainer, text_rows

from trl_diffusion import DiffusionSFTTrainer
from trl_diffusion.trainer.canvas_fill import CanvasFillCollator


PAD, EOS = 0, 1


def filler(tokenizer, collator, ends=frozenset({EOS}), block_length=None, canvas_length=None, multiple=None):
    return CanvasFillCollator(collator, tokenizer, set(ends), block_length, canvas_length, 20, multiple)


def collated(rows):
    """(ids, number of ids without a label) of each row, padded on the right."""
    width = max(len(ids) for ids, _ in rows)
    batch = {name: torch.full((len(rows), width), value) for name, value in (("input_ids", PAD), ("labels", -100))}
    batch["attention_mask"] = torch.zeros(len(rows), width, dtype=torch.long)
    for row, (ids, context) in enumerate(rows):
        batch["input_ids"][row, : len(ids)] = torch.tensor(ids)
        batch["labels"][row, context : len(ids)] = torch.tensor(ids[context:])
        batch["attention_mask"][row, : len(ids)] = 1
    return batch


@pytest.mark.parametrize(
    "settings, row, length",
    [
        ({"block_length": 4}, ([5, 5, 5, 6, 6, EOS], 3), 8),  # blocks from the first token on
        ({"block_length": 4}, ([5, 5, 5, 6, 6, 6, 6, EOS], 3), 8),  # full already
        ({"canvas_length": 4}, ([5, 5, 5, 6, 6, EOS], 3), 7),  # canvases from the answer on
        ({"canvas_length": 4}, ([5, 5, 5, 6, 6, 6, 6, EOS], 3), 11),
        ({"canvas_length": 100}, ([5, 5, 5, 6, EOS], 3), 20),  # up to the model's positions
        ({"canvas_length": 4}, ([5, 5, 5, 6, 6, 6], 3), 6),  # cut: what follows is not known
        ({"canvas_length": 4}, ([5, 5, EOS], 3), 3),  # not the model's EOS
    ],
)
def test_rows_are_filled_to_the_end_of_their_canvas_or_block(settings, row, length, tokenizer):
    collator = filler(tokenizer, collated, **settings)
    ids, context = row
    batch = collator([row, ([5, 6, 6, 6, 6, 6, 6, 6, 6, 6], 1)])
    assert batch["attention_mask"].sum(1).tolist() == [length, 10]
    filled = ids + [EOS] * (length - len(ids))
    assert batch["input_ids"][0, :length].tolist() == filled
    assert batch["labels"][0, :length].tolist() == [-100] * context + filled[context:]
    assert (batch["input_ids"][0, length:] == PAD).all() and (batch["labels"][0, length:] == -100).all()


def test_the_last_answer_of_a_conversation_is_the_one_that_is_filled(tokenizer):
    def two_answers(examples):
        batch = collated(examples)
        batch["labels"][0, 4] = -100
        return batch

    batch = filler(tokenizer, two_answers, canvas_length=4)([([5, 6, 6, EOS, 5, 6, EOS], 1)])  # at 1–3 and 5–6
    assert batch["attention_mask"].sum() == 9


def test_white_space_behind_the_end_gives_way(tokenizer):
    """Chat templates end messages with a line break; and their end of turn may be another token than the EOS."""
    blank, eot = tokenizer.add_tokens(["\n", "<|eot|>"]) and tokenizer.convert_tokens_to_ids(["\n", "<|eot|>"])
    collator = filler(tokenizer, collated, ends={EOS, eot}, canvas_length=4)
    batch = collator([([5, 6, 6, EOS, blank], 1), ([5, 6, eot, blank, blank], 1), ([5, 6, 6, 6, EOS, blank], 1)])
    assert batch["input_ids"].tolist() == [
        [5, 6, 6, EOS, EOS],
        [5, 6, eot, EOS, EOS],
        [5, 6, 6, 6, EOS],
    ]
    assert (batch["labels"][:, 1:] != -100).all() and batch["attention_mask"].all()
    # A blank that is text, and one behind an end that is not the model's, stay.
    assert collator.end_of_answer([5, 6, blank], [-100, 6, blank]) is None
    assert collator.end_of_answer([5, EOS, blank], [-100, -100, -100]) is None


def test_rows_padded_on_the_left_come_out_on_the_right(tokenizer):
    def on_the_left(examples):
        return {name: values.flip(1) for name, values in collated(examples).items()}

    flipped = [([EOS, 6, 6, 5], 0), ([EOS, 6, 5], 0)]
    batch = filler(tokenizer, on_the_left, block_length=4, multiple=6)(flipped)
    assert batch["input_ids"].tolist() == [[5, 6, 6, EOS, PAD, PAD], [5, 6, EOS, EOS, PAD, PAD]]
    assert batch["attention_mask"].sum(1).tolist() == [4, 4]


@pytest.mark.parametrize("family, settings", [("llada", {"canvas_length": 8}), ("sdar", {"masking": "block"})])
def test_a_model_learns_where_answers_end(family, settings, tokenizer, tmp_path):
    """Answers of 1 to 7 tokens, equally many of each; without the filling they end where a canvas or a block does."""
    draw = random.Random(0)
    rows = Dataset.from_dict({"prompt": ["0"] * 512, "completion": ["1" * draw.randint(1, 7) for _ in range(512)]})
    shares = {}
    for fill in (False, True):
        sft = sft_trainer(
            random_model(family, tokenizer, spread=0.1),
            tokenizer,
            tmp_path,
            dataset=rows,
            fill_canvas=fill,
            max_steps=150,
            learning_rate=5e-3,
            per_device_train_batch_size=32,
            **settings,
        )
        sft.train()
        prompt = torch.tensor([tokenizer("0")["input_ids"]] * 256)
        kwargs = {"max_new_tokens": 8, "temperature": 1.0, "seed": 0, "unmasking": "random"}
        rollout = sft.model.generate(prompt, return_dict_in_generate=True, eos_token_id=EOS, **kwargs).rollout
        lengths = Counter(map(len, rollout.completions()))
        # Of completions that end inside a canvas and inside a block of 4 (the prompt is its first token).
        shares[fill] = sum(count for length, count in lengths.items() if length in (2, 4, 5, 6)) / 256
    assert shares[False] < 0.1 and shares[True] > 0.35  # 4 of 7 lengths


def test_answers_of_many_lengths_on_no_known_canvas_are_warned_about(tokenizer, tmp_path, caplog):
    with caplog.at_level("WARNING", logger="trl_diffusion"):
        sft_trainer(random_model("llada", tokenizer), tokenizer, tmp_path, fill_canvas=True)
    assert "train_dataset has completions of 3 to 10 tokens" in caplog.text and "canvas_length" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING", logger="trl_diffusion"):
        for family, settings in (("llada", {"canvas_length": 8}), ("sdar", {}), ("llada", {"fill_canvas": False})):
            model = random_model(family, tokenizer)
            sft_trainer(model, tokenizer, tmp_path, **{"fill_canvas": True, **settings})
    assert "canvas" not in caplog.text


def test_rows_that_never_end_are_warned_about(tokenizer, tmp_path, caplog):
    rows = Dataset.from_dict({"input_ids": [[3, 4, 5, 6]] * 4, "completion_mask": [[0, 1, 1, 1]] * 4})
    with caplog.at_level("WARNING", logger="trl_diffusion"):
        sft_trainer(
            random_model("llada", tokenizer), tokenizer, tmp_path, dataset=rows, fill_canvas=True, canvas_length=8
        )
    assert "No row of train_dataset ends in an EOS" in caplog.text


# Around the loss


def test_a_checkpoint_names_the_block_it_was_trained_in(tokenizer, tmp_path):
    sft = sft_trainer(random_model("sdar", tokenizer), tokenizer, tmp_path, block_length=8)
    assert sft.model.config.block_length == 8


def test_traces_of_other_blocks_are_refused(tokenizer, tmp_path):
    rows = recorded_rows(3).add_column("block_length", [2] * 3)
    with pytest.raises(ValueError, match="recorded with block_length=2 and the model is trained in blocks of 4"):
        sft_trainer(random_model("sdar", tokenizer), tokenizer, tmp_path, dataset=rows, masking="trace")
    sft_trainer(random_model("sdar", tokenizer), tokenizer, tmp_path, dataset=rows, masking="trace", block_length=2)
    sft_trainer(random_model("llada", tokenizer), tokenizer, tmp_path, dataset=rows, masking="trace")


def test_a_step_of_the_prompt_is_refused(tokenizer, tmp_path):
    rows = Dataset.from_dict({"prompt": ["0"], "completion": ["123"], "unmask_step": [[9, 1, 2, 3, 4]]})
    with pytest.raises(ValueError, match="a step for a token of the prompt"):
        sft_trainer(random_model("llada", tokenizer), tokenizer, tmp_path, dataset=rows, masking="trace")


def test_metrics_of_whole_rows_are_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="compute_metrics is not supported"):
        DiffusionSFTTrainer(
            random_model("llada", tokenizer),
            sft_config(tmp_path),
            train_dataset=text_rows(),
            processing_class=tokenizer,
            compute_metrics=lambda prediction: {},
        )


def test_an_evaluation_does_not_disturb_the_training(family, tokenizer, tmp_path):
    losses, accuracies = [], set()
    for settings in ({}, {"eval_strategy": "steps", "eval_steps": 1}):
        sft = sft_trainer(
            random_model(family, tokenizer),
            tokenizer,
            tmp_path,
            eval_dataset=text_rows(7),
            max_steps=4,
            **settings,
        )
        sft.train()
        losses.append([log["loss"] for log in sft.state.log_history if "loss" in log])
        for size in (1, 3, 7):
            sft.args.per_device_eval_batch_size = size
            accuracies.add(sft.evaluate()["eval_masked_token_accuracy"])
    assert losses[0] == losses[1]
    assert max(accuracies) - min(accuracies) < 1e-6  # whatever the batches
