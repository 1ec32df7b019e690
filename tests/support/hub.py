"""A stand-in of the Hugging Face hub, on this machine: repositories are folders, and what is asked
for is noted."""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving(repos: Mapping[str, Path], asked: list[str]) -> Iterator[str]:
    """Serve folders as repositories of these ids; yields the address for HF_ENDPOINT. The paths of
    files that are fetched are added to `asked`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, with_body: bool) -> None:
            path = urlsplit(self.path).path
            for id, folder in repos.items():
                if path.startswith(f"/api/models/{id}/tree/"):
                    self._send(json.dumps(_tree(folder)).encode(), {}, with_body)
                    return
                if f"{path}/".startswith(f"/api/models/{id}/"):
                    files = [{"rfilename": entry["path"]} for entry in _tree(folder)]
                    found = {"id": id, "sha": COMMIT, "siblings": files}
                    self._send(json.dumps(found).encode(), {}, with_body)
                    return
                if path.startswith(f"/{id}/resolve/"):
                    name = path.removeprefix(f"/{id}/resolve/").partition("/")[2]
                    data = (folder / name).read_bytes()
                    if with_body:
                        asked.append(name)
                    headers = {"etag": f'"{_digest(data)}"', "x-repo-commit": COMMIT}
                    self._send(data, headers, with_body)
                    return
            self.send_response(404)
            self.send_header("x-error-code", "RepoNotFound")
            self.send_header("content-length", "0")
            self.end_headers()

        def _send(self, data: bytes, headers: Mapping[str, str], with_body: bool) -> None:
            self.send_response(200)
            for name, value in {**headers, "content-length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _tree(folder: Path) -> list[dict[str, object]]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [
        {
            "type": "file",
            "path": path.relative_to(folder).as_posix(),
            "size": path.stat().st_size,
            "oid": _digest(path.read_bytes()),
        }
        for path in paths
    ]


def _digest(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


# ---- uploads


@dataclass
class Uploads:
    """A stand-in that is written to. Weights come apart, as they do to the hub (LFS).

    Attributes:
        who: what it says of whoever is logged in; None for a token that it does not know.
        repos: by id, whether it is private, and its files.
        asked: method and path of each request.
        failing: (part of a path, status) that is answered so.
    """

    who: dict[str, object] | None
    repos: dict[str, tuple[bool, dict[str, bytes]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    failing: tuple[str, int] | None = None
    apart: dict[str, bytes] = field(default_factory=dict)  # by SHA-256, before they are committed
    address: str = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, object]:
        """Return the status and what is answered."""
        self.asked.append(f"{method} {path}")
        if self.failing and self.failing[0] in path:
            return self.failing[1], {"error": "no"}
        if path == "/api/whoami-v2":
            return (401, {"error": "no"}) if self.who is None else (200, self.who)
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            asked = json.loads(body)
            id = f"{asked['organization']}/{asked['name']}"
            if id in self.repos:
                return 409, {"error": "there", "url": f"{self.address}/{id}"}
            self.repos[id] = (asked["visibility"] == "private", {})
            return 200, {"url": f"{self.address}/{id}"}
        if path.startswith("/apart/"):
            self.apart[path.removeprefix("/apart/")] = body
            return 200, {}
        for id in self.repos:
            if path == f"/{id}.git/info/lfs/objects/batch":
                return 200, {"objects": [self._place(each) for each in json.loads(body)["objects"]]}
            if path.startswith(f"/api/models/{id}"):
                return self._answer(id, path.removeprefix(f"/api/models/{id}"), body)
        return 404, {"error": "none"}

    def _place(self, each: dict[str, object]) -> dict[str, object]:
        return {**each, "actions": {"upload": {"href": f"{self.address}/apart/{each['oid']}"}}}

    def _answer(self, id: str, what: str, body: bytes) -> tuple[int, object]:
        private, files = self.repos[id]
        if what == "":
            names = [{"rfilename": name} for name in files]
            return 200, {"id": id, "private": private, "siblings": names}
        if what == "/preupload/main":
            modes = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for each in json.loads(body)["files"]
            ]
            return 200, {"files": modes}
        for line in map(json.loads, body.splitlines()):  # a commit
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.apart[value["oid"]]
        return 200, {"commitUrl": f"{self.address}/{id}/commit/{COMMIT}", "commitOid": COMMIT}


@contextmanager
def receiving(uploads: Uploads) -> Iterator[str]:
    """Serve a stand-in that is written to; yields the address for HF_ENDPOINT."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            status, told = uploads.answer(self.command, urlsplit(self.path).path, body)
            data = json.dumps(told).encode()
            self.send_response(status)
            if status == 404:
                self.send_header("x-error-code", "RepoNotFound")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self.do_POST()

        def do_PUT(self) -> None:
            self.do_POST()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    uploads.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield uploads.address
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
