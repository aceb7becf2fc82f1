# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""A small Hugging Face Hub on this machine, for tests and for trying out what is pushed.

    python tests/hub_server.py --port 8000 --folder /tmp/hub

then, in another terminal, with any token:

    export HF_ENDPOINT=http://127.0.0.1:8000 HF_TOKEN=anything HF_HUB_OFFLINE=0 HF_HUB_DISABLE_XET=1

It speaks the part of the Hub's HTTP interface that `huggingface_hub` needs to create repositories, to upload through
git LFS, to commit and to download. It has no Xet storage, which that library would otherwise upload large files to.
"""

import argparse
import base64
import json
import re
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


sys.path.insert(0, str(Path(__file__).parent))
from hub_store import Store, blob, is_large, listing, metadata_problems


_KINDS = {"": "model", "datasets/": "dataset", "spaces/": "space"}
_API = re.compile(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)(?:/([\w-]+)(?:/(.*))?)?")
_RESOLVE = re.compile(r"/(datasets/|spaces/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_LFS = re.compile(r"/(datasets/|spaces/)?([^/]+/[^/]+)\.git/info/lfs/(objects/batch|verify)")


@dataclass(frozen=True)
class User:
    """Whom a token belongs to, which organizations' repositories it reads and writes, and whether it writes at all."""

    name: str = "user"
    organizations: tuple[str, ...] = ()
    writes: bool = True


class Refused(Exception):
    """An answer that is an error, with the headers by which `huggingface_hub` tells errors apart."""

    def __init__(self, status: int, message: str, code: str | None = None, **body):
        super().__init__(message)
        self.status, self.code, self.body = status, code, {"error": message, **body}


class HubServer:
    """Serves the repositories in a folder while the context lasts.

    Args:
        folder (`str` or `os.PathLike`):
            Where they are kept.
        tokens (`dict[str, User]`, *optional*):
            Which tokens there are. `None`: every token is that of the user `user`.
        port (`int`, *optional*, defaults to 0):
            0: any that is free.
    """

    def __init__(self, folder, tokens: dict[str, User] | None = None, port: int = 0):
        self.store, self.tokens = Store(folder), tokens
        self.requests: list[str] = []
        self.http = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"hub": self}))
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        # Large files lie on another host than the Hub's, which the client tells them by; a name that is not guessed
        # is all that one needs to read them, as with the signed addresses of the Hub.
        self.objects = f"http://localhost:{self.http.server_port}/objects"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.http.shutdown()
        self.http.server_close()

    def environment(self, home, token: str | None = "anything") -> dict[str, str]:
        """Environment variables of a client with a cache of its own."""
        found = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        found |= {"HF_HUB_DISABLE_TELEMETRY": "1"}
        return found if token is None else {**found, "HF_TOKEN": token}

    def gate(self, name: str, *users: str):
        """Let only these users read the files of a model."""
        self.store.gate(name, users)

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """Content of the files of a model."""
        found = self.store.files(self.store.repos[f"models/{name}"], revision)
        return {path: self.store.path_of(file["sha256"]).read_bytes() for path, file in found.items()}


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    # One packet for the head and the body: otherwise each answer waits for the client's acknowledgement.
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, *arguments):
        pass

    def _handle(self):
        self.hub.requests.append(f"{self.command} {self.path}")
        try:
            body = self._body()
            parts = urlsplit(self.path)
            self.query = parse_qs(parts.query)
            self.user = self._user()
            self._route(parts.path, body)
        except Refused as refused:
            self._answer(refused.body, refused.status, error=(refused.code, str(refused)))
        except BrokenPipeError:
            pass

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _user(self) -> User | None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer":
            return None
        if self.hub.tokens is None:
            return User()
        if token not in self.hub.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.hub.tokens[token]

    def _answer(self, content: Any = None, status: int = 200, headers: dict[str, str] | None = None, error=None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}
        if error:
            code, message = error
            headers["X-Error-Message"] = message.encode("latin-1", "replace").decode("latin-1")
            headers |= {"X-Error-Code": code} if code else {}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        self.wfile.flush()

    def _route(self, path: str, body: bytes):
        if path == "/api/whoami-v2":
            return self._whoami()
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            problems = metadata_problems(json.loads(body)["content"])
            answer = {"errors": [{"message": problem} for problem in problems], "warnings": []}
            return self._answer(answer, 400 if problems else 200)
        if path.startswith("/objects/"):
            return self._object(path.removeprefix("/objects/"), body)
        if match := _LFS.fullmatch(path):
            repo = self._repo(_KINDS[match[1] or ""], match[2], write=True)
            return self._lfs(repo, match[3], json.loads(body))
        if match := _RESOLVE.fullmatch(path):
            repo = self._repo(_KINDS[match[1] or ""], match[2], content=True)
            return self._resolve(repo, unquote(match[3]), unquote(match[4]))
        if match := _API.fullmatch(path):
            return self._repository(match[1].removesuffix("s"), match[2], match[3] or "info", match[4] or "", body)
        raise Refused(404, "Sorry, we can't find the page you are looking for.")

    # Who may do what

    def _writes_to(self, name: str) -> bool:
        return self.user is not None and self.user.writes and name.split("/")[0] in self._namespaces()

    def _namespaces(self) -> tuple[str, ...]:
        return () if self.user is None else (self.user.name, *self.user.organizations)

    def _repo(self, kind: str, name: str, write: bool = False, content: bool = False) -> dict[str, Any]:
        """A repository, if the user may read it, its files, or write to it."""
        repo = self.hub.store.repos.get(f"{kind}s/{name}")
        own = name.split("/")[0] in self._namespaces()
        if repo is None or (repo["private"] and not own):
            # Strangers are not told which repositories there are.
            status, message = (404, "Repository not found") if self.user else (401, "Invalid username or password.")
            raise Refused(status, message, "RepoNotFound")
        if write and not self._writes_to(name):
            raise Refused(403 if self.user else 401, "Authorization error." if self.user else "Unauthorized")
        if content and repo["gated"] is not None and not own:
            if self.user is None:
                message = f"Access to {kind} {name} is restricted. You must have access to it and be authenticated to "
                raise Refused(401, f"{message}access it. Please log in.", "GatedRepo")
            if self.user.name not in repo["gated"]:
                message = f"Access to {kind} {name} is restricted and you are not in the authorized list. Visit "
                raise Refused(403, f"{message}https://huggingface.co/{name} to ask for access.", "GatedRepo")
        return repo

    def _whoami(self):
        if self.user is None:
            raise Refused(401, "Invalid username or password.")
        organizations = [{"type": "org", "name": name, "roleInOrg": "write"} for name in self.user.organizations]
        role = {"displayName": "token", "role": "write" if self.user.writes else "read"}
        answer = {"type": "user", "id": self.user.name, "name": self.user.name, "fullname": self.user.name}
        self._answer({**answer, "orgs": organizations, "auth": {"type": "access_token", "accessToken": role}})

    # Repositories

    def _create(self, wanted: dict[str, Any]):
        if self.user is None:
            raise Refused(401, "Invalid username or password.")
        kind = wanted.get("type") or "model"
        namespace = wanted.get("organization") or self.user.name
        name = f"{namespace}/{wanted['name']}"
        if not self._writes_to(name):
            raise Refused(403, f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"')
        url = f"{self.hub.url}/{'' if kind == 'model' else f'{kind}s/'}{name}"
        with self.hub.store.lock:
            if f"{kind}s/{name}" in self.hub.store.repos:
                raise Refused(409, f"You already created this {kind} repo: {name}", url=url)
            self.hub.store.create(kind, name, wanted.get("visibility") == "private")
        self._answer({"url": url, "name": name, "id": name})

    def _repository(self, kind: str, name: str, what: str, rest: str, body: bytes):
        rest = unquote(rest)
        if what == "auth-check":
            self._repo(kind, name, write=rest == "write", content=True)
            return self._answer({})
        if self.command == "POST" and what in ("preupload", "commit", "branch"):
            repo = self._repo(kind, name, write=True)
            if what == "branch":
                return self._branch(repo, rest, json.loads(body or b"{}"))
            if rest not in repo["branches"]:
                raise Refused(404, f"Invalid rev id: {rest}", "RevisionNotFound")
            if what == "commit" and "create_pr" in self.query:
                raise Refused(501, "Pull requests are not part of this server.")
            return self._preupload(repo, rest, body) if what == "preupload" else self._commit(repo, rest, body)
        repo = self._repo(kind, name, content=what == "tree")
        if what in ("info", "revision"):
            return self._info(repo, rest or "main")
        if what == "tree":
            revision, _, folder = rest.partition("/")
            recursive = self.query.get("recursive", [""])[0].lower() in ("true", "1")
            found = listing(self._files(repo, revision), folder, recursive)
            if found is None:
                raise Refused(404, f"{folder} does not exist on {revision!r}", "EntryNotFound")
            return self._answer(found)
        if what == "refs":
            refs = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": oid} for b, oid in repo["branches"].items()]
            return self._answer({"branches": refs, "converts": [], "tags": []})
        if what == "commits":
            self._files(repo, rest)
            return self._answer(self.hub.store.history(repo, rest))
        if what.startswith("xet-"):
            raise Refused(400, "This server has no Xet storage. Set HF_HUB_DISABLE_XET=1.")
        raise Refused(404, "Sorry, we can't find the page you are looking for.")

    def _files(self, repo: dict[str, Any], revision: str) -> dict[str, dict[str, Any]]:
        files = self.hub.store.files(repo, revision)
        if files is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return files

    def _info(self, repo: dict[str, Any], revision: str):
        files = self._files(repo, revision)
        sha = repo["branches"].get(revision, revision)
        siblings = [{"rfilename": path} for path in sorted(files)]
        if "blobs" in self.query:
            siblings = [{**entry, **blob(files[entry["rfilename"]])} for entry in siblings]
        answer = {"_id": sha[:24], "id": repo["id"], "author": repo["id"].split("/")[0], "sha": sha}
        answer |= {"private": repo["private"], "gated": False if repo["gated"] is None else "manual"}
        answer |= {"disabled": False, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings}
        self._answer({**answer, "lastModified": repo["commits"][sha]["date"]})

    def _branch(self, repo: dict[str, Any], branch: str, wanted: dict[str, Any]):
        start = wanted.get("startingPoint") or "main"
        self._files(repo, start)
        if branch in repo["branches"]:
            raise Refused(409, "Reference already exists")
        repo["branches"][branch] = repo["branches"].get(start, start)
        self._answer({})

    # Upload

    def _preupload(self, repo: dict[str, Any], branch: str, body: bytes):
        there, answer = self._files(repo, branch), []
        for file in json.loads(body)["files"]:
            large = is_large(file["path"], file["size"], base64.b64decode(file["sample"]))
            entry = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if old := there.get(file["path"]):
                entry["oid"] = old["sha256"] if old["lfs"] else old["oid"]
            answer.append(entry)
        self._answer({"files": answer})

    def _lfs(self, repo: dict[str, Any], what: str, wanted: dict[str, Any]):
        if what == "verify":
            if self.hub.store.large_file(wanted["oid"], wanted["size"]) is None:
                raise Refused(404, f"Object {wanted['oid']} was not uploaded whole")
            return self._answer({})
        objects = []
        for item in wanted["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if self.hub.store.large_file(item["oid"], item["size"]) is None:
                verify = f"{self.hub.url}/{repo['id']}.git/info/lfs/verify"
                upload = {"href": f"{self.hub.objects}/{item['oid']}"}
                entry["actions"] = {"upload": upload, "verify": {"href": verify}}
            objects.append(entry)
        self._answer({"transfer": "basic", "objects": objects})

    def _commit(self, repo: dict[str, Any], branch: str, body: bytes):
        store, title, added, deleted = self.hub.store, "", {}, set()
        there = self._files(repo, branch)
        for line in body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                title, parent = value["summary"], value.get("parentCommit")
                if parent is not None and parent != repo["branches"][branch]:
                    raise Refused(412, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                added[value["path"]] = store.add_file(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                added[value["path"]] = store.large_file(value["oid"], value["size"])
                if added[value["path"]] is None:
                    raise Refused(400, f"LFS pointer of {value['path']} points to no object")
            elif key == "deletedFile":
                if value["path"] not in there:
                    raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
                deleted.add(value["path"])
            elif key == "deletedFolder":
                deleted |= {path for path in there if path.startswith(f"{value['path'].rstrip('/')}/")}
        oid = store.commit(repo, branch, title, added, deleted)
        url = f"{self.hub.url}/{repo['id']}/commit/{oid}"
        self._answer({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    # Download

    def _resolve(self, repo: dict[str, Any], revision: str, path: str):
        files = self._files(repo, revision)
        commit = {"X-Repo-Commit": repo["branches"].get(revision, revision)}
        file = files.get(path)
        if file is None:
            answer = {"Content-Type": "text/plain", **commit}
            return self._answer(b"Entry not found", 404, answer, ("EntryNotFound", "Entry not found"))
        if file["lfs"]:
            linked = {"X-Linked-ETag": f'"{file["sha256"]}"', "X-Linked-Size": str(file["size"])}
            location = {"Location": f"{self.hub.objects}/{file['sha256']}"}
            return self._answer(b"", 302, {**commit, **linked, **location})
        self._send(file["sha256"], {**commit, "ETag": f'"{file["oid"]}"'})

    def _object(self, sha256: str, body: bytes):
        if self.command == "PUT":
            if self.hub.store.add_object(body) != sha256:
                raise Refused(400, "The content does not have the SHA-256 that was announced")
            return self._answer(b"", headers={"ETag": f'"{sha256}"'})
        if not re.fullmatch("[0-9a-f]{64}", sha256) or not self.hub.store.path_of(sha256).exists():
            raise Refused(404, "No such object")
        self._send(sha256, {"ETag": f'"{sha256}"'})

    def _send(self, sha256: str, headers: dict[str, str]):
        data = self.hub.store.path_of(sha256).read_bytes()
        headers = {**headers, "Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, end = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
            if start >= len(data):
                return self._answer(b"", 416, {"Content-Range": f"bytes */{len(data)}"})
            return self._answer(
                data[start : end + 1], 206, {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"}
            )
        self._answer(data, 200, headers)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8000, help="Port on 127.0.0.1.")
    parser.add_argument("--folder", required=True, help="Where the repositories are kept.")
    args = parser.parse_args()
    server = HubServer(args.folder, port=args.port)
    print(f"export HF_ENDPOINT={server.url} HF_TOKEN=anything HF_HUB_OFFLINE=0 HF_HUB_DISABLE_XET=1", flush=True)
    try:
        server.http.serve_forever()
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    main()
