# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The LoRA notebook, executed as it is committed."""

import base64
import io
import json
import re
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from conftest import random_model
from hub_server import HubServer
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig

from trl_diffusion import AutoModelForDiffusionLM, TraceRLConfig
from trl_diffusion.tasks import character_tokenizer, sudoku_dataset


ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "notebooks" / "lora_tracerl.ipynb"
STEPS = 6
# As in the notebook, but for less of everything.
SHORT = f"""
setup["training"] |= {{"max_steps": {STEPS}, "logging_steps": 2, "per_device_train_batch_size": 16}}
setup["num_test"] = 16
"""
RESULTS = """
import json
pulled = denoise(AutoModelForDiffusionLM.from_pretrained(PUSH_TO).eval(), example["prompt"])
print(json.dumps({"log": logs, "before": before.correct, "after": after.correct, "canvas": rollout_after.completions(),
                  "steps": rollout_before.unmask_step.tolist(), "example": example,
                  "pulled": pulled.completions()}))
"""
CHAT = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
# GSM8K is on the Hub: two rows of each split in its place.
ROWS = """
import trl_diffusion.scripts.tasks
from datasets import Dataset
gsm8k = {
    "train": {"question": ["1 + 1?", "What is 2 - 7?"], "answer": ["2\\n#### 2", "minus\\n#### -5"]},
    "test": {"question": ["2 + 2?", "What is 3 - 7?"], "answer": ["4\\n#### 4", "minus\\n#### -4"]},
}
trl_diffusion.scripts.tasks.load_rows = lambda name, config, split, *option: Dataset.from_dict(gsm8k[split])
"""


@pytest.fixture(scope="module")
def runner():
    """benchmarks/lora_notebook.py."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import lora_notebook

    sys.path.remove(str(ROOT / "benchmarks"))
    return lora_notebook


@pytest.fixture(scope="module")
def run(runner, tmp_path_factory):
    """(cell id -> cell, folder, files on the Hub) of a run that pushes to a Hub of its own."""
    folder = tmp_path_factory.mktemp("notebook")
    with HubServer(folder / "hub") as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment(folder / "home").items():
            patch.setenv(name, value)
        push = {'PUSH_TO = None  # "your-name/sudoku-lora"': 'PUSH_TO = "user/sudoku-lora"'}
        notebook = runner.execute(folder, SHORT, RESULTS, push)
        yield {cell.id: cell for cell in notebook.cells}, folder, server.files("user/sudoku-lora")


def printed(cell) -> str:
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


def pictures(cell) -> list[Image.Image]:
    found = [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
    return [Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB") for data in found]


def results(cells) -> dict:
    return json.loads(printed(cells["extra"]))


@pytest.mark.slow
def test_the_run_shows_rewards_accuracies_and_pictures(run):
    cells, _, _ = run
    log, found = results(cells)["log"], results(cells)
    assert [entry["step"] for entry in log] == [2, 4, 6] and all(entry["reward"] > 0 for entry in log)
    (table,) = [output.data["text/html"] for output in cells["train"].outputs if "text/html" in output.get("data", {})]
    assert "<th>Reward</th>" in table and all(f"<td>{entry['reward']:.3f}</td>" in table for entry in log)
    accuracy = {name: sum(found[name]) / 16 for name in ("before", "after")}
    assert f"accuracy before: {accuracy['before']:.3f}, 95 % interval" in printed(cells["before"])
    assert f"accuracy after : {accuracy['after']:.3f}, 95 % interval" in printed(cells["after"])
    changes = [after - before for before, after in zip(found["before"], found["after"], strict=True)]
    assert f"right only after: {changes.count(1)}, right only before: {changes.count(-1)}" in printed(cells["after"])
    for name in ("canvas-before", "curve", "after", "canvas-after"):
        (picture,) = pictures(cells[name])
        assert min(picture.size) > 150 and len(picture.getcolors(maxcolors=10**6)) > 20, name


@pytest.mark.slow
def test_the_run_shows_the_canvas_filling_up(run):
    cells, _, _ = run
    found = results(cells)
    assert found["example"] == sudoku_dataset("test", 16, num_clues=(5, 6))[0]
    lines = printed(cells["canvas-before"]).splitlines()
    (steps,) = found["steps"]
    for step, line in enumerate(lines[:8], start=1):
        state = line.removeprefix(f"step {step}  ").replace(" ", "")
        assert [sign == "·" for sign in state] == [committed > step for committed in steps], line
    assert lines[8:] == [f"wanted: {found['example']['solution']}"]
    (view,) = [output.data["text/html"] for output in cells["view"].outputs]
    assert view.count("data-step=") == 17 and found["example"]["prompt"] in view


@pytest.mark.slow
def test_the_adapter_is_saved_and_loads_again(run):
    cells, folder, _ = run
    adapter = folder / "outputs" / "lora-tracerl-tiny"
    weights = load_file(adapter / "adapter_model.safetensors")
    learned = [weight for name, weight in weights.items() if "lora_B" in name]
    assert len(learned) == 4 * 7 and all(weight.abs().max() > 0 for weight in learned)  # they start at zero
    card = (adapter / "README.md").read_text()
    found = results(cells)
    before, after = (sum(found[name]) / 16 for name in ("before", "after"))
    assert f"| sudoku | accuracy | {before:.3f} | {after:.3f} |" in card
    assert "the same tokens: True" in printed(cells["reload"])
    # Here too, away from the notebook.
    model = AutoModelForDiffusionLM.from_pretrained(adapter).eval()
    ids = torch.tensor([[int(digit) + 3 for digit in found["example"]["prompt"]]])
    rollout = model.generate(
        ids, max_new_tokens=17, num_denoising_steps=8, temperature=0.0, return_dict_in_generate=True
    ).rollout
    assert rollout.completions() == found["canvas"]


@pytest.mark.slow
def test_the_push_sends_what_was_saved_and_the_hub_gives_it_back(run):
    cells, folder, pushed = run
    assert "pushed to user/sudoku-lora" in printed(cells["push"])
    local = folder / "outputs" / "lora-tracerl-tiny"
    for name in ("adapter_model.safetensors", "tokenizer.json", "README.md"):
        assert pushed[name] == (local / name).read_bytes()
    assert b"sudoku_reward" in pushed["README.md"]
    assert results(cells)["pulled"] == results(cells)["canvas"]
    # Nothing of the machine it ran on, such as the kernel's command.
    texts = b"".join(content for name, content in pushed.items() if name.endswith((".md", ".json")))
    assert str(ROOT).encode() not in texts and str(folder).encode() not in texts and b"ipykernel" not in texts


# The large setups: a tiny family in the place of the model, and its canvas.
CHOICES = {
    "sdar-4b": ("sdar", '{"max_completion_length": 12}'),
    "llada-8b": ("llada", '{"max_completion_length": 16, "block_length": 8, "num_denoising_steps": 8}'),
}


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES)
def test_the_large_setups_run_on_tiny_chat_models(choice, runner, tmp_path):
    """One cell changed; then a tiny model in the place of the large one, a short canvas, and no bf16 on a CPU."""
    family, short = CHOICES[choice]
    tokenizer = character_tokenizer("".join(map(chr, range(32, 127))) + "\n")
    tokenizer.chat_template = CHAT
    random_model(family, tokenizer, max_position_embeddings=512).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    settings = f"""{ROWS}
setup |= {{"model": {str(tmp_path / "model")!r}, "loading": {{}}}}
setup["training"] |= {short}
setup["training"] |= {{"max_steps": 2, "logging_steps": 1, "gradient_accumulation_steps": 1, "bf16": False,
                      "use_cpu": True, "save_strategy": "no"}}
if setup["quantization"]:
    setup["quantization"]["bnb_4bit_compute_dtype"] = "float32"
"""
    kinds = "print(sorted({type(module).__name__ for module in reloaded.modules()}))"
    line = 'CHOICE = "tiny"  # "tiny", "sdar-4b" or "llada-8b"'
    notebook = runner.execute(tmp_path, settings, kinds, {line: f'CHOICE = "{choice}"'})
    cells = {cell.id: cell for cell in notebook.cells}
    assert "reward: accuracy_reward" in printed(cells["load"])
    assert "2 rows to train on, 2 held out" in printed(cells["load"]) and "accuracy before" in printed(cells["before"])
    assert "the same tokens: True" in printed(cells["reload"])
    assert ("Linear4bit" in printed(cells["extra"])) == (choice == "llada-8b")
    assert (tmp_path / "outputs" / f"lora-tracerl-{choice}" / "adapter_model.safetensors").exists()
    assert pictures(cells["canvas-after"])


@pytest.mark.parametrize("choice", ["tiny", *CHOICES])
def test_each_choice_makes_its_configs(choice, tmp_path, monkeypatch):
    """Of the cells as they are, but that this machine may have no GPU with bf16."""
    monkeypatch.chdir(tmp_path)
    cells = {cell.id: cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells}
    scope = {}
    exec(cells["imports"].replace("%matplotlib inline", ""), scope)  # the project's own text
    exec(cells["setup"].replace('CHOICE = "tiny"', f'CHOICE = "{choice}"'), scope)
    if not torch.cuda.is_available():
        scope["setup"]["training"]["use_cpu"] = True
    exec(cells["configs"], scope)
    config, lora, quantization = scope["config"], scope["lora"], scope["quantization"]
    assert isinstance(config, TraceRLConfig) and isinstance(lora, LoraConfig)
    assert config.output_dir == f"outputs/lora-tracerl-{choice}" and lora.target_modules == "all-linear"
    for name, value in scope["setup"]["training"].items():
        if name != "save_strategy":
            assert getattr(config, name) == value
    assert config.bf16 == (choice != "tiny")
    if choice == "llada-8b":
        assert isinstance(quantization, BitsAndBytesConfig) and quantization.load_in_4bit
        assert quantization.bnb_4bit_compute_dtype == torch.bfloat16
    else:
        assert quantization is None
    # A whole number of groups in a batch, and canvas and steps that the sampler takes.
    assert config.per_device_train_batch_size % config.num_generations == 0
    config.diffusion_generation_config().validate()


def test_what_is_committed_was_shown_by_the_code_that_is_committed(runner):
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 500_000
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata["outputs_of"] == runner.fingerprint(notebook), "run benchmarks/lora_notebook.py --write"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert all(pictures({cell.id: cell for cell in code}[name]) for name in ("canvas-before", "curve", "canvas-after"))
    outputs = json.dumps([cell.outputs for cell in code])
    # Paths of the machine it ran on.
    assert not re.search(r"(?<![\w.<:])/(home|root|tmp|usr|opt|work|Users|var|mnt)/|[A-Z]:\\\\", outputs)
    assert "Traceback" not in outputs and '"stderr"' not in outputs


def test_the_figures_in_the_text_are_those_of_the_results_page():
    cells = {cell.id: cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells}
    quoted = re.findall(r"\d\.\d{3} ± \d\.\d{3}", cells["figures-text"])
    page = (ROOT / "docs" / "results.md").read_text().split("## The LoRA notebook")[1].split("\n## ")[0]
    assert quoted and all(figure in page for figure in quoted)
    assert "python benchmarks/lora_notebook.py --seeds 1 2 3" in page and "lora_notebook.py" in cells["figures-text"]


def test_a_change_of_a_line_that_is_not_there_is_an_error(runner, tmp_path):
    with pytest.raises(ValueError, match="not in the notebook once"):
        runner.execute(tmp_path, changes={"PUSH_TO = 1": ""})


def test_the_table_over_seeds(runner):
    runs = [
        {
            "seed": seed,
            "before": 0.1,
            "after": after,
            "gained": 5,
            "lost": 1,
            "reward": [0.5, 1.0, 1.5],
            "seconds": 9.6,
        }
        for seed, after in ((1, 0.7), (2, 0.8))
    ]
    lines = runner.table(runs).splitlines()
    assert lines[2] == "| 1 | 0.100 | 0.700 | 5 | 1 | 0.500 | 1.500 | 10 |"
    assert lines[-1].startswith("Accuracy after: 0.750 ± 0.071, rise: +0.650 ± 0.071")
    assert len({line.count("|") for line in lines[:4]}) == 1
