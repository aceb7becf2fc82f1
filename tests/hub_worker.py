# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What tests/test_hub.py does in processes of their own, since `huggingface_hub` reads its settings once: training and
pushing ("push"), and loading by id somewhere else ("load"). Results go to a JSON file."""

import contextlib
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import torch
from datasets import Dataset
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import HTTPError
from peft import LoraConfig
from rl import rl_config, share_of_ones
from transformers import AutoTokenizer

from trl_diffusion import (
    AutoModelForDiffusionLM,
    DiffusionSFTConfig,
    DiffusionSFTTrainer,
    TraceRLTrainer,
    UnmaskPolicyModel,
    UnmaskPolicyModelConfig,
    UnmaskPolicyTrainer,
)
from trl_diffusion.checkpoints import tiny_checkpoint
from trl_diffusion.hub import HubError, MeasuredFigure
from trl_diffusion.models import merge_adapter
from trl_diffusion.scripts.cli import main


WRITER, READER = "hf_" + "w" * 30, "hf_" + "r" * 30
PUZZLES = ["1200001020000001", "0000341221434321", "0030100220003000", "1000030000400002"] * 2
SDAR, LLADA, SOLVER = (str(tiny_checkpoint(f"sudoku-{name}-tiny")) for name in ("sdar", "llada", "llada-solver"))


def rows():
    return Dataset.from_dict({"prompt": PUZZLES})


def rl_trainer(trainer_class, folder, model=LLADA, peft_config=None, dllm=None, tokenizer=None, **settings):
    canvas = {"max_completion_length": 17, "block_length": None, "num_denoising_steps": 5, "max_steps": 1}
    # Hot enough that the samples of a prompt differ, and there is something to learn.
    learning = {"temperature": 2.0, "learning_rate": 0.05, "seed": 3}
    config = rl_config(trainer_class, folder, **{**canvas, **learning, **settings})
    tokenizer = AutoTokenizer.from_pretrained(tokenizer or dllm or model, padding_side="left")
    kwargs = {"train_dataset": rows(), "processing_class": tokenizer}
    kwargs |= {"peft_config": peft_config} if dllm is None else {"dllm": dllm}
    return trainer_class(model, share_of_ones, config, **kwargs)


def lora():
    # Not zero at the start: one step need not change what a model writes.
    return LoraConfig(target_modules="all-linear", r=4, lora_alpha=16, init_lora_weights=False)


def answer(trainer) -> str:
    """What the trained model writes, decoded as a run is evaluated."""
    model, tokenizer = trainer._dllm, trainer.processing_class
    settings = {"temperature": 0.0, "top_k": None, "top_p": None}
    if isinstance(trainer, UnmaskPolicyTrainer):
        settings["unmasking"] = trainer.model
    inputs = tokenizer(PUZZLES[:1], return_tensors="pt")
    config = trainer.args.diffusion_generation_config(**settings)
    torch.manual_seed(0)  # a policy draws
    return tokenizer.decode(model.generate(**inputs, generation_config=config)[0, 16:], skip_special_tokens=True)


def refused(call) -> str:
    """The message of an error that says what to do."""
    try:
        call()
    except (HubError, ValueError) as error:
        return str(error)
    return ""


def command(*arguments) -> list:
    """Exit status, output and errors of a console command."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        status = main(list(arguments))
    lines = [line for line in errors.getvalue().splitlines() if line.startswith("trl-diffusion")]
    return [status, out.getvalue(), "\n".join(lines)]


def push(work: Path, found: dict):
    api = HfApi(token=WRITER)
    # A base on the Hub, whose card names a licence.
    base = "alice/base"
    api.create_repo(base)
    api.upload_folder(repo_id=base, folder_path=LLADA)
    api.upload_file(path_or_fileobj=b"---\nlicense: mit\n---\n# Base\n", path_in_repo="README.md", repo_id=base)
    api.create_repo("org/gated")
    api.upload_folder(repo_id="org/gated", folder_path=LLADA)

    # A whole model, pushed with each checkpoint and at the end.
    hub = {"push_to_hub": True, "hub_token": WRITER}
    full = rl_trainer(TraceRLTrainer, work / "full", save_strategy="steps", save_steps=1, hub_model_id="full", **hub)
    found["created before training"] = api.repo_exists("alice/full") and full.state.global_step == 0
    full.train()
    full._finish_current_push()
    found["after the checkpoint"] = api.list_repo_files("alice/full")
    figure = {"task": "sudoku", "num_examples": 8, "before": 0.25, "after": 0.5, "seeds": (1, 2), "spread": 0.1}
    full.card_figures = [MeasuredFigure(metric="solve_rate", command="make figures", **figure)]
    full.push_to_hub()
    # An adapter, its base on the Hub.
    AutoTokenizer.from_pretrained(base, token=WRITER)
    adapter = rl_trainer(TraceRLTrainer, work / "adapter", base, lora(), hub_model_id="alice/adapter")
    adapter.train()
    adapter.push_to_hub(token=WRITER)
    found["kinds"] = refused(lambda: adapter.push_to_hub(token=WRITER, merge_adapter=True))
    adapter.args.hub_model_id, adapter.hub_model_id = "alice/merged-by-trainer", None
    adapter.push_to_hub(token=WRITER, merge_adapter=True)
    # One whose base is a tiny checkpoint, to a branch.
    tiny = rl_trainer(
        TraceRLTrainer,
        work / "tiny",
        SDAR,
        lora(),
        num_denoising_steps=17,
        hub_model_id="alice/tiny",
        hub_revision="dev",
        hub_private_repo=True,
        **hub,
    )
    tiny.train()
    tiny.push_to_hub()
    # Policies.
    policies, eager = {}, UnmaskPolicyModelConfig(initial_bias=4.0)  # other answers than one token at a time gives
    for name, rate in (("policy", None), ("joint", 1e-2)):
        policies[name] = rl_trainer(
            UnmaskPolicyTrainer,
            work / name,
            UnmaskPolicyModel(eager),
            dllm=SOLVER,
            dllm_learning_rate=rate,
            policy_temperature=0.7,
            temperature=0.5,
            warmup_steps=0,
            eval_strategy="no",
            num_denoising_steps=None,
            hub_model_id=f"alice/{name}",
        )
        policies[name].train()
        policies[name].push_to_hub(token=WRITER)
    # Supervised fine-tuning.
    sft = DiffusionSFTTrainer(
        SDAR,
        DiffusionSFTConfig(
            str(work / "sft"),
            max_steps=1,
            learning_rate=0.002,
            per_device_train_batch_size=8,
            use_cpu=True,
            bf16=False,
            report_to="none",
            hub_model_id="alice/sft",
        ),
        train_dataset=rows().add_column("completion", ["1234341221434321"] * 8),
    )
    sft.train()
    sft.push_to_hub(token=WRITER)
    failures(work, api, base, found)
    trainers = {"full": full, "adapter": adapter, "merged-by-trainer": adapter, "tiny@dev": tiny, **policies}
    found["answers"] = {name: answer(trainer) for name, trainer in trainers.items()}
    output = sft.model.generate(**sft.processing_class(PUZZLES[:1], return_tensors="pt"))
    found["answers"]["sft"] = sft.processing_class.decode(output[0, 16:], skip_special_tokens=True)
    found["base answers"] = {}
    for path in (LLADA, SDAR, SOLVER):
        base_model, tokenizer = AutoModelForDiffusionLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
        output = base_model.generate(**tokenizer(PUZZLES[:1], return_tensors="pt"))
        found["base answers"][path] = tokenizer.decode(output[0, 16:], skip_special_tokens=True)

    def trainer(token=WRITER, folder=work / "refused", **settings):
        return rl_trainer(TraceRLTrainer, folder, push_to_hub=True, hub_token=token, **settings)

    errors = found["errors"] = {
        "no token": refused(lambda: trainer(None, hub_model_id="alice/x")),
        "bad token": refused(lambda: trainer("hf_nonsense", hub_model_id="alice/x")),
        "read only": refused(lambda: trainer(READER, hub_model_id="bob/x")),
        "not theirs": refused(lambda: trainer(READER, hub_model_id="alice/full")),
        "foreign": refused(lambda: trainer(hub_model_id="carol/x")),
        "bad id": refused(lambda: trainer(hub_model_id="a/b/c")),
        "another kind": refused(lambda: trainer(hub_model_id="alice/adapter")),
        "strategy": refused(lambda: trainer(hub_model_id="alice/x", hub_strategy="checkpoint")),
        "no adapter": refused(lambda: trainer(hub_model_id="alice/x", push_merged_adapter=True)),
    }
    full.save_model(str(work / "base"), _internal_call=True)
    errors["local base"] = refused(
        lambda: trainer(hub_model_id="alice/x", model=str(work / "base"), peft_config=lora())
    )
    errors["another run"] = refused(lambda: trainer(hub_model_id="alice/x", folder=work / "adapter"))
    memory = AutoModelForDiffusionLM.from_pretrained(LLADA)
    memory.config._name_or_path = memory.name_or_path = ""
    errors["base in memory"] = refused(
        lambda: trainer(hub_model_id="alice/x", model=memory, tokenizer=LLADA, peft_config=lora())
    )
    endpoint, constants.ENDPOINT = constants.ENDPOINT, "http://127.0.0.1:9"
    errors["unreachable"] = refused(lambda: trainer(hub_model_id="alice/x"))
    constants.ENDPOINT, constants.HF_HUB_OFFLINE = endpoint, True
    errors["offline"] = refused(lambda: trainer(hub_model_id="alice/x"))
    constants.HF_HUB_OFFLINE = False
    found["left by errors"] = sorted(repo.id for repo in [api.model_info("alice/full")] if api.repo_exists("alice/x"))

    # The console command.
    commands = found["commands"] = {"no token": command("push", "--model", str(work / "full"), "--repo_id", "again")}
    os.environ["HF_TOKEN"] = WRITER
    (work / "full" / "optimizer.pt").write_bytes(b"not for others")
    results = {"num_problems": 8, "accuracy": 0.5, "accuracy_low": 0.2, "accuracy_high": 0.8, "forward_passes": 5.0}
    (work / "evaluation").mkdir()
    (work / "evaluation" / "results.json").write_text(json.dumps({"tasks": {"sudoku": results}}))
    folder = str(work / "full")
    commands["full"] = command(
        "push", "--model", folder, "--repo_id", "again", "--eval_results", str(work / "evaluation"), "--private"
    )
    commands["lost"] = command("push", "--model", str(work / "lost"), "--repo_id", "lost")
    adapter_folder = str(work / "adapter")
    commands["merged"] = command("push", "--model", adapter_folder, "--repo_id", "alice/merged", "--merge_adapter")
    commands["branch"] = command("push", "--model", str(work / "policy"), "--repo_id", "policy", "--revision", "v2")
    commands["joint"] = command("push", "--model", str(work / "joint"), "--repo_id", "joint", "--revision", "v2")
    commands["not merged"] = command("push", "--model", folder, "--repo_id", "again", "--merge_adapter")
    (work / "full" / "README.md").unlink()
    commands["no card"] = command("push", "--model", folder, "--repo_id", "again")
    commands["no folder"] = command("push", "--model", str(work / "none"), "--repo_id", "again")


def failures(work: Path, api: HfApi, base: str, found: dict):
    """The Hub goes away; and an adapter of another branch of its base."""
    hub = {"push_to_hub": True, "hub_token": WRITER}
    lost = rl_trainer(TraceRLTrainer, work / "lost", save_strategy="steps", save_steps=1, hub_model_id="lost", **hub)
    api.upload_file(path_or_fileobj=b"mine", path_in_repo="fp8/model.safetensors", repo_id="alice/lost")
    listing = HfApi.list_repo_files
    HfApi.list_repo_files = gone
    lost.train()
    for name in ("model.safetensors", "README.md"):
        (work / "lost" / name).unlink(missing_ok=True)
    found["gone"] = [lost.state.global_step, refused(lost.push_to_hub)]
    HfApi.list_repo_files = listing

    halved, branch = work / "halved", "halved"
    shutil.copytree(LLADA, halved)
    model = AutoModelForDiffusionLM.from_pretrained(LLADA)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.5)
    model.save_pretrained(halved)
    api.create_branch(base, branch=branch)
    api.upload_folder(repo_id=base, folder_path=halved, revision=branch)
    settings = {"model_init_kwargs": {"revision": branch, "token": WRITER}, "hub_model_id": "alice/halved"}
    adapter = rl_trainer(TraceRLTrainer, work / "of-a-branch", base, lora(), **settings)
    adapter.train()
    adapter.push_to_hub(token=WRITER)
    found["halved"] = adapter.model(torch.tensor([[3, 4, 5, 6]])).logits.tolist()


def gone(*args, **kwargs):
    raise HTTPError("gone")


def load(work: Path, found: dict):
    names = (
        "full",
        "adapter",
        "merged-by-trainer",
        "merged",
        "tiny@dev",
        "policy",
        "joint",
        "sft",
        "again",
        "joint@v2",
    )
    found["printed"] = {}
    for name in names:
        repo, _, branch = f"alice/{name}".partition("@")
        card = Path(hf_hub_download(repo, "README.md", revision=branch or None)).read_text()
        code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
        output = io.StringIO()
        torch.manual_seed(0)
        with contextlib.redirect_stdout(output):
            exec(compile(code, f"quick start of {name}", "exec"), {})
        found["printed"][name] = output.getvalue().strip()
    ids = torch.tensor([[3, 4, 5, 6]])
    models = [AutoModelForDiffusionLM.from_pretrained(f"alice/{name}") for name in ("adapter", "merged", "base")]
    adapted, merged, base = (model(ids).logits for model in models)
    found["merged"] = (adapted - merged).abs().max().item()
    found["adapted"] = (adapted - base).abs().max().item()
    halved = AutoModelForDiffusionLM.from_pretrained("alice/halved")(ids).logits.tolist()
    found["halved"] = [halved, merge_adapter(str(work / "of-a-branch"))(ids).logits.tolist()]
    found["settings"] = [model.generation_config.num_denoising_steps for model in models]

    def loaded(name, **kwargs):
        return refused(lambda: AutoModelForDiffusionLM.from_pretrained(name, **kwargs))

    found["errors"] = {
        "gated": loaded("org/gated", token=READER),
        "gated, no token": loaded("org/gated", token=False),
        "missing": loaded("alice/nothing"),
        "no such branch": loaded("alice/full", revision="v9"),
        "bad id": loaded("a/b/c"),
    }
    os.environ["HF_TOKEN"] = READER
    found["command"] = command("generate", "--model", "org/gated", "--prompt", "0")
    constants.HF_HUB_OFFLINE = True
    found["errors"]["not in the cache"] = loaded("alice/other")
    found["cached"] = loaded("alice/full")


if __name__ == "__main__":
    result: dict = {}
    phase, folder, file = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    # What a card says that it was trained by.
    sys.argv = ["examples/tracerl.py", "--config", "run.yaml", "--hub_token", WRITER, "--seed=3"]
    {"push": push, "load": load}[phase](folder, result)
    file.write_text(json.dumps(result))
