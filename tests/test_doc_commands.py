# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Every command line of README.md and docs/ names files that are there and options that exist."""

import pytest
from doc_blocks import pages
from doc_commands import command_lines, problems


@pytest.mark.parametrize("page", [page for page in pages() if command_lines(page)])
def test_the_commands_of_a_page(page):
    wrong = {command: found for command in command_lines(page) if (found := problems(command))}
    assert not wrong, "\n".join(f"{command}\n    {'; '.join(found)}" for command, found in wrong.items())


def test_commands_are_found_and_wrong_ones_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "Text.\n\n```bash\ntrl-diffusion eval --model m \\\n    --num_tests 3\nmake demo\n```\n\n"
        "    HF_HUB_OFFLINE=1 python benchmarks/demos.py --nothing 1\n\n```python\npython = 3\n```\n"
        "```bash\n.venv/bin/python examples/none.py\n"
        "accelerate launch --num_process 2 examples/bgpo.py --num_mc_samples=2\n"
        "accelerate launch --num_processes 2 examples/bgpo.py --num_mc_samples=2\npython -m venv .venv\n"
        "trl-diffusion no-such --model m\nmake nothing\n"
        "trl-diffusion eval --an_error 1\ntrl-diffusion eval: error: unrecognized\n```\n"
    )
    commands = command_lines(page)
    assert [problems(command) for command in commands] == [
        ["--num_tests is no option"],
        [],
        ["--nothing is no option"],
        ["examples/none.py is not there"],
        ["--num_process is no option"],
        [],
        [],
        ["no-such is no command"],
        ["make nothing is no target"],
    ]
