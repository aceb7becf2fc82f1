# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The cells of benchmarks/unmask_policy.py: rules, and trained policies, on the held-out problems of a task."""

import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from cells import ON_A_CPU, Result
from transformers import AutoTokenizer, PrinterCallback, set_seed
from unmask_policy_points import (
    BETAS,
    ENVIRONMENTS,
    MEASURED_SEEDS,
    Environment,
    as_json,
    heuristics,
    measure_points,
    measure_policy,
)

from trl_diffusion import (
    AutoModelForDiffusionLM,
    TraceRLConfig,
    TraceRLTrainer,
    UnmaskPolicyConfig,
    UnmaskPolicyModel,
    UnmaskPolicyModelConfig,
    UnmaskPolicyTrainer,
)
from trl_diffusion.checkpoints import tiny_checkpoint
from trl_diffusion.scripts.tasks import load_rl_task
from trl_diffusion.tasks import arithmetic_reward, solve_rate


# How policies are trained. `training`: fields of the trainer's config; `policy`: of a new policy; `alphas`: changes of
# `training` at one price of a step.
_COMMON = {
    "num_generations": 8,
    "per_device_train_batch_size": 96,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 10,
    "max_grad_norm": 1.0,
}
# Where steps cost much, a policy that learns fast forgets to look before it has learned what to look at.
_SLOWER = {10.0: {"learning_rate": 3e-4}, 3.0: {"learning_rate": 5e-4}}
SETTINGS: dict[str, dict[str, Any]] = {
    "sudoku": {
        "training": {**_COMMON, "max_steps": 160},
        "policy": {"initial_bias": -1.0},
        "alphas": _SLOWER,
    },
    "arithmetic": {
        "training": {**_COMMON, "per_device_train_batch_size": 64, "max_steps": 120},
        "policy": {"initial_bias": -0.5},
        "alphas": _SLOWER,
    },
}
# Of the policies beside training of the model, and of that alone: the same rollouts, and updates on each.
_JOINT_POLICY = {**_COMMON, "max_steps": 120, "temperature": 1.0, "alpha": 0.3}
_DLLM_RATE = 3e-4
JOINT: dict[str, dict[str, Any]] = {
    "policy": _JOINT_POLICY,
    "joint": {**_JOINT_POLICY, "dllm_learning_rate": _DLLM_RATE},
    "tracerl": {
        **_COMMON,
        "max_steps": 120,
        "temperature": 1.0,
        "learning_rate": _DLLM_RATE,
        "num_iterations": 2,
        "unmasking": "low_confidence",
    },
}
EVAL_STEPS, EVAL_PROBLEMS = 20, 64


def solved(completions: list[str], puzzle: list[str], solution: list[str], **kwargs) -> list[float]:
    """1 where all of a Sudoku is right, else 0."""
    return [solve_rate([text], [p], [s]) for text, p, s in zip(completions, puzzle, solution, strict=True)]


REWARDS = {"sudoku": solved, "arithmetic": arithmetic_reward}


def policy_folder(output: Path, task: str, alpha: float, must_exist: bool = False) -> Path:
    """Where the policy of the first seed is kept, which the cells of transfer load.

    Raises:
        FileNotFoundError: it is not there, and must be.
    """
    folder = output / "policies" / f"{task}-alpha-{alpha:g}"
    if must_exist and not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder} has no policy: run `--part policies --seeds 1` first.")
    return folder


# Cells


@dataclass(frozen=True)
class HeuristicsCell:
    """All rules in one environment."""

    kind: ClassVar[str] = "heuristics"

    environment: str
    num_test: int = 256

    @property
    def name(self) -> str:
        return f"heuristics-{self.environment}"

    def settings(self) -> dict[str, Any]:
        """What a result depends on, as JSON types."""
        environment = ENVIRONMENTS[self.environment]
        points = heuristics(environment.canvas, environment.block_length)
        fields = {"points": [[point.curve, point.setting] for point in points], "seeds": MEASURED_SEEDS}
        return _as_json({"kind": self.kind, **asdict(self), "where": asdict(environment), **fields})

    def measure(self, output: Path) -> Result:
        environment = ENVIRONMENTS[self.environment]
        points = heuristics(environment.canvas, environment.block_length)
        rows = measure_points(environment, points, self.num_test, MEASURED_SEEDS)
        return {"settings": self.settings(), "rows": as_json(rows)}


@dataclass(frozen=True)
class PolicyCell:
    """A policy trained on a task, measured on the task's held-out problems.

    Args:
        task (`str`), alpha (`float`), seed (`int`):
            What is trained: of the training problems, the rollouts and the first weights.
        num_test (`int`):
            Held-out problems.
        steps (`int`, *optional*):
            Updates, instead of those of [`SETTINGS`].
        form (`str`), expert (`bool`):
            Of the reward, and whether a group has a rollout of an expert, which writes the canvas as one block.
    """

    kind: ClassVar[str] = "policy"

    task: str
    alpha: float
    seed: int
    num_test: int = 256
    steps: int | None = None
    form: str = "multiplicative"
    expert: bool = False

    @property
    def variant(self) -> str:
        """`""` of a cell of the part `policies`."""
        return "additive" if self.form == "additive" else "expert" if self.expert else ""

    @property
    def name(self) -> str:
        return "-".join(["policy", self.task, *filter(None, [self.variant]), f"alpha-{self.alpha:g}", str(self.seed)])

    def training(self) -> dict[str, Any]:
        """Fields of the trainer's config."""
        given, environment = SETTINGS[self.task], ENVIRONMENTS[self.task]
        fields = {
            **given["training"],
            **given["alphas"].get(self.alpha, {}),
            "max_completion_length": environment.canvas,
            "block_length": environment.block_length,
            "alpha": self.alpha,
            "reward_form": self.form,
        }
        if self.expert:
            fields |= {"expert_steering": True, "expert_block_length": environment.canvas, "expert_threshold": 0.9}
        if self.steps is not None:
            fields["max_steps"] = self.steps
        return fields

    def settings(self) -> dict[str, Any]:
        """What a result depends on, as JSON types."""
        fields = {"training": self.training(), "policy": SETTINGS[self.task]["policy"], "betas": BETAS}
        fields |= {"where": asdict(ENVIRONMENTS[self.task]), "evaluated": [EVAL_STEPS, EVAL_PROBLEMS]}
        return _as_json({"kind": self.kind, **asdict(self), "variant": self.variant, **fields})

    def measure(self, output: Path) -> Result:
        """Train, and measure the policy that was best in evaluation."""
        environment = ENVIRONMENTS[self.task]
        policy = new_policy(SETTINGS[self.task]["policy"], self.seed)
        with tempfile.TemporaryDirectory() as folder:
            trainer = build_trainer(environment, self.seed, folder, self.training(), policy)
            trained = train(trainer)
        if self.seed == 1 and not self.variant:
            policy.save_pretrained(policy_folder(output, self.task, self.alpha))
        rows = measure_policy(environment, policy, self.num_test)
        return {"settings": self.settings(), "rows": rows, **trained}


@dataclass(frozen=True)
class JointCell:
    """On a checkpoint that solves little: a policy trained alone, with the model, or the model alone.

    The model that was trained is measured with rules too.
    """

    kind: ClassVar[str] = "joint"

    variant: str
    seed: int
    num_test: int = 256
    steps: int | None = None

    @property
    def name(self) -> str:
        return f"joint-{self.variant}-{self.seed}"

    def training(self) -> dict[str, Any]:
        """Fields of the trainer's config."""
        fields = JOINT[self.variant] | {"max_completion_length": ENVIRONMENTS["sudoku-weak"].canvas}
        return fields if self.steps is None else fields | {"max_steps": self.steps}

    def settings(self) -> dict[str, Any]:
        """What a result depends on, as JSON types."""
        fields = {"training": self.training(), "policy": SETTINGS["sudoku"]["policy"], "betas": BETAS}
        fields |= {"where": asdict(ENVIRONMENTS["sudoku-weak"]), "evaluated": [EVAL_STEPS, EVAL_PROBLEMS]}
        return _as_json({"kind": self.kind, **asdict(self), **fields})

    def measure(self, output: Path) -> Result:
        environment = ENVIRONMENTS["sudoku-weak"]
        policy = None if self.variant == "tracerl" else new_policy(SETTINGS["sudoku"]["policy"], self.seed)
        with tempfile.TemporaryDirectory() as folder:
            trainer = build_trainer(environment, self.seed, folder, self.training(), policy)
            trained = train(trainer)
        model = trainer.accelerator.unwrap_model(trainer.model) if policy is None else trainer.dllm
        model.eval()
        rows = [] if policy is None else measure_policy(environment, policy, self.num_test, model)
        if self.variant != "policy":  # whose model is as it was
            points = heuristics(environment.canvas, environment.block_length, random=False)
            rows += as_json(measure_points(environment, points, self.num_test, MEASURED_SEEDS, model))
        return {"settings": self.settings(), "rows": rows, **trained}


@dataclass(frozen=True)
class TransferCell:
    """The policy of the first seed where it was not trained."""

    kind: ClassVar[str] = "transfer"

    task: str
    alpha: float
    environment: str
    num_test: int = 256

    @property
    def name(self) -> str:
        return f"transfer-{self.task}-alpha-{self.alpha:g}-to-{self.environment}"

    def settings(self) -> dict[str, Any]:
        """What a result depends on, as JSON types."""
        fields = {"where": asdict(ENVIRONMENTS[self.environment]), "betas": (1.0,)}
        return _as_json({"kind": self.kind, **asdict(self), **fields})

    def measure(self, output: Path) -> Result:
        policy = UnmaskPolicyModel.from_pretrained(policy_folder(output, self.task, self.alpha, must_exist=True))
        rows = measure_policy(ENVIRONMENTS[self.environment], policy, self.num_test, betas=(1.0,))
        return {"settings": self.settings(), "rows": rows}


def _as_json(fields: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(fields))


# Training


def new_policy(fields: dict[str, Any], seed: int) -> UnmaskPolicyModel:
    set_seed(seed)
    return UnmaskPolicyModel(UnmaskPolicyModelConfig(**fields))


def build_trainer(
    environment: Environment, seed: int, output_dir: str, fields: dict[str, Any], policy: UnmaskPolicyModel | None
):
    """A trainer of a policy in an environment, or, without one, of the model.

    It is evaluated on problems of the training split that it does not train on, and its best state is loaded at the
    end.
    """
    path = tiny_checkpoint(environment.checkpoint)
    rows = load_rl_task(environment.task, seed=seed).train_dataset
    evaluated = rows.select(range(EVAL_PROBLEMS))
    seen = set(evaluated["prompt"])
    rows = rows.filter(lambda row: row["prompt"] not in seen)
    common = ON_A_CPU | {
        "output_dir": output_dir,
        "seed": seed,
        "logging_steps": 10,
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_steps": EVAL_STEPS,
        "save_steps": EVAL_STEPS,
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_reward",
        "num_generations_eval": 1,
        "per_device_eval_batch_size": EVAL_PROBLEMS,
    }
    data = {
        "train_dataset": rows,
        "eval_dataset": evaluated,
        "processing_class": AutoTokenizer.from_pretrained(path, padding_side="left"),
    }
    model = AutoModelForDiffusionLM.from_pretrained(path, dtype="float32")
    reward = REWARDS[environment.task]
    if policy is None:
        trainer = TraceRLTrainer(model, reward, TraceRLConfig(**common | fields), **data)
    else:
        trainer = UnmaskPolicyTrainer(policy, reward, UnmaskPolicyConfig(**common | fields), dllm=model, **data)
    trainer.remove_callback(PrinterCallback)  # one line per log; the cell keeps them
    return trainer


def train(trainer) -> Result:
    """Train; what the training was like over its steps, and in its evaluations."""
    started = time.process_time()
    trainer.train()
    seconds = time.process_time() - started
    logs = trainer.state.log_history
    reward = f"rewards/{trainer.reward_func_names[0]}/mean"
    names = {"step": "step", "reward": "reward", "accuracy": reward, "passes": "generation/forward_passes"}
    own = {"skipped_groups": "skipped_groups", "waiting": "policy/waiting_steps", "expert": "expert/reward"}
    curves = [{k: log[v] for k, v in (names | own).items() if v in log} for log in logs if "reward" in log]
    evaluated = [
        {k: log[v if v == "step" else f"eval_{v}"] for k, v in names.items()} for log in logs if "eval_reward" in log
    ]
    rewards = [point["reward"] for point in evaluated]
    return {
        "curves": curves,
        "evaluated": evaluated,
        "best_step": evaluated[rewards.index(max(rewards))]["step"] if rewards else None,
        "collapsed": bool(rewards) and rewards[-1] < 0.5 * max(rewards),
        "cpu_seconds_per_update": seconds / trainer.state.global_step,
        "threads": torch.get_num_threads(),
    }
