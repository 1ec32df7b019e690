"""The page's files: those that are in its folder now, each at its own path, and nothing else."""

from pathlib import Path

from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Route

FOLDER = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
# All scripts and styles are files of ours: what an answer or a picture's name says is never run.
# Browsers read it of documents alone.
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "font-src 'self'; img-src 'self' data: blob:; media-src data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}
# Browsers ask documents and workers for it; of other files it would be a third of what is sent.
WITH_POLICY = (".html", ".svg", "resize.js")
OWN_PATHS = {"index.html": "/", "icon.svg": "/favicon.ico"}  # the others are below /page


def _path(file: Path) -> str:
    name = file.relative_to(FOLDER).as_posix()
    return OWN_PATHS.get(name, f"/page/{name}")


ASSETS = {_path(file): file for file in sorted(FOLDER.rglob("*")) if file.suffix in TYPES}


async def _serve(request: Request) -> FileResponse:
    file = ASSETS[request.scope["path"]]
    headers = HEADERS if file.name.endswith(WITH_POLICY) else None
    return FileResponse(file, headers=headers, media_type=TYPES[file.suffix])


async def _serve_page(request: Request) -> FileResponse:
    return FileResponse(FOLDER / "index.html", headers=HEADERS, media_type=TYPES[".html"])


# No request can name another file. At the address of a conversation is the page, which opens it.
TALKS = "/c/"
_SERVED = {**dict.fromkeys(ASSETS, _serve), f"{TALKS}{{id}}": _serve_page}
ASSET_ROUTES = [
    Route(path, serve, middleware=[Middleware(GZipMiddleware)]) for path, serve in _SERVED.items()
]
