# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The wheel holds the whole package and works outside the checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]

# Runs in the clean environment; the one argument is that environment's folder.
USE_THE_PACKAGE = """
import sys
from importlib.metadata import distribution
from pathlib import Path

import trl_diffusion
from trl_diffusion import AutoModelForDiffusionLM
from trl_diffusion.checkpoints import tiny_checkpoint

clean = Path(sys.argv[1]).resolve()
checkpoint = tiny_checkpoint("sudoku-llada-tiny")
for path in (trl_diffusion.__file__, distribution("trl-diffusion").locate_file(""), checkpoint):
    assert Path(path).resolve().is_relative_to(clean), f"{path} is not in {clean}"

model = AutoModelForDiffusionLM.from_pretrained(checkpoint)
print(sum(parameter.numel() for parameter in model.parameters()))
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Run `command` away from the checkout and return what it prints; its errors show up in pytest's report."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_every_file_of_the_package(wheel):
    package = ROOT / "trl_diffusion"
    source = {
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}

    assert "trl_diffusion/py.typed" in packed
    # Sub-packages, checkpoints and templates, and where the console command begins; no tests, examples or benchmarks.
    assert packed == source | {"trl_diffusion_cli.py"}


def test_wheel_works_in_a_clean_environment(wheel, tmp_path):
    clean = tmp_path / "venv"
    venv.create(clean, with_pip=False)
    python = clean / ("Scripts" if os.name == "nt" else "bin") / "python"
    offline = ("--no-deps", "--no-index", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "--python", python, "install", *offline, wheel, cwd=tmp_path)

    # Lend it the dependencies installed here. A folder named in a .pth file has its own .pth files ignored, so an
    # editable install of the checkout does not come along.
    site_packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    here = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (Path(site_packages) / "dependencies.pth").write_text("\n".join(here))

    assert int(run(python, "-c", USE_THE_PACKAGE, clean, cwd=tmp_path).splitlines()[-1]) > 0
    assert "--block_length" in run(python.parent / "trl-diffusion", "convert", "--help", cwd=tmp_path)
