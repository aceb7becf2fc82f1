# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Repositories in a folder, as [`HubServer`] serves them: commits, branches, files, and who may do what."""

import hashlib
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any


# What the Hub's first commit of a repository says is stored as large files.
LARGE = (".safetensors", ".bin", ".pt", ".png", ".jpg", ".parquet", ".npz", ".onnx", ".gguf", ".model", ".zip", ".gz")
_LARGE_SIZE = 10 * 2**20
_ATTRIBUTES = "".join(f"*{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in LARGE).encode()


class Store:
    """Repositories in `folder`: `repos.json` says which there are, `objects` holds their files by SHA-256."""

    def __init__(self, folder: str | os.PathLike):
        self.folder, self.lock = Path(folder), threading.RLock()
        (self.folder / "objects").mkdir(parents=True, exist_ok=True)
        self._index = self.folder / "repos.json"
        self.repos: dict[str, dict[str, Any]] = json.loads(self._index.read_text()) if self._index.exists() else {}

    def _save(self):
        partial = self._index.with_suffix(".tmp")
        partial.write_text(json.dumps(self.repos, indent=1))
        os.replace(partial, self._index)

    def create(self, kind: str, name: str, private: bool) -> dict[str, Any]:
        """A new repository, with the first commit that the Hub gives it."""
        with self.lock:
            repo = {"kind": kind, "id": name, "private": private, "gated": None, "branches": {}, "commits": {}}
            self.repos[f"{kind}s/{name}"] = repo
            self.commit(repo, "main", "initial commit", {".gitattributes": self.add_file(_ATTRIBUTES)}, set())
            return repo

    def gate(self, name: str, users: tuple[str, ...] = (), kind: str = "model"):
        """Let only these users read the files of a repository, as after they accepted its conditions."""
        with self.lock:
            self.repos[f"{kind}s/{name}"]["gated"] = list(users)
            self._save()

    def files(self, repo: dict[str, Any], revision: str) -> dict[str, dict[str, Any]] | None:
        """Path -> file of a branch or commit; `None` where there is no such revision."""
        commit = repo["branches"].get(revision, revision)
        return repo["commits"][commit]["files"] if commit in repo["commits"] else None

    def commit(self, repo: dict[str, Any], branch: str, title: str, added: dict[str, dict], deleted: set[str]) -> str:
        """Put a commit on top of a branch."""
        with self.lock:
            parent = repo["branches"].get(branch)
            files = dict(repo["commits"][parent]["files"]) if parent else {}
            files = {path: file for path, file in files.items() if path not in deleted} | added
            content = json.dumps([parent, title, time.time_ns(), files], sort_keys=True)
            oid = hashlib.sha1(content.encode()).hexdigest()
            date = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
            repo["commits"][oid] = {"parent": parent, "title": title, "date": date, "files": files}
            repo["branches"][branch] = oid
            self._save()
            return oid

    def history(self, repo: dict[str, Any], revision: str) -> list[dict[str, Any]]:
        """The commits that led to a branch or commit, the newest first."""
        oid, found = repo["branches"].get(revision, revision), []
        while oid is not None:
            commit = repo["commits"][oid]
            entry = {"id": oid, "title": commit["title"], "message": "", "date": commit["date"]}
            found.append({**entry, "authors": [{"user": repo["id"].split("/")[0]}]})
            oid = commit["parent"]
        return found

    # Files

    def path_of(self, sha256: str) -> Path:
        return self.folder / "objects" / sha256

    def add_object(self, content: bytes) -> str:
        """Keep bytes; returns their SHA-256."""
        sha256 = hashlib.sha256(content).hexdigest()
        if not self.path_of(sha256).exists():
            with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as file:
                file.write(content)
            os.replace(file.name, self.path_of(sha256))
        return sha256

    def add_file(self, content: bytes) -> dict[str, Any]:
        """A file that git itself keeps, under the name that git gives it."""
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return {"oid": oid, "size": len(content), "sha256": self.add_object(content), "lfs": False}

    def large_file(self, sha256: str, size: int) -> dict[str, Any] | None:
        """A large file that was uploaded before; git keeps its pointer. `None` where it was not."""
        if not self.path_of(sha256).exists() or self.path_of(sha256).stat().st_size != size:
            return None
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        oid = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()
        return {"oid": oid, "size": size, "sha256": sha256, "lfs": True, "pointer": len(pointer)}


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether the Hub keeps a file as a large one: by its ending, its size, or because it is not text."""
    return path.endswith(LARGE) or size > _LARGE_SIZE or b"\0" in sample


def blob(file: dict[str, Any]) -> dict[str, Any]:
    """What the Hub says about the content of a file."""
    found = {"size": file["size"], "blobId": file["oid"]}
    if file["lfs"]:
        found["lfs"] = {"sha256": file["sha256"], "size": file["size"], "pointerSize": file["pointer"]}
    return found


def listing(files: dict[str, dict[str, Any]], folder: str, recursive: bool) -> list[dict[str, Any]] | None:
    """What the Hub says is in a folder of a repository; `None` where there is no such folder."""
    inside = f"{folder}/" if folder else ""
    found: dict[str, dict[str, Any]] = {}
    for path, file in sorted(files.items()):
        if not path.startswith(inside):
            continue
        parts = path[len(inside) :].split("/")
        for depth in range(1, len(parts)):
            name = inside + "/".join(parts[:depth])
            if recursive or depth == 1:
                oid = hashlib.sha1(name.encode()).hexdigest()
                found.setdefault(name, {"type": "directory", "oid": oid, "size": 0, "path": name})
        if recursive or len(parts) == 1:
            entry = {"type": "file", "oid": file["oid"], "size": file["size"], "path": path}
            if file["lfs"]:
                entry["lfs"] = {"oid": file["sha256"], "size": file["size"], "pointerSize": file["pointer"]}
            found[path] = entry
    return None if folder and not found else list(found.values())


def metadata_problems(card: str) -> list[str]:
    """What the Hub refuses in the metadata of a card."""
    import yaml

    if not card.startswith("---"):
        return []
    try:
        data = yaml.safe_load(card.split("---\n")[1]) or {}
    except yaml.YAMLError as error:
        return [f"YAML metadata: {error}"]
    if not isinstance(data, dict):
        return ["YAML metadata is not an object"]
    problems = []
    for name in ("tags", "datasets", "base_model", "license", "pipeline_tag", "library_name"):
        values = data.get(name, [])
        values = values if isinstance(values, list) else [values]
        problems += [f'"{name}" must be a string' for value in values if not isinstance(value, str) or not value]
    for base in data.get("base_model", []) if isinstance(data.get("base_model"), list) else [data.get("base_model")]:
        if base is not None and (base.count("/") > 1 or base.startswith(("/", "."))):
            problems.append(f'"base_model" with value "{base}" is not valid. Use a model id from hf.co/models.')
    for model in data.get("model-index") or []:
        for result in model.get("results", []):
            complete = result.get("task", {}).get("type") and {"type", "name"} <= set(result.get("dataset", {}))
            scored = all({"type", "value"} <= set(metric) for metric in result.get("metrics", [{}]))
            if not (model.get("name") and complete and scored):
                problems.append('"model-index" is incomplete')
    return problems
