# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Links out of docs/, for the site (a hook of mkdocs.yml).

In the repository a page links to a script, a card or a module by its relative path, and a reader on GitHub gets there.
The site has docs/ alone. So each file that is linked to becomes a page of the site below `repository/`: Markdown as it
is, a folder as links to its files, anything else as a listing. The links of such a page are followed in the same way.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, InclusionLevel


FOLDER = "repository"
LINK = re.compile(r"(?<=\]\()(?P<path>[^)#\s:]+)(?P<rest>(?:#[^)\s]*)?(?:\s[^)]*)?)(?=\))")
# Fenced blocks and code in a line: nothing in them is a link.
CODE = re.compile(r"^ *(`{3,}).*?^ *\1 *$|(`+)(?!`).+?(?<!`)\2(?!`)", re.MULTILINE | re.DOTALL)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".ipynb": "json", ".sh": "bash"}


def place(path: str, docs: str = "docs") -> str:
    """Where the site has a file of the repository: `docs/a.md` → `a.md`, `LICENSE` → `repository/LICENSE.md`."""
    if path.startswith(docs + "/"):
        return path.removeprefix(docs + "/")
    return f"{FOLDER}/{path}" if path.endswith(".md") else f"{FOLDER}/{path}.md"


def links_out(text: str, path: str, docs: str = "docs") -> list[str]:
    """The files outside docs/ that `text`, the Markdown of the file at `path`, links to: paths from the top."""
    found = []
    rewrite(text, path, docs, found)
    return found


def rewrite(text: str, path: str, docs: str = "docs", found: list[str] | None = None) -> str:
    """The Markdown `text` of the file at `path` with its relative links as the site has them."""

    def replace(match: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match["path"]))
        if not target.startswith(docs + "/"):
            if found is not None:
                found.append(target)
        elif path.startswith(docs + "/"):
            return match[0]  # from page to page
        start = posixpath.dirname(place(path, docs))
        return posixpath.relpath(place(target, docs), start or ".") + match["rest"]

    pieces, end = [], 0
    for code in CODE.finditer(text):
        pieces += [LINK.sub(replace, text[end : code.start()]), code[0]]
        end = code.end()
    return "".join(pieces) + LINK.sub(replace, text[end:])


def listing(text: str, path: str) -> str:
    """A page that shows a file which is not Markdown."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"# {path}\n\n{fence}{LANGUAGES.get(Path(path).suffix, 'text')}\n{text.rstrip()}\n{fence}\n"


def page_of(root: Path, path: str) -> str:
    """The page of a file or folder of the repository, as Markdown whose links are those of a file at `path`."""
    if (root / path).is_dir():
        names = sorted(file.name for file in (root / path).iterdir() if file.is_file())
        folder = posixpath.basename(path)
        return f"# {path}\n\n" + "".join(f"- [{name}]({folder}/{name})\n" for name in names)
    text = (root / path).read_text(encoding="utf-8")
    return text if path.endswith(".md") else listing(text, path)


def _root(config) -> Path:
    return Path(config.config_file_path).parent


def on_files(files, config):
    """Add a page for each file outside docs/ that is linked to."""
    root, docs = _root(config), Path(config.docs_dir).name
    waiting = [f"{docs}/{file.src_uri}" for file in files.documentation_pages()]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        for target in links_out(page_of(root, path), path, docs):
            if target in seen:
                continue
            if not (root / target).exists():
                raise PluginError(f"{path} links to {target}, which is not in the repository.")
            seen.add(target)
            waiting.append(target)
            # Found by links, not by the menu.
            page = File.generated(
                config, place(target, docs), content=page_of(root, target), inclusion=InclusionLevel.NOT_IN_NAV
            )
            files.append(page)
    return files


def on_page_markdown(markdown, page, config, files):
    """Turn the links out of docs/, and those of the added pages, to where the site has them."""
    docs, name = Path(config.docs_dir).name, page.file.src_uri
    if not name.startswith(FOLDER + "/"):
        return rewrite(markdown, f"{docs}/{name}", docs)
    path = name.removeprefix(FOLDER + "/")
    return rewrite(markdown, path if (_root(config) / path).is_file() else path.removesuffix(".md"), docs)
