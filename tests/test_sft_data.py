# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What the SFT trainer makes of its datasets: conversations, prompts with completions, recorded traces."""

import logging
import string

import pytest
import torch
from conftest import random_model
from datasets import Dataset
from sft import recorded_rows, sft_trainer, text_rows

from trl_diffusion.tasks import character_tokenizer


# A user's turn is 0…, an assistant's 1… and EOS; the latter is marked for assistant_only_loss.
CHAT = (
    "{% for m in messages %}{% if m.role == 'user' %}0{{ m.content }}{% else %}1{% generation %}{{ m.content }}<|eos|>"
    "{% endgeneration %}{% endif %}{% endfor %}{% if add_generation_prompt %}1{% endif %}"
)
MASKINGS = {
    "random": ({}, {}),
    "block": ({"masking": "block", "block_length": 3}, {"masking": "block"}),
    "canvases": ({"masking": "block", "block_length": 2, "canvas_length": 4}, {"masking": "block", "block_length": 2}),
}


@pytest.fixture
def tokenizer():
    """The digits have the ids that they have in the other tests. TRL renders words to look at a chat template."""
    rest = "".join(character for character in string.printable if character not in "01234")
    tokenizer = character_tokenizer("01234" + rest)
    tokenizer.chat_template = CHAT
    return tokenizer


def turns(*contents):
    roles = ("user", "assistant")
    return [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]


def conversations():
    return Dataset.from_dict(
        {
            "prompt": [turns("22"), turns("3")] * 4,
            "completion": [[{"role": "assistant", "content": text}] for text in ("3344", "2") * 4],
        }
    )


@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize("dataset", ["text", "conversations", "turns"])
def test_every_masking_takes_every_dataset(family, masking, dataset, tokenizer, tmp_path):
    rows, extra = text_rows(), {}
    if dataset == "conversations":
        rows = conversations()
    elif dataset == "turns":
        rows = Dataset.from_dict({"messages": [turns("22", "3344", "4", "333")] * 8})
        extra = {"assistant_only_loss": True}
    settings = MASKINGS[masking][family == "sdar"]
    sft = sft_trainer(random_model(family, tokenizer), tokenizer, tmp_path, dataset=rows, **settings, **extra)
    row = sft.train_dataset[0]
    learned = [label for label in row["labels"] if label != -100]
    if dataset == "text":
        assert tokenizer.decode(learned) == "123401234<|eos|>" and len(row["labels"]) == 14
    elif dataset == "conversations":
        assert tokenizer.decode(row["input_ids"]) == "02213344<|eos|>"
        assert tokenizer.decode(learned) == "3344<|eos|>"
    else:
        assert tokenizer.decode(row["input_ids"]) == "02213344<|eos|>041333<|eos|>"
        assert tokenizer.decode(learned) == "3344<|eos|>333<|eos|>"
    before = [parameter.clone() for parameter in sft.model.parameters()]
    sft.train()
    assert not any(map(torch.equal, before, sft.model.parameters()))


def test_a_later_turn_is_not_seen_before_its_time(tokenizer, tmp_path):
    """What follows an answer is out of sight while it is trained; blocks are counted from each answer's beginning."""
    sft = sft_trainer(
        random_model("llada", tokenizer),
        tokenizer,
        tmp_path,
        dataset=Dataset.from_dict({"messages": [turns("22", "3344", "4", "333")]}),
        assistant_only_loss=True,
        masking="block",
        block_length=5,
    )
    batch = sft.data_collator([{key: sft.train_dataset[0][key] for key in ("input_ids", "labels")}])
    trainable = batch["labels"] != -100
    assert trainable[0].nonzero().flatten().tolist() == [4, 5, 6, 7, 8, 12, 13, 14, 15]
    first, second = sft.draw_views(trainable, torch.ones_like(trainable))
    assert not first.target[0, 9:].any() and first.visible[0].tolist() == [True] * 9 + [False] * 7
    assert not second.masked[0, :12].any() and second.visible.all()


# Traces


def trace_trainer(tokenizer, tmp_path, dataset, family="llada", **kwargs):
    return sft_trainer(
        random_model(family, tokenizer), tokenizer, tmp_path, dataset=dataset, masking="trace", **kwargs
    )


def test_recorded_ids_are_trained_as_they_are(tokenizer, tmp_path):
    sft = trace_trainer(tokenizer, tmp_path, recorded_rows(3))
    batch = next(iter(sft.get_train_dataloader()))
    rows = recorded_rows(3)
    for row in range(3):
        index = batch["input_ids"].tolist().index
        prompt, completion, steps = (rows[row][key] for key in ("prompt_ids", "completion_ids", "unmask_step"))
        padding = 14 - len(prompt + completion)
        at = index(prompt + completion + [0] * padding)
        assert batch["unmask_step"][at].tolist() == [0] * len(prompt) + steps + [0] * padding
        labels = [token if step else -100 for token, step in zip(completion, steps, strict=True)]
        assert batch["labels"][at].tolist() == [-100] * len(prompt) + labels + [-100] * padding


def test_recorded_conversations_are_trained_as_they_are(tokenizer, tmp_path):
    rows = recorded_rows(3).remove_columns(["prompt", "completion"])
    rows = rows.add_column("prompt", [turns("22")] * 3).add_column("completion", [turns("22", "3")[1:]] * 3)
    with_text = trace_trainer(tokenizer, tmp_path, rows)
    assert with_text.train_dataset["input_ids"][:] == [row["prompt_ids"] + row["completion_ids"] for row in rows]


@pytest.mark.parametrize("source", ["text", "conversation", "completion_mask", "labels", "row"])
def test_step_maps_of_other_rows(source, tokenizer, tmp_path):
    steps, ids = [2, 1, 1], [3, 4, 5, 6, 7, 1]
    rows = {
        "text": {"prompt": ["012"], "completion": ["34"]},
        "conversation": {"prompt": [turns("2")], "completion": [turns("2", "34")[1:]]},
        "completion_mask": {"input_ids": [ids], "completion_mask": [[0, 0, 0, 1, 1, 1]]},
        "labels": {"input_ids": [ids], "labels": [[-100] * 3 + ids[3:]]},
        "row": {"input_ids": [ids], "labels": [[-100] * 3 + ids[3:]]},
    }[source]
    recorded = [0, 0, 0, *steps] if source == "row" else steps
    rows = Dataset.from_dict({**rows, "when": [recorded]})
    sft = trace_trainer(tokenizer, tmp_path, rows, step_map_column="when")
    row = sft.train_dataset[0]
    assert row["when"] == [0, 0, 0, 2, 1, 1]
    assert row["labels"] == [-100] * 3 + row["input_ids"][3:] and row["input_ids"][3:] == ids[3:]
    # Rows that are prepared already can be evaluated.
    assert sft.evaluate(sft.train_dataset)["eval_loss"] == sft.evaluate(rows)["eval_loss"]


@pytest.mark.parametrize(
    "rows, message",
    [
        ({"prompt": ["01"], "completion": ["23"]}, "train_dataset has no column 'unmask_step'; it has prompt, comp"),
        (
            {"prompt": ["01"] * 2, "completion": ["23"] * 2, "unmask_step": [[1, 2, 3], [1, 2]]},
            r"train_dataset\[1\]\['unmask_step'\] has 2 steps and the completion 3 tokens .* pass `prompt_ids`",
        ),
        (
            {"prompt_ids": [[3]], "completion_ids": [[4, 5]], "unmask_step": [[1, 2, 3, 4]]},
            r"\[0\]\['unmask_step'\] has 4 steps and the completion 2 tokens",
        ),
        ({"prompt": ["01"], "completion": ["2"], "unmask_step": [[1, -1]]}, r"\[0\]\['unmask_step'\] is \[1, -1\]"),
        ({"prompt": ["01"], "completion": ["2"], "unmask_step": [None]}, r"\[0\]\['unmask_step'\] is None"),
    ],
)
def test_step_maps_that_do_not_fit_are_named(rows, message, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=message):
        trace_trainer(tokenizer, tmp_path, Dataset.from_dict(rows), shuffle_dataset=True)


def test_step_maps_of_evaluations_that_do_not_fit_are_named(tokenizer, tmp_path):
    wrong = Dataset.from_dict({"prompt_ids": [[3]], "completion_ids": [[4]], "unmask_step": [[1, 2, 3]]})
    with pytest.raises(ValueError, match=r"eval_dataset\[0\]\['unmask_step'\] has 3 steps"):
        trace_trainer(tokenizer, tmp_path, recorded_rows(), eval_dataset=wrong)
    with pytest.raises(ValueError, match=r"eval_dataset\['a'\]\[0\]\['unmask_step'\] has 3 steps"):
        trace_trainer(tokenizer, tmp_path, recorded_rows(), eval_dataset={"a": wrong})


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_rows_are_cut_with_their_step_maps(mode, tokenizer, tmp_path, caplog):
    whole = trace_trainer(tokenizer, tmp_path, recorded_rows(3)).train_dataset
    with caplog.at_level(logging.WARNING):
        logging.getLogger("trl_diffusion").addHandler(caplog.handler)
        settings = {"max_length": 5, "truncation_mode": mode}
        cut = trace_trainer(tokenizer, tmp_path, recorded_rows(3), **settings).train_dataset
        logging.getLogger("trl_diffusion").removeHandler(caplog.handler)
    part = slice(None, 5) if mode == "keep_start" else slice(-5, None)
    for key in ("input_ids", "labels", "unmask_step"):
        assert cut[key][:] == [row[part] for row in whole[key]]
    assert "3 of 3 rows of train_dataset are longer than max_length=5" in caplog.text
    # Nothing of the first two completions is left in three tokens, and such rows go, as TRL lets them go.
    gone = trace_trainer(tokenizer, tmp_path, recorded_rows(3), max_length=3).train_dataset
    assert gone["input_ids"][:] == [[7, 3, 3]]


def test_streamed_traces_are_trained(family, tokenizer, tmp_path):
    streamed = recorded_rows().to_iterable_dataset()
    sft = trace_trainer(tokenizer, tmp_path, streamed, family)
    sft.train()
    loss = trace_trainer(tokenizer, tmp_path, recorded_rows(), family)
    assert sft.state.log_history[0]["loss"] > 0 and loss.train_dataset[0]["unmask_step"][:4] == [0] * 4


def test_rows_that_were_not_prepared_need_whole_step_maps(tokenizer, tmp_path):
    rows = Dataset.from_dict({"input_ids": [[3, 4, 5]], "labels": [[-100, 4, 5]], "unmask_step": [[1, 2]]})
    sft = trace_trainer(tokenizer, tmp_path, rows, dataset_kwargs={"skip_prepare_dataset": True})
    with pytest.raises(ValueError, match=r"Rows of \[3\] tokens have 'unmask_step' of \[2\] steps"):
        next(iter(sft.get_train_dataloader()))
