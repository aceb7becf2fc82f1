# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The variants of supervised training: losses and gradients against slow loops, the optimizer step, evaluation."""

import pytest
import torch
from conftest import random_model
from processes import run_two_processes
from safetensors.torch import load_file
from sft import recorded_rows, sft_trainer, text_rows
from sft_worker import FAMILIES, NORMALIZATIONS, train

import trl_diffusion.likelihood.sft_views as sft_views
from trl_diffusion.likelihood import MaskedView


ROWS = ([4, 10], [3, 3], [2, 6])  # tokens of prompt and completion, EOS included
# The families that say what the others do: full attention, shifted logits, block-causal attention.
KINDS = ("llada", "dream", "sdar")
# Settings of every variant; None: not for that attention.
VARIANTS = {
    "random": ({"num_masks": 2}, {"num_masks": 2}),
    "random, other blocks": (None, {"block_length": 3}),
    "block": ({"masking": "block", "block_length": 3, "num_masks": 2}, {"masking": "block", "num_masks": 2}),
    "block, other blocks": (None, {"masking": "block", "block_length": 3}),
    "canvases": ({"canvas_length": 4, "num_masks": 2}, None),
    "blocks of canvases": ({"masking": "block", "block_length": 2, "canvas_length": 5}, None),
    "trace": ({"masking": "trace"}, {"masking": "trace"}),
    "trace, shrunk": ({"masking": "trace", "shrinkage": 2}, {"masking": "trace", "shrinkage": 2}),
}
CASES = [
    (kind, name, settings[kind == "sdar"])
    for name, settings in VARIANTS.items()
    for kind in KINDS
    if settings[kind == "sdar"] is not None
]
variants = pytest.mark.parametrize("kind, settings", [pytest.param(k, s, id=f"{k}-{n}") for k, n, s in CASES])


def record_noise(monkeypatch):
    """The noise that is drawn from now on: masked positions and levels, a fact for the slow loops."""
    drawn, original = [], sft_views.random_view

    def recording(*args, **kwargs):
        view = original(*args, **kwargs)
        drawn.append((view.masked.clone(), 1 / view.weight.double()))
        return view

    monkeypatch.setattr(sft_views, "random_view", recording)
    return drawn


def batch_of(sft, rows=(0, 1, 2)):
    columns = {"input_ids", "labels", "unmask_step"}
    return sft.data_collator(
        [{key: sft.train_dataset[row][key] for key in columns & set(sft.train_dataset.features)} for row in rows]
    )


# The slow loops


def pieces(first, length, size):
    """Ranges of `size` positions from `first` on."""
    return [range(start, min(start + size, length)) for start in range(first, length, size)]


def slow_states(ids, trainable, steps, noise, mask_id, settings, block):
    """What one row is scored in, by the definitions: (tokens in sight, blocks or None, targets, levels or None)."""
    masking, length = settings.get("masking", "random"), len(ids)
    first = trainable.index(True)
    if masking == "trace":
        s = settings.get("shrinkage", 1)
        for part in [range(length)] if block is None else pieces(0, length, block):
            distinct = sorted({steps[i] for i in part if steps[i] > 0})
            for start in range(0, len(distinct), s):
                merged = distinct[start : start + s]
                state = [mask_id if i in part and steps[i] >= merged[0] else ids[i] for i in range(part[-1] + 1)]
                yield state, [i for i in part if steps[i] in merged], None
    elif block is not None:
        for masked, level in noise:
            for part in pieces(0, length, block):
                targets = [i for i in part if masked[i]]
                state = [mask_id if i in targets else ids[i] for i in range(part[-1] + 1)]
                yield state, targets, [level[i] for i in targets]
    else:
        for masked, level in noise:
            for canvas in pieces(first, length, settings.get("canvas_length", length)):
                size = settings["block_length"] if masking == "block" else length
                for part in pieces(canvas[0], canvas[-1] + 1, size):
                    targets = [i for i in part if masked[i]]
                    state = [mask_id if i in targets or i > part[-1] else ids[i] for i in range(canvas[-1] + 1)]
                    yield state, targets, [level[i] for i in targets]


def slow_loss(model, batch, drawn, settings, normalization, weighting):
    """The loss of a batch, token by token, in the model's precision."""
    causal = model.attention == "block_causal"
    block = settings.get("block_length", model.block_length) if causal else None
    copies = settings.get("num_masks", 1)
    row_sums, row_lengths = [], []
    for row in range(len(batch["input_ids"])):
        length = int(batch["attention_mask"][row].sum())
        ids = batch["input_ids"][row, :length].tolist()
        trainable = (batch["labels"][row, :length] != -100).tolist()
        steps = batch["unmask_step"][row, :length].tolist() if "unmask_step" in batch else None
        noise = [(masked[row, :length].tolist(), level[row, :length].tolist()) for masked, level in drawn]
        total = torch.zeros((), dtype=torch.float64)
        mask_id = model.mask_token_id
        for state, targets, levels in slow_states(ids, trainable, steps, noise, mask_id, settings, block):
            if not targets:
                continue
            kwargs = {}
            if causal:
                own = torch.arange(len(state)) // block
                kwargs["attention_mask"] = (own[:, None] >= own[None])[None, None]
            log_probs = model(torch.tensor([state]), **kwargs).logits[0].log_softmax(-1)
            for index, i in enumerate(targets):
                assert trainable[i]
                weight = 1 / levels[index] if weighting == "inverse" else 1.0
                total = total - weight / copies * log_probs[i - model.logits_shift, ids[i]]
        row_sums.append(total)
        row_lengths.append(sum(trainable))
    if normalization == "token":
        return sum(row_sums) / sum(row_lengths)
    if normalization == "sequence":
        return sum(total / length for total, length in zip(row_sums, row_lengths, strict=True)) / len(row_sums)
    return sum(row_sums) / len(row_sums)


def compare_with_slow_loop(model, tokenizer, tmp_path, monkeypatch, settings, normalization, weighting):
    kwargs = {**settings, "loss_normalization": normalization}
    if (weighting == "inverse") == (settings.get("masking") == "trace"):
        kwargs["loss_weighting"] = weighting  # not the default
    sft = sft_trainer(model.double(), tokenizer, tmp_path, **kwargs)
    batch = batch_of(sft)
    assert [batch["attention_mask"].sum(1).tolist()] == [[sum(row) for row in ROWS]]
    drawn = record_noise(monkeypatch)
    torch.manual_seed(3)
    sft.model.train()
    loss = sft.compute_loss(sft.model, batch)
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in sft.model.named_parameters()}
    sft.model.zero_grad()
    expected = slow_loss(model, batch, drawn, settings, normalization, weighting)
    expected.backward()
    assert expected > 0.1
    assert loss.item() == pytest.approx(expected.item(), rel=2e-6)  # the weights are fp32
    for name, parameter in sft.model.named_parameters():
        assert (found[name] - parameter.grad).abs().max() <= 1e-5 * max(1.0, parameter.grad.abs().max()), name
    assert sum(gradient.abs().sum() for gradient in found.values()) > 0.1
    return drawn


@variants
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_losses_and_gradients_equal_a_slow_loop(kind, settings, normalization, tokenizer, tmp_path, monkeypatch):
    model = random_model(kind, tokenizer)
    weighting = "uniform" if settings.get("masking") == "trace" else "inverse"
    drawn = compare_with_slow_loop(model, tokenizer, tmp_path, monkeypatch, settings, normalization, weighting)
    # What the slow loop takes as given: trainable tokens alone, and a level per row, canvas or block.
    for masked, level in drawn:
        for row, (prompt, completion) in enumerate(ROWS):
            assert not masked[row, :prompt].any() and not masked[row, prompt + completion :].any()
            first, causal = prompt, kind == "sdar"
            size = settings.get("block_length", 4) if settings.get("masking") == "block" else None
            if causal:
                parts = pieces(0, prompt + completion, size or 100)
            else:
                canvases = pieces(first, prompt + completion, settings.get("canvas_length", 100))
                parts = [part for canvas in canvases for part in pieces(canvas[0], canvas[-1] + 1, size or 100)]
            levels = [set(level[row, list(part)].tolist()) for part in parts]
            assert all(len(own) == 1 for own in levels)
            assert len(set.union(*levels)) == len(parts)


@variants
def test_uniform_weights(kind, settings, tokenizer, tmp_path, monkeypatch):
    if settings.get("masking") != "trace":
        model = random_model(kind, tokenizer)
        compare_with_slow_loop(model, tokenizer, tmp_path, monkeypatch, settings, "token", "uniform")


@pytest.mark.parametrize("masking", ["block", "trace"])
def test_every_family_equals_the_slow_loop(every_family, masking, tokenizer, tmp_path, monkeypatch):
    model = random_model(every_family, tokenizer)
    settings = {"masking": masking}
    if masking == "block" and model.attention == "full":
        settings["block_length"] = 3
    weighting = "uniform" if masking == "trace" else "inverse"
    compare_with_slow_loop(model, tokenizer, tmp_path, monkeypatch, settings, "token", weighting)


def test_drawn_blocks_are_scaled_in_the_loss(tokenizer, tmp_path, monkeypatch):
    """One of a row's blocks, times their number: with all orders of the blocks the mean is the loss of all."""
    noise = torch.tensor([[False] * 4 + [True] * 10])
    fixed = lambda trainable, *a, **k: MaskedView(trainable & noise, trainable & noise, torch.ones(1, 14))  # noqa: E731
    monkeypatch.setattr(sft_views, "random_view", fixed)
    settings = {"masking": "block", "block_length": 4}
    every = sft_trainer(random_model("llada", tokenizer), tokenizer, tmp_path, **settings)
    batch = batch_of(every, [0])
    with torch.no_grad():
        wanted = every.compute_loss(every.model.train(), batch).item()
        one = sft_trainer(random_model("llada", tokenizer), tokenizer, tmp_path, num_blocks=1, **settings)
        losses = []
        for first in range(3):
            order = (torch.arange(3) != first).float()[None] / 2
            with monkeypatch.context() as patch:
                patch.setattr(sft_views.torch, "rand", lambda *a, order=order, **k: order)
                losses.append(one.compute_loss(one.model.train(), batch).item())
    assert len({round(loss, 4) for loss in losses}) == 3
    assert sum(losses) / 3 == pytest.approx(wanted, rel=1e-5)


def test_tokens_behind_a_canvas_do_not_influence_its_loss(tokenizer, tmp_path):
    sft = sft_trainer(random_model("llada", tokenizer), tokenizer, tmp_path, canvas_length=4)
    batch = batch_of(sft)
    real = batch["attention_mask"].bool()
    torch.manual_seed(0)
    first, second, third = sft.draw_views(batch["labels"] != -100, real)

    def losses(view, changed):
        ids = batch["input_ids"].clone()
        for position in changed:
            ids[0, position] = 3 + (ids[0, position] - 2) % 5
        return sft._row_losses(sft.model, ids, real, view)[0][0]

    # The canvases of the first row: 4..7, 8..11, 12..13.
    with torch.no_grad():
        assert second.target[0].any() and not second.masked[0, :8].any()
        assert losses(first, [8, 9, 10, 11, 12, 13]) == losses(first, [])
        assert losses(second, [12, 13]) == losses(second, [])
        assert losses(second, [5]) != losses(second, [])
        assert losses(second, [0]) != losses(second, [])


def test_views_are_scored_without_the_columns_that_no_row_sees(tokenizer, tmp_path, monkeypatch):
    import trl_diffusion.trainer.diffusion_sft_trainer as module

    widths, original = [], module.view_logits
    spy = lambda *a, **k: widths.append(a[3].size(1)) or original(*a, **k)  # noqa: E731
    monkeypatch.setattr(module, "view_logits", spy)
    sft = sft_trainer(random_model("llada", tokenizer), tokenizer, tmp_path, canvas_length=3)
    sft.model.train()
    sft.compute_loss(sft.model, batch_of(sft, [0]))
    assert widths == [7, 10, 13, 14]


# The optimizer step


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_accumulated_micro_batches_equal_one_batch(family, normalization, tokenizer, tmp_path, monkeypatch):
    def half(trainable, *args, **kwargs):
        masked = trainable & (torch.arange(trainable.size(1)) % 2 == 0)
        return MaskedView(masked, masked, torch.full(trainable.shape, 2.0))

    monkeypatch.setattr(sft_views, "random_view", half)
    block = {"block_length": 3} if family == "llada" else {}
    results = []
    for size, steps in ((8, 1), (1, 8)):
        sft = sft_trainer(
            random_model(family, tokenizer),
            tokenizer,
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=1,
            optim="sgd",
            learning_rate=3e-3,
            max_grad_norm=1e3,  # clipping would hide a wrong scale
            masking="block",
            num_masks=2,
            loss_normalization=normalization,
            **block,
        )
        with torch.no_grad():
            whole = sft.compute_loss(sft.model.train(), batch_of(sft, range(8))).item()
        sft.train()
        assert sft.state.log_history[0]["loss"] == pytest.approx(whole, rel=1e-4)
        results.append([parameter.detach().clone() for parameter in sft.model.parameters()])
    start = list(random_model(family, tokenizer).parameters())
    assert max((a - b).abs().max() for a, b in zip(results[0], start, strict=True)) > 1e-3
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*results, strict=True))


def test_two_processes_equal_one(tokenizer, tmp_path):
    out = tmp_path / "ddp.safetensors"
    run_two_processes("sft_worker.py", tmp_path / "ddp", out)
    found = load_file(out)
    for family in FAMILIES:
        start = dict(random_model(family, tokenizer).named_parameters())
        expected = train(family, str(tmp_path / "single"), batch_size=4)
        for normalization in NORMALIZATIONS:
            moved = (expected[f"{family}.{normalization}.{key}"] - start[key] for key in start)
            assert max(difference.abs().max() for difference in moved) > 1e-3
        for key in expected:
            assert (found.pop(key) - expected[key]).abs().max() <= 1e-5, key
    assert not found


@pytest.mark.parametrize("masking", ["block", "trace"])
def test_a_resumed_run_equals_an_uninterrupted_one(family, masking, tokenizer, tmp_path):
    settings = {"masking": masking, "max_steps": 5, "save_steps": 3, "save_strategy": "steps"}
    if (family, masking) == ("llada", "block"):
        settings |= {"block_length": 3, "num_blocks": 2, "canvas_length": 6}
    whole = sft_trainer(random_model(family, tokenizer), tokenizer, tmp_path / "a", **settings)
    whole.train()
    again = sft_trainer(random_model(family, tokenizer, seed=1), tokenizer, tmp_path / "a", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))  # in the second epoch
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


@variants
def test_training_moves_every_parameter(kind, settings, tokenizer, tmp_path):
    sft = sft_trainer(random_model(kind, tokenizer), tokenizer, tmp_path, **settings)
    before = {name: parameter.clone() for name, parameter in sft.model.named_parameters()}
    sft.train()
    for name, parameter in sft.model.named_parameters():
        assert not torch.equal(before[name], parameter), name
    assert sft.state.log_history[0]["views"] >= 1


# Evaluation


def evaluations(model, tokenizer, tmp_path, **settings):
    """Losses of the same rows in batches of other sizes, and in another order."""
    rows = (recorded_rows if settings.get("masking") == "trace" else text_rows)(7)
    shuffled = rows.select([6, 2, 0, 1, 5, 4, 3])
    sft = sft_trainer(model, tokenizer, tmp_path, eval_dataset={"rows": rows, "shuffled": shuffled}, **settings)
    losses = []
    for size in (1, 3, 8):
        sft.args.per_device_eval_batch_size = size
        metrics = sft.evaluate()
        losses += [metrics["eval_rows_loss"], metrics["eval_shuffled_loss"]]
        torch.rand(size)
    return losses


@variants
def test_the_evaluation_depends_on_the_rows_alone(kind, settings, tokenizer, tmp_path):
    losses = evaluations(random_model(kind, tokenizer), tokenizer, tmp_path, **settings)
    assert losses == pytest.approx([losses[0]] * 6, rel=1e-5)


def test_normalised_evaluations_depend_on_the_rows_alone(tokenizer, tmp_path):
    model, found = random_model("llada", tokenizer), []
    for normalization in NORMALIZATIONS:
        losses = evaluations(model, tokenizer, tmp_path, canvas_length=4, loss_normalization=normalization)
        assert losses == pytest.approx([losses[0]] * 6, rel=1e-5)
        found.append(losses[0])
    assert len({round(loss, 3) for loss in found}) == 3


def test_evaluations_of_a_run_draw_the_same_masks(family, tokenizer, tmp_path):
    sft = sft_trainer(
        random_model(family, tokenizer), tokenizer, tmp_path, eval_dataset=text_rows(3), learning_rate=0.0, num_masks=2
    )
    first = sft.evaluate()["eval_loss"]
    sft.train()
    assert sft.evaluate()["eval_loss"] == pytest.approx(first, rel=1e-6)


def test_the_evaluation_loss_is_the_training_loss_of_all_rows(tokenizer, tmp_path):
    """A replayed trace has no noise: both are the same number."""
    for normalization in NORMALIZATIONS:
        sft = sft_trainer(
            random_model("llada", tokenizer),
            tokenizer,
            tmp_path,
            eval_dataset=recorded_rows(3),
            per_device_eval_batch_size=2,
            masking="trace",
            loss_normalization=normalization,
        )
        sft.model.train()
        with torch.no_grad():
            expected = sft.compute_loss(sft.model, batch_of(sft)).item()
        assert sft.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
