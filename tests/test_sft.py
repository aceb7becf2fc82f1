# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

import pytest
import torch
from conftest import random_model
from datasets import Dataset
from peft import LoraConfig
from rl import saved_bytes
from sft import sft_config

from trl_diffusion import DiffusionSFTTrainer, MaskedView
from trl_diffusion.tasks import character_tokenizer


def config(tmp_path, **kwargs):
    return sft_config(tmp_path, **{"max_steps": 3, **kwargs})


def rows(count=8):
    return Dataset.from_dict({"prompt": ["0123", "012"] * (count // 2), "completion": ["1234", "33"] * (count // 2)})


def trainer(model, tokenizer, tmp_path, dataset=None, **kwargs):
    return DiffusionSFTTrainer(
        model, config(tmp_path), train_dataset=dataset or rows(), processing_class=tokenizer, **kwargs
    )


def test_the_loss_equals_a_slow_loop(every_family, tokenizer, tmp_path, monkeypatch):
    model = random_model(every_family, tokenizer)
    assert model.block_length in (None, 4)
    sft = trainer(model, tokenizer, tmp_path)
    batch = sft.data_collator([sft.train_dataset[0], sft.train_dataset[1]])
    drawn = []
    import trl_diffusion.likelihood.sft_views as module

    original = module.random_view
    monkeypatch.setattr(module, "random_view", lambda *a, **k: drawn.append(original(*a, **k)) or drawn[-1])
    torch.manual_seed(5)
    sft.model.train()
    loss = sft.compute_loss(sft.model, batch).item()
    view, ids = drawn[0], batch["input_ids"]
    prompt_lengths = [4, 3]
    lengths = batch["attention_mask"].sum(1).tolist()
    assert lengths == [9, 6]  # prompt, completion, EOS
    assert view.masked.any()
    total = 0.0
    for row in range(2):
        assert not view.masked[row, : prompt_lengths[row]].any() and not view.masked[row, lengths[row] :].any()
        for position in view.masked[row].nonzero().flatten().tolist():
            state = ids[row, : lengths[row]].clone()
            noisy = view.masked[row, : lengths[row]]
            kwargs = {}
            if model.attention == "block_causal":
                block = torch.arange(len(state)) // 4
                noisy = noisy & (block == position // 4)  # earlier blocks are clean, later ones out of sight
                kwargs["attention_mask"] = (block[:, None] >= block[None])[None, None]
            state[noisy] = tokenizer.mask_token_id
            with torch.no_grad():
                log_probs = (
                    model(state[None], **kwargs).logits[0, position - model.logits_shift].double().log_softmax(-1)
                )
            total -= log_probs[ids[row, position]].item() * view.weight[row, position].item()
    trainable = (batch["labels"] != -100).sum().item()
    assert loss == pytest.approx(total / trainable, rel=1e-5)


def test_all_parameters_are_trained_and_the_loss_is_logged(family, tokenizer, tmp_path):
    sft = trainer(random_model(family, tokenizer), tokenizer, tmp_path)
    before = {name: parameter.clone() for name, parameter in sft.model.named_parameters()}
    sft.train()
    assert sft.state.log_history[-1]["train_loss"] is not None
    for name, parameter in sft.model.named_parameters():
        assert not torch.equal(before[name], parameter), name


def test_a_short_run_learns_the_data(tokenizer, tmp_path):
    model = random_model("llada", tokenizer, spread=0.1)
    sft = DiffusionSFTTrainer(
        model,
        config(tmp_path, max_steps=60, learning_rate=5e-3, per_device_train_batch_size=8),
        train_dataset=Dataset.from_dict({"prompt": ["0123"] * 8, "completion": ["3210"] * 8}),
        processing_class=tokenizer,
    )
    sft.train()
    prompt = torch.tensor([tokenizer("0123")["input_ids"]])
    text = tokenizer.decode(model.generate(prompt, max_new_tokens=5)[0, 4:], skip_special_tokens=True)
    assert text == "3210"


def test_evaluation_is_deterministic(tokenizer, tmp_path):
    sft = trainer(random_model("llada", tokenizer), tokenizer, tmp_path, eval_dataset=rows(4))
    first = sft.evaluate()["eval_loss"]
    torch.rand(7)
    assert sft.evaluate()["eval_loss"] == first


def test_the_noise_of_the_evaluation_follows_the_rows(tokenizer, tmp_path, monkeypatch):
    sft = trainer(random_model("llada", tokenizer), tokenizer, tmp_path)
    sft.model.eval()
    batch = sft.data_collator([sft.train_dataset[row] for row in (0, 1)])
    (both,) = sft._fixed_views(batch["input_ids"], batch["labels"] != -100, batch["attention_mask"].bool(), None)
    assert both.weight[0, 0] != both.weight[1, 0]  # rows of other tokens, other levels
    alone = sft.data_collator([sft.train_dataset[1]])
    (view,) = sft._fixed_views(alone["input_ids"], alone["labels"] != -100, alone["attention_mask"].bool(), None)
    width = alone["input_ids"].size(1)
    assert torch.equal(view.masked[0], both.masked[1, :width])
    assert view.weight[0, 0] == both.weight[1, 0]


def test_accumulated_micro_batches_weigh_tokens_like_one_batch(family, tokenizer, tmp_path, monkeypatch):
    """Rows of different lengths, in one batch of 8 or in 8 of one row: the same step."""
    import trl_diffusion.likelihood.sft_views as module

    def half(trainable, *args, **kwargs):
        masked = trainable & (torch.arange(trainable.size(1)) % 2 == 0)
        return MaskedView(masked, masked, torch.full(trainable.shape, 2.0))

    monkeypatch.setattr(module, "random_view", half)
    results = []
    for size, steps in ((8, 1), (1, 8)):
        model = random_model(family, tokenizer)
        settings = config(
            tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=steps, max_steps=1, optim="sgd"
        )
        DiffusionSFTTrainer(model, settings, train_dataset=rows(), processing_class=tokenizer).train()
        results.append([parameter.detach().clone() for parameter in model.parameters()])
    start = list(random_model(family, tokenizer).parameters())
    assert max((a - b).abs().max() for a, b in zip(results[0], start, strict=True)) > 1e-3
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("max_length, message", [(None, "train_dataset\\[1\\] has 131 tokens"), (3, "max_length=3")])
def test_rows_that_do_not_fit_are_named(tokenizer, tmp_path, max_length, message):
    dataset = Dataset.from_dict({"prompt": ["0123", "0" * 129], "completion": ["1", "1"]})
    with pytest.raises(ValueError, match=message):
        DiffusionSFTTrainer(
            random_model("llada", tokenizer),
            config(tmp_path, max_length=max_length),
            train_dataset=dataset,
            processing_class=tokenizer,
        )


def test_rows_of_other_datasets_that_do_not_fit_are_named(tokenizer, tmp_path):
    long = Dataset.from_dict({"prompt": ["0" * 129], "completion": ["1"]})
    settings = config(tmp_path, max_length=None)
    with pytest.raises(ValueError, match=r"eval_dataset\['long'\]\[0\] has 131 tokens"):
        DiffusionSFTTrainer(
            random_model("llada", tokenizer),
            settings,
            train_dataset=rows(),
            eval_dataset={"long": long},
            processing_class=tokenizer,
        )
    streamed = trainer(random_model("llada", tokenizer), tokenizer, tmp_path)
    batch = {"input_ids": torch.full((1, 131), 3), "attention_mask": torch.ones(1, 131), "labels": torch.ones(1, 131)}
    with pytest.raises(ValueError, match="131 tokens and the model 128 positions"):
        streamed.compute_loss(streamed.model, batch)


def test_lora_changes_the_adapter_alone(family, tokenizer, tmp_path):
    sft = trainer(
        random_model(family, tokenizer), tokenizer, tmp_path, peft_config=LoraConfig(target_modules="all-linear", r=2)
    )
    before = {name: parameter.clone() for name, parameter in sft.model.named_parameters()}
    sft.train()
    for name, parameter in sft.model.named_parameters():
        # B starts at 0; A gets its first gradient once B has moved.
        assert torch.equal(before[name], parameter) == ("lora_" not in name), name


def test_the_card_says_what_was_done(tokenizer, tmp_path):
    sft = trainer(random_model("llada", tokenizer), tokenizer, tmp_path)
    sft.create_model_card(model_name="tiny")
    card = (tmp_path / "README.md").read_text()
    assert "Diffusion SFT" in card and "2502.09992" in card and "min_noise_level" in card


@pytest.mark.parametrize(
    "settings, field",
    [
        ({"packing": True}, "packing=True"),
        ({"padding_free": True}, "padding_free=True"),
        ({"loss_type": "dft"}, "loss_type='dft'"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1"),
        ({"min_noise_level": 0.0}, "min_noise_level=0.0"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings, field, tmp_path):
    with pytest.raises(ValueError, match=field):
        config(tmp_path, **settings)


def test_an_empty_dataset_is_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="train_dataset is empty"):
        DiffusionSFTTrainer(
            random_model("llada", tokenizer),
            config(tmp_path),
            train_dataset=rows().select([]),
            processing_class=tokenizer,
        )


def test_a_model_without_a_mask_token_is_refused(tmp_path):
    tokenizer = character_tokenizer("01234")
    model = random_model("llada", tokenizer)
    model.config.mask_token_id = None
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="No mask token"):
        trainer(model, tokenizer, tmp_path)


def test_packed_rows_are_refused(tokenizer, tmp_path):
    packed = Dataset.from_dict({"input_ids": [[3, 4, 5, 6]], "seq_lengths": [[2, 2]]})
    with pytest.raises(ValueError, match="seq_lengths.*several documents"):
        trainer(random_model("llada", tokenizer), tokenizer, tmp_path, dataset=packed)


def test_saved_activations_do_not_grow_with_the_number_of_masks(family, tokenizer, tmp_path, monkeypatch):
    def half(trainable, *args, **kwargs):
        masked = trainable & (torch.arange(trainable.size(1)) % 2 == 0)
        return MaskedView(masked, masked, torch.full(trainable.shape, 2.0))

    monkeypatch.setattr("trl_diffusion.likelihood.sft_views.random_view", half)
    peaks, views = [], []
    for masks in (1, 8):
        settings = config(tmp_path, num_masks=masks)
        model = random_model(family, tokenizer)
        sft = DiffusionSFTTrainer(model, settings, train_dataset=rows(), processing_class=tokenizer)
        batch = sft.data_collator([sft.train_dataset[row] for row in range(4)])
        sft.model.train()

        def step(sft=sft, batch=batch):
            sft.compute_loss(sft.model, batch).backward()

        step()  # warm up
        peaks.append(saved_bytes(step))
        views.append(sft._metrics["train"]["views"][-1])
    assert views == [1, 8] and peaks[1] <= 1.1 * peaks[0]
