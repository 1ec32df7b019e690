"""A stand-in of the Hugging Face hub, on this machine: repositories are folders, and what is asked
for is noted."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
