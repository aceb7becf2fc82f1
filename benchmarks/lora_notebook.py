# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The LoRA notebook, run as it stands: over several seeds, as the table of docs/results.md, or for its own outputs.

python benchmarks/lora_notebook.py --seeds 1 2 3    # print the table
python benchmarks/lora_notebook.py --write          # run it, and keep what it shows in the notebook
"""

import argparse
import hashlib
import json
import os
import statistics
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient


NOTEBOOK = Path(__file__).parents[1] / "examples" / "notebooks" / "lora_tracerl.ipynb"
# Behind the last cell: what the run came to.
_FIGURES = """
import json
print(json.dumps({
    "before": before.accuracy, "after": after.accuracy, "gained": gained, "lost": lost,
    "reward": [log["reward"] for log in logs], "seconds": summary.metrics["train_runtime"],
}))
"""


def execute(
    folder: str | os.PathLike, settings: str = "", extra: str = "", changes: dict[str, str] | None = None
) -> nbformat.NotebookNode:
    """Run the committed notebook in a fresh kernel.

    Args:
        folder (`str` or `os.PathLike`):
            Where its files go.
        settings (`str`):
            Code that runs behind the cell with the settings, and changes some of them.
        extra (`str`):
            Code that runs behind the last cell.
        changes (`dict[str, str]`, *optional*):
            Line of the notebook → what a reader writes in its place.

    Returns:
        `NotebookNode`: its cells, the two above among them, with their outputs.

    Raises:
        CellExecutionError: a cell failed.
        ValueError: a line to change is not there, or more than once.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for line, other in (changes or {}).items():
        places = [cell for cell in notebook.cells if line in cell.source.splitlines()]
        if len(places) != 1 or places[0].source.splitlines().count(line) != 1:
            raise ValueError(f"changes has the line {line!r}, which is not in the notebook once.")
        lines = places[0].source.splitlines()
        places[0].source = "\n".join(other if own == line else own for own in lines)
    place = next(n for n, cell in enumerate(notebook.cells) if "setup" in cell.metadata.get("tags", []))
    if settings:
        notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(settings, id="settings"))
    if extra:
        notebook.cells.append(nbformat.v4.new_code_cell(extra, id="extra"))
    resources = {"metadata": {"path": os.fspath(folder)}}
    NotebookClient(notebook, timeout=1200, kernel_name="python3", resources=resources).execute()
    return notebook


def figures(seed: int) -> dict:
    """The figures of one run."""
    with tempfile.TemporaryDirectory() as folder:
        settings = f'SEED, OUTPUT_DIR = {seed}, "adapter"'
        (output,) = (o for o in execute(folder, settings, _FIGURES).cells[-1].outputs if o.get("name") == "stdout")
        return {"seed": seed, **json.loads(output["text"])}


def table(runs: list[dict]) -> str:
    """The runs as a table in Markdown, and the rise over the seeds."""
    titles = ["seed", "accuracy before", "after", "right only after", "right only before"]
    titles += ["reward, first 5 steps", "last 5 steps", "seconds of training"]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for run in runs:
        lines.append(
            f"| {run['seed']} | {run['before']:.3f} | {run['after']:.3f} | {run['gained']} | {run['lost']} | "
            f"{run['reward'][0]:.3f} | {run['reward'][-1]:.3f} | {run['seconds']:.0f} |"
        )
    rises = [run["after"] - run["before"] for run in runs]
    afters = [run["after"] for run in runs]
    if len(runs) > 1:
        lines += ["", f"Accuracy after: {statistics.mean(afters):.3f} ± {statistics.stdev(afters):.3f}, rise: "]
        lines[-1] += f"{statistics.mean(rises):+.3f} ± {statistics.stdev(rises):.3f} (mean ± standard deviation)."
    return "\n".join(lines)


def fingerprint(notebook: nbformat.NotebookNode) -> str:
    """What its code is, by which outputs of other code are told."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


def write():
    """Run the notebook and keep its outputs, without what it says on stderr: progress bars and warnings of libraries,
    which name paths of the machine."""
    with tempfile.TemporaryDirectory() as folder:
        notebook = execute(folder)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "outputs_of": fingerprint(notebook),
        }
    )
    temporary = NOTEBOOK.with_suffix(".tmp")
    nbformat.write(notebook, temporary)
    os.replace(temporary, NOTEBOOK)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--write", action="store_true", help="Run it once, as it stands, and keep the outputs.")
    args = parser.parse_args()
    if args.write:
        write()
    else:
        print(table([figures(seed) for seed in args.seeds]))


if __name__ == "__main__":
    main()
