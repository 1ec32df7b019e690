"""`smolvlm-mlx serve`: the OpenAI-compatible server and its page, on this machine unless told otherwise."""

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ServerError
from .options import DEFAULT_MODEL, INTERRUPTED, Adapter, Dtype, LongestEdge, MaxTiles, Model, Revision, Split

if TYPE_CHECKING:
    from socket import socket

    from starlette.applications import Starlette

CONVERSATIONS = 16  # whose keys and values are kept
GRACE_SECONDS = 8  # for answers under way, after SIGTERM


def serve(
    model: Model = DEFAULT_MODEL,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any.", min=0, max=65535)] = 8080,
    token: Annotated[
        str | None, typer.Option(envvar="SMOLVLM_MLX_TOKEN", help="Bearer token; else a random one.")
    ] = None,
    no_token: Annotated[bool, typer.Option("--no-token", help="Let in everyone who can reach it.")] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Another name for this server, HOST:PORT. Repeatable.")
    ] = None,
    allow_origin: Annotated[list[str] | None, typer.Option(help="A web origin that may ask. Repeatable.")] = None,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch pictures from the web that requests name.")
    ] = False,
    no_history: Annotated[bool, typer.Option("--no-history", help="Keep no conversations.")] = False,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    longest_edge: LongestEdge = None,
    split: Split = None,
    max_tiles: MaxTiles = None,
    adapter: Adapter = None,
    dtype: Dtype = None,
    revision: Revision = None,
) -> None:
    """Answer over HTTP as OpenAI's API does, with a page to chat in."""
    from ..generation.engine import Engine
    from ..generation.scheduler import Scheduler
    from ..inputs.tiles import ImageOptions
    from ..server.app import Service, make_app, no_files
    from ..tasks.history import History, cache_folder

    def load_all() -> Engine:
        from ..checkpoint.reader import load

        loaded = load(model, dtype, revision, adapter=adapter)
        return Engine(*loaded, cache_folder=None if no_history else cache_folder(), conversations=CONVERSATIONS)

    listener = _listen(host, port)
    port = listener.getsockname()[1]
    scheduler = Scheduler(load_all)
    processor = scheduler.start().processor
    history = None if no_history else History()
    image_options = ImageOptions(longest_edge, split, max_tiles)
    service = Service(scheduler, processor, model, history, image_options, no_files(allow_urls))
    secret = None if no_token else token or _new_token()
    names = [f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")] + (allow_host or [])
    page = f"http://127.0.0.1:{port}/" + (f"#token={secret}" if secret else "")
    print(f"page: {page}\nAPI:  http://127.0.0.1:{port}/v1" + (f"  token: {secret}" if secret else ""), flush=True)
    if open_page:
        import webbrowser

        webbrowser.open(page)
    _run(make_app(service, names, secret, allow_origin), listener)


def _new_token() -> str:
    import secrets

    return secrets.token_urlsafe(24)


def _listen(host: str, port: int) -> "socket":
    from socket import AF_INET, AF_INET6, IPPROTO_TCP, TCP_NODELAY, create_server

    try:
        listener = create_server((host, port), family=AF_INET6 if ":" in host else AF_INET)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise ServerError(f"{host}:{port}: cannot listen there ({why}); choose another --port") from error
    listener.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)  # or answers wait 40 ms; asyncio sets it for its own sockets alone
    return listener


def _run(app: "Starlette", listener: "socket") -> None:
    import uvicorn

    from ..server.security import PatientProtocol

    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        h11_max_incomplete_event_size=32 * 1024,
    )
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        print(file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
