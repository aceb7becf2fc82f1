# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The documentation as a site: `make docs` builds it strictly; what the build must catch; links out of docs/."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from doc_blocks import ROOT

import trl_diffusion


def load_hook():
    spec = importlib.util.spec_from_file_location("repository_files", ROOT / "docs" / "site" / "repository_files.py")
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    return hook


def build(config: Path, site: Path) -> subprocess.CompletedProcess:
    # A proxy that answers to nobody: a build that asked for something on a network would fail.
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(site)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"} | proxies,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    finished = build(ROOT / "mkdocs.yml", folder)
    assert finished.returncode == 0, finished.stderr
    assert "WARNING" not in finished.stderr
    return folder


def test_the_strict_build_makes_every_page(site):
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert pages and all((site / page).is_file() for page in pages)
    assert not list(site.rglob("*.py"))


def test_links_out_of_the_documents_lead_to_pages(site):
    page = (site / "traces.html").read_text()
    assert 'href="repository/trl_diffusion/generation/rollout.py.html"' in page
    listing = (site / "repository" / "trl_diffusion" / "generation" / "rollout.py.html").read_text()
    assert "class</span>" in listing and "Rollout" in listing
    # A model card's link back to a page of docs/, with its anchor.
    card = (site / "repository" / "model_cards" / "sudoku-unmask-policy-tiny.html").read_text()
    assert 'href="../../results.html#unmasking-policies"' in card


def test_nothing_but_mathjax_comes_from_elsewhere(site):
    page = (site / "index.html").read_text()
    loaded = re.findall(r'<(?:script|link)[^>]+(?:src|href)="(https?://[^"]+)"', page)
    assert [url.split("/")[2:5] for url in loaded] == [["cdn.jsdelivr.net", "npm", "mathjax@3.2.2"]]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[a](missing.md)", "missing.md"),
        ("[a](other.md#nowhere)", "nowhere"),
        ("[a](../missing.py)", "links to missing.py, which is not in the repository"),
        ("::: trl_diffusion.NoSuchName", "NoSuchName"),
        ("[a](other.md#part-one-two)\n\n[a](../script.py)", None),
    ],
)
def test_what_the_build_catches(tmp_path, text, complaint):
    docs = tmp_path / "docs"
    (docs / "site").mkdir(parents=True)
    for name in ("repository_files.py", "mathjax.js"):
        (docs / "site" / name).write_bytes((ROOT / "docs" / "site" / name).read_bytes())
    config = (ROOT / "mkdocs.yml").read_text()
    config = config[: config.index("\nnav:")] + "\nnav: [index.md, other.md]\n"
    (tmp_path / "mkdocs.yml").write_text(config.replace("paths: [.]", f"paths: ['{ROOT}']"))
    (tmp_path / "script.py").write_text("print('[no](link.md)')\n")
    (docs / "index.md").write_text(f"# Page\n\n{text}\n")
    (docs / "other.md").write_text("# Other\n\n## Part (one): two\n\n`[no](link.md)`\n\n```\n[no](link.md)\n```\n")
    finished = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert (finished.returncode == 0) == (complaint is None), finished.stderr
    assert complaint is None or complaint in finished.stderr


def test_rewritten_links():
    hook = load_hook()
    rewrite = hook.rewrite
    assert rewrite("[a](../examples/a.py) [b](b.md#c)", "docs/x.md") == "[a](repository/examples/a.py.md) [b](b.md#c)"
    assert rewrite("[a](../../LICENSE)", "docs/deep/x.md") == "[a](../repository/LICENSE.md)"
    assert rewrite("[a](../docs/x.md#y 'title')", "cards/c.md") == "[a](../../x.md#y 'title')"
    assert rewrite("[a](other.md)", "cards/c.md") == "[a](other.md)"
    for kept in ("[a](https://x.org/../y)", "[a](#b)", "`[a](../b.py)`", "```\n[a](../b.py)\n```\n", "a](../b"):
        assert rewrite(kept, "docs/x.md") == kept
    # A listing is fenced by more backticks than it holds.
    assert hook.listing("a = '```'\n", "a.py") == "# a.py\n\n````python\na = '```'\n````\n"


def test_names_for_editors_and_documentation_are_those_of_the_package():
    tree = ast.parse((ROOT / "trl_diffusion" / "__init__.pyi").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    names = {alias.name: node.module for node in imports for alias in node.names}
    assert names.keys() == set(trl_diffusion.__all__)
    for name, module in names.items():
        assert getattr(trl_diffusion, name) is getattr(import_module(f"trl_diffusion.{module}"), name)
