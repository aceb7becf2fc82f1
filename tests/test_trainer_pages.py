# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The pages of the trainers: one form, blocks that run, and tables that say what the code does."""

import re

import pytest
import torch
from doc_blocks import ROOT, Block, blocks, every_block_runs, python_blocks
from trainer_pages import (
    check_metrics,
    check_names,
    check_printed,
    commands,
    documented_fields,
    own_fields,
    section,
    shorten,
    text_of,
)
from transformers import TrainerCallback
from trl import GRPOConfig, SFTConfig

from trl_diffusion import (
    BGPOConfig,
    DiffusionGenerationConfig,
    DiffusionGRPOConfig,
    DiffusionSFTConfig,
    IGPOConfig,
    TraceRLConfig,
    UnmaskPolicyConfig,
    UnmaskPolicyModelConfig,
)
from trl_diffusion.generation.inpainting import PLACEMENTS
from trl_diffusion.likelihood.monte_carlo import NOISE_LEVELS
from trl_diffusion.models.unmask_policy import ACTIONS
from trl_diffusion.tasks.answers import ANSWER_FORMATS
from trl_diffusion.trainer.bgpo_config import OBJECTIVES
from trl_diffusion.trainer.denoising_config import DenoisingGRPOConfig
from trl_diffusion.trainer.diffusion_sft_config import _CHOICES
from trl_diffusion.trainer.likelihoods import LIKELIHOODS
from trl_diffusion.trainer.unmask_policy_config import REWARD_FORMS


# The evaluation after the training is of four problems; the one before it is the page's.
SMALL_EVALUATION = ("after = trainer.evaluate()", "after = trainer.evaluate(trainer.eval_dataset.select(range(4)))")

# Page -> the config, the one whose fields it does not repeat, and the command.
PAGES = {
    "docs/sft.md": (DiffusionSFTConfig, SFTConfig, "sft"),
    "docs/grpo.md": (DiffusionGRPOConfig, GRPOConfig, "grpo"),
    "docs/tracerl.md": (TraceRLConfig, DiffusionGRPOConfig, "tracerl"),
    "docs/bgpo.md": (BGPOConfig, DiffusionGRPOConfig, "bgpo"),
    "docs/igpo.md": (IGPOConfig, DiffusionGRPOConfig, "igpo"),
    "docs/unmask_policy.md": (UnmaskPolicyConfig, DenoisingGRPOConfig, "unmask-policy"),
}
HEADINGS = ["Overview", "Quick start", "Looking deeper", "Logged metrics", "Memory and cost", "Customisation"]
HEADINGS += ["Reference"]
# Values of settings that a page must name.
CHOICES = {
    "docs/sft.md": [choice for choices in _CHOICES.values() for choice in choices if choice],
    "docs/grpo.md": LIKELIHOODS,
    "docs/bgpo.md": (*OBJECTIVES, *NOISE_LEVELS),
    "docs/igpo.md": (*ANSWER_FORMATS, *PLACEMENTS),
    "docs/unmask_policy.md": (*REWARD_FORMS, *ACTIONS),
}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def every_other(completions, **kwargs):
    """1 and 0 in turns: groups whose rewards differ, whatever is written."""
    return [float(index % 2) for index in range(len(completions))]


def run_quick_start(page: str, block: Block, changes: list[tuple[str, str]], capsys) -> dict:
    """Run a page's first block for a few steps; its line is printed."""
    capsys.readouterr()
    block.code, namespace = shorten(block, *changes), {}
    block.run(namespace)
    check_printed(page, capsys.readouterr().out)
    return namespace


def with_settings(block: Block, *settings: str, changes: tuple = (), **names):
    """The trainer of the quick start, shortened already, with more settings in its config and without evaluations."""
    code = shorten(block, *changes)
    end = code.index("\n)\n", code.index("\nconfig = "))
    code = code[:end] + "".join(f"\n    {setting}," for setting in settings) + code[end:]
    code = re.sub(r"^(before|after) = .*\n|^print\(.*\n", "", code, flags=re.MULTILINE)
    namespace = {"every_other": every_other, **names}
    exec(compile(code, block.page, "exec"), namespace)  # the project's own text
    return namespace["trainer"]


def final_log(trainer, metric: str) -> float:
    """The last logged value."""
    return [log[metric] for log in trainer.state.log_history if metric in log][-1]


# The pages, one by one


def test_the_sft_page_runs(capsys):
    page = "docs/sft.md"
    with every_block_runs(page) as parts:
        changes = [("max_steps=200", "max_steps=2"), ("logging_steps=20", "logging_steps=1")]
        names = run_quick_start(page, parts[0], changes, capsys)
        trainer = names["trainer"]
        check_metrics(page, trainer, [])
        assert final_log(trainer, "train_loss") > 0
        for block in parts[1:]:
            block.run(names)
    assert final_log(names["blocks"], "views") == 2.0  # num_blocks
    # The page's own views: everything from some place on.
    trainable = torch.tensor([[False, True, True, True, True], [False, False, True, True, True]])
    (view,) = names["suffixes"].draw_views(trainable, torch.ones_like(trainable))
    assert all(sorted(row.tolist()) == row.tolist() and row.any() for row in view.masked)
    assert torch.equal((view.weight * view.masked).sum(dim=1), trainable.sum(dim=1).float())
    kinds = {type(module).__name__ for module in names["adapters"].model.modules()}
    assert {"Linear4bit", "LoraModel"} & kinds == {"Linear4bit", "LoraModel"}
    assert re.search(r"^2 [1-4]{4}", capsys.readouterr().out, re.MULTILINE)  # the callback's sample


def test_the_grpo_page_runs(capsys, caplog):
    page = "docs/grpo.md"
    with every_block_runs(page) as parts:
        changes = [SMALL_EVALUATION, ("max_steps=40", "max_steps=2"), ("train_batch_size=128", "train_batch_size=16")]
        names = run_quick_start(page, parts[0], changes, capsys)
        settings = ["num_iterations=2", "beta=0.1", "difficulty_range=[0.0, 1.0]"]
        reward = ("reward_funcs=sudoku_reward,", "reward_funcs=every_other,")
        check_metrics(page, names["trainer"], [with_settings(parts[0], *settings, changes=(reward,))])
        for block in parts[1:]:
            block.run(names)
    assert names["baseline"]._name == "Coupled GRPO" and names["baseline"].state.global_step == 1
    assert final_log(names["trainer"], "rewards/few_steps/mean") == pytest.approx(1 / 8, abs=0.01)
    assert {"2.0", "6.0"} <= set(capsys.readouterr().out.splitlines())  # what the comments promise
    assert names["adapters"].state.global_step == 2
    # A rule that no path leads to does not stop a model from being saved.
    assert "surest_three" in caplog.text and "cannot be named in generation_config.json" in caplog.text
    saved = DiffusionGenerationConfig.from_pretrained("sudoku-by-three/checkpoint-1")
    assert (saved.unmasking, saved.max_new_tokens) == ("low_confidence", 17)


@pytest.mark.parametrize(
    "likelihood, settings, graphs, alone",
    [
        ("fully_masked", [], 1, 0),
        ("coupled", [], 3, 0),
        ("coupled", ["num_iterations=2"], 3, 3 + 3),
        ("random_mask", [], 1, 0),
        ("trace", [], 8, 0),
        ("trace", ["num_iterations=2"], 8, 0),
        ("trace", ["num_iterations=2", "loss_type='grpo'", "importance_sampling_level='sequence'"], 8, 8),
        ("autoregressive", ["unmasking='sequential'"], 17, 0),
    ],
)
def test_the_passes_that_the_grpo_page_counts(likelihood, settings, graphs, alone):
    """With graph, and without one beside the eight of the rollout: off-policy "coupled" needs old scores, and the sum
    over its views; the trace has the rollout's scores."""
    counts = {True: 0, False: 0}

    def count(*_):
        counts[torch.is_grad_enabled()] += 1

    class Counter(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            model.register_forward_hook(count)

    block = python_blocks("docs/grpo.md")[0]
    callbacks = ("    args=config,\n", "    args=config,\n    callbacks=[Counter()],\n")
    changes = (("max_steps=40", "max_steps=1"), ("train_batch_size=128", "train_batch_size=8"), callbacks)
    trainer = with_settings(block, f"likelihood={likelihood!r}", *settings, changes=changes, Counter=Counter)
    assert (counts[True], counts[False]) == (graphs, 8 + alone)
    assert final_log(trainer, "views") == graphs


def test_the_tracerl_page_runs(capsys):
    page = "docs/tracerl.md"
    with every_block_runs(page) as parts:
        changes = [SMALL_EVALUATION, ("max_steps=30", "max_steps=2"), ("train_batch_size=64", "train_batch_size=8")]
        names = run_quick_start(page, parts[0], changes, capsys)
        settings = ["num_iterations=2", "beta=0.1", "difficulty_range=[0.0, 1.0]", "value_model='head'"]
        reward = ("reward_funcs=sudoku_reward,", "reward_funcs=every_other,")
        check_metrics(page, names["trainer"], [with_settings(parts[0], *settings, changes=(reward,))])
        for block in parts[1:]:
            block.run(names)
    assert names["early_ones"]([[5, 6]], [[1, 2]]) == [[1.0, 0.5]]
    assert final_log(names["trainer"], "rewards/early_ones/mean") > 1
    assert final_log(names["with_values"], "value/grad_norm") > 0
    assert "[2.0, 8.0]" in capsys.readouterr().out
    assert names["adapters"].value.model.trains == "lora"


def test_the_bgpo_page_runs(capsys):
    page = "docs/bgpo.md"
    with every_block_runs(page) as parts:
        changes = [SMALL_EVALUATION, ("max_steps=60", "max_steps=2"), ("train_batch_size=64", "train_batch_size=16")]
        changes += [("logging_steps=2", "logging_steps=1")]
        names = run_quick_start(page, parts[0], changes, capsys)
        assert final_log(names["trainer"], "elbo/difference_std") > 0
        settings = ["epsilon=0.2", "beta=0.1", "difficulty_range=[0.0, 1.0]", "gradient_variance_steps=1"]
        check_metrics(page, names["trainer"], [with_settings(parts[0], *settings)])
        for block in parts[1:]:
            block.run(names)
    (share,) = re.findall(r"^(\d+\.\d+)$", capsys.readouterr().out, re.MULTILINE)
    assert float(share) > 0  # of the masks in the gradient's variance
    inputs = {name: torch.ones(1, 10, dtype=torch.long) for name in ("completion_mask", "unmask_step")}
    inputs["view_seed"] = torch.tensor([3])
    weights = torch.stack([view.weight for view in names["bounded"].draw_views(inputs)])
    assert weights.max() <= 10 and len(weights) == 4
    assert names["uses_all_numbers"](["1+2-3", "1+2"], [[1, 2, 3], [1, 2, 3]]) == [0.1, 0.0]


def test_the_bgpo_page_quotes_the_warning():
    warning = "The differences d_j of the ELBO's samples to those before the updates spread by "
    assert warning in text_of("docs/bgpo.md")
    assert warning in (ROOT / "trl_diffusion" / "trainer" / "bgpo_trainer.py").read_text()


def test_the_igpo_page_runs(capsys):
    page = "docs/igpo.md"
    with every_block_runs(page) as parts:
        changes = [SMALL_EVALUATION, ("max_steps=30", "max_steps=2"), ("train_batch_size=64", "train_batch_size=16")]
        names = run_quick_start(page, parts[0], changes, capsys)
        assert final_log(names["trainer"], "hints/replaced") > 0
        settings = ["num_iterations=2", "difficulty_range=[0.0, 1.0]"]
        check_metrics(page, names["trainer"], [with_settings(parts[0], *settings)])
        for block in parts[1:]:
            block.run(names)
    assert names["trainer"]._hint_source.find_answers("1+1=2 ####23") == [(10, 12)]
    assert final_log(names["shaped"], "rewards/short/mean") >= 0
    assert names["adapters"].args.likelihood == "coupled" and names["adapters"].state.global_step == 1


def test_the_unmask_policy_page_runs(capsys, tmp_path):
    page = "docs/unmask_policy.md"
    with every_block_runs(page) as parts:
        changes = [("max_steps=120", "max_steps=4"), ("logging_steps=2", "logging_steps=1")]
        changes += [
            ("warmup_steps=10", "warmup_steps=0"),
            ("per_device_train_batch_size=64", "per_device_train_batch_size=32"),
        ]
        changes += [("    eval_steps=20", "    eval_steps=2"), ("save_steps=20", "save_steps=2")]
        names = run_quick_start(page, parts[0], changes, capsys)
        trainer, steps = names["trainer"], names["trainer"].state.log_history
        assert any(log.get("grad_norm", 0) > 0 for log in steps)
        assert any(log.get("skipped_groups", 1) < 1 for log in steps)
        assert {path.name for path in (tmp_path / "sudoku-policy").iterdir()} >= {"config.json", "model.safetensors"}
        for block in parts[1:]:
            block.run(names)
    check_metrics(page, trainer, [names["steered"], names["joint"]])
    assert 1 < int(names["output"].rollout.num_forward_passes) <= 17
    # The folder that names the policy is enough to generate with it.
    model = names["AutoModelForDiffusionLM"].from_pretrained("sudoku-with-policy")
    rollout = model.generate(**names["inputs"], seed=0, return_dict_in_generate=True).rollout
    assert rollout.unmask_step.equal(names["output"].rollout.unmask_step)
    assert names["tracerl"].diffusion_generation_config().unmasking == "sudoku-policy"
    assert names["few_revisions"](["0123", "4123"], ["0120", "1120"]) == [1.0, 0.0]
    network = set(UnmaskPolicyModelConfig.__annotations__) - {"model_type"}
    assert len(network) > 8 and all(f"`{name}`" in text_of(page) or f"`{name}=" in text_of(page) for name in network)


# All of them


@pytest.mark.parametrize("page", PAGES)
def test_every_page_has_the_same_form(page):
    assert re.findall(r"^## (.*)$", text_of(page), re.MULTILINE) == HEADINGS
    assert text_of(page).count("$$") % 2 == 0 and text_of(page).count("$$") >= 2
    name = PAGES[page][0].__name__.removesuffix("Config")
    directives = re.findall(r"^::: trl_diffusion\.(\w+)$", section(page, "Reference"), re.MULTILINE)
    assert directives[:2] == [f"{name}Trainer", f"{name}Config"]


@pytest.mark.parametrize("page", PAGES)
def test_the_fields_of_the_reference_are_the_configs(page):
    config_class, parent, _ = PAGES[page]
    fields = own_fields(config_class, parent)
    assert documented_fields(page) == fields and len(fields) >= 10


@pytest.mark.parametrize("page", CHOICES)
def test_the_values_of_settings_are_named(page):
    assert CHOICES[page] and all(f'"{name}"' in text_of(page) for name in CHOICES[page])


@pytest.mark.parametrize("page", PAGES)
def test_blocks_for_a_gpu_name_what_is_there(page):
    marked = [block for block in python_blocks(page) if block.needs]
    assert len(marked) == 1 and marked[0].needs == {"gpu", "hub"}
    check_names(marked[0])


@pytest.mark.parametrize("page", PAGES)
def test_the_command_of_the_page(page):
    """On a CPU and on GPUs; whether its options exist is `test_doc_commands.py`'s."""
    assert [words[:2] for words in commands(page)] == [["trl-diffusion", PAGES[page][2]]] * 2
    marked = [block.needs for block in blocks(page, "bash")]
    assert marked == [frozenset(), {"gpu", "hub"}]


def test_a_name_that_is_not_there_is_found():
    """The check of blocks that do not run can fail."""
    good = "from trl_diffusion import TraceRLConfig\n\nTraceRLConfig('x', shrinkage=2, bf16=True)\n"
    check_names(Block(good, frozenset(), 1, "page"))
    for old, new in (("shrinkage", "shrinking"), ("import TraceRLConfig", "import TraceConfig")):
        with pytest.raises(AssertionError, match="shrinking|TraceConfig"):
            check_names(Block(good.replace(old, new), frozenset(), 1, "page"))
