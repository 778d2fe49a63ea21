"""A small imitation of a model hub, and a web server that misbehaves on demand, both on 127.0.0.1.

The hub answers what the library `huggingface_hub` asks to make a repository, commit to it and read it: regular files in
the commit, large ones by LFS, and these read by a redirect.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Repository:
    """Commits, the newest last: id and files."""

    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def files_at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


class _Server:
    """A server in a thread; `url` leads to it."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self.log: list[tuple[str, str, dict[str, str]]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.owner = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def owner(self) -> Any:
        owner = self.server.owner  # type: ignore[attr-defined]
        owner.log.append((self.command, self.path, dict(self.headers)))
        return owner

    def log_message(self, *_: Any) -> None:
        pass

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, content: bytes | dict[str, Any], status: int = 200, **headers: str) -> None:
        data = json.dumps(content).encode() if isinstance(content, dict) else content
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


class _HubHandler(_Handler):
    def do_GET(self) -> None:
        hub: HubServer = self.owner
        path = self.path.partition("?")[0].strip("/").split("/")
        if path[0] == "lfs":
            return self.answer(hub.blobs[path[1]])
        if path[:2] == ["api", "models"]:
            repo, revision = "/".join(path[2:4]), path[5] if len(path) > 5 else "main"
        else:
            repo, revision = "/".join(path[:2]), path[3]
        commit = repo in hub.repositories and hub.repositories[repo].files_at(revision)
        if repo not in hub.repositories or (hub.repositories[repo].private and not self.is_known(hub)):
            return self.answer({"error": "not found"}, 401, X_Error_Code="RepoNotFound")
        if not commit:
            return self.answer({"error": "not found"}, 404, X_Error_Code="RevisionNotFound")
        if path[0] == "api":
            names = [{"rfilename": name} for name in commit[1]]
            return self.answer({"id": repo, "sha": commit[0], "siblings": names, "private": False})
        return self._send_file(hub, commit[1], path[4])

    def _send_file(self, hub: HubServer, files: dict[str, bytes], name: str) -> None:
        if name not in files:
            return self.answer({"error": "not found"}, 404, X_Error_Code="EntryNotFound")
        digest = hashlib.sha256(files[name]).hexdigest()
        if digest in hub.blobs:
            return self.answer(b"", 302, Location=f"{hub.url}/lfs/{digest}")
        return self.answer(files[name])

    def is_known(self, hub: HubServer) -> bool:
        return self.headers.get("Authorization") == f"Bearer {hub.token}"

    def do_PUT(self) -> None:
        hub: HubServer = self.owner
        data = self.body()
        hub.blobs[hashlib.sha256(data).hexdigest()] = data
        self.answer(b"")

    def do_POST(self) -> None:
        hub: HubServer = self.owner
        path, data = self.path.partition("?")[0].strip("/").split("/"), self.body()
        if path[-1] == "validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if not self.is_known(hub):
            return self.answer({"error": "who are you?"}, 401)
        if path == ["api", "repos", "create"]:
            asked = json.loads(data)
            repo = f"{asked.get('organization') or 'lab'}/{asked['name']}"
            first = ("0" * 40, {".gitattributes": b""})
            hub.repositories.setdefault(repo, Repository(asked["private"], [first]))
            return self.answer({"url": f"{hub.url}/{repo}", "name": repo})
        if path[-1] == "batch":
            objects = json.loads(data)["objects"]
            actions = {"upload": {"href": f"{hub.url}/upload"}}
            return self.answer({"transfer": "basic", "objects": [{**item, "actions": actions} for item in objects]})
        repo = "/".join(path[2:4])
        if path[4] == "preupload":
            modes = [
                {
                    "path": item["path"],
                    "uploadMode": "lfs" if item["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for item in json.loads(data)["files"]
            ]
            return self.answer({"files": modes})
        return self._commit(hub, repo, [json.loads(line) for line in data.splitlines()])

    def _commit(self, hub: HubServer, repo: str, lines: list[dict[str, Any]]) -> None:
        parent, files = hub.repositories[repo].commits[-1]
        asked = lines[0]["value"].get("parentCommit", parent)
        if asked != parent:
            return self.answer({"error": "A commit has happened since. Please refresh and try again."}, 412)
        files = dict(files)
        for line in lines[1:]:
            value = line["value"]
            is_large = line["key"] == "lfsFile"
            files[value["path"]] = hub.blobs[value["oid"]] if is_large else base64.b64decode(value["content"])
        commit = hashlib.sha1(repr(lines).encode(), usedforsecurity=False).hexdigest()
        hub.repositories[repo].commits.append((commit, files))
        return self.answer({"commitUrl": f"{hub.url}/{repo}/commit/{commit}", "commitOid": commit})


class HubServer(_Server):
    """Repositories by OWNER/NAME in memory; whoever writes needs `token`."""

    def __init__(self, token: str = "hf_secret") -> None:
        self.token = token
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        super().__init__(_HubHandler)


Fault = Callable[[_Handler, bytes], None]


class _WebHandler(_Handler):
    def do_GET(self) -> None:
        web: WebServer = self.owner
        name = self.path.partition("?")[0].lstrip("/")
        content = web.files.get(name)
        fault = web.faults.get(name.rpartition("/")[2])
        if fault:
            return fault(self, content or b"")
        if content is None:
            return self.answer(b"", 404)
        begun = self.headers.get("Range", "").removeprefix("bytes=").rstrip("-")
        if not begun:
            return self.answer(content)
        span = f"bytes {begun}-{len(content) - 1}/{len(content)}"
        return self.answer(content[int(begun) :], 206, Content_Range=span)


class WebServer(_Server):
    """Files by path; a fault by a file's name answers in its place."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, Fault] = {}
        super().__init__(_WebHandler)


@contextmanager
def serving(server: Any) -> Iterator[Any]:
    try:
        yield server
    finally:
        server.close()
