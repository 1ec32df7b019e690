"""`smolvlm-mlx serve`: the OpenAI-compatible server and its page, on this machine unless told
otherwise."""

import os
from collections.abc import Sequence
from socket import AF_INET, AF_INET6, IPPROTO_TCP, TCP_NODELAY, create_server, gaierror, socket
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ServerError, quote, reason
from ..files import expanded
from ..generation.options import Options
from ..inputs.settings import ImageOptions
from ..tasks.options import CHAT
from .options import DEFAULT_MODEL, Flags, Loading, Model, given, typed

if TYPE_CHECKING:
    from ..server.app import Service
    from ..server.start import Start

LOCAL = "127.0.0.1"
CONVERSATIONS = 16  # whose keys and values are kept
GRACE_SECONDS = 8  # for answers under way, after SIGTERM

Port = Annotated[int, typer.Option(help="Port to listen on; 0 for any.", min=0, max=65535)]
Token = Annotated[
    str | None, typer.Option(envvar="SMOLVLM_MLX_TOKEN", help="Bearer token; else a random one.")
]
NoToken = Annotated[bool, typer.Option("--no-token", help="Let in everyone who can reach it.")]
AllowUrls = Annotated[
    bool, typer.Option("--allow-urls", help="Fetch pictures from the web that requests name.")
]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(help="Another name for this server, HOST or HOST:PORT. Repeatable."),
]
Alias = Annotated[
    list[str] | None,
    typer.Option("--alias", help="Another name of the model, listed with its own. Repeatable."),
]
AllowOrigin = Annotated[
    list[str] | None, typer.Option(help="A web origin that may ask. Repeatable.")
]
NoHistory = Annotated[bool, typer.Option("--no-history", help="Keep no conversations.")]
OpenPage = Annotated[bool, typer.Option("--open", help="Open the page in the browser.")]
# Answers that are made together share no cache of few bits.
Answers = Annotated[Options, Flags(without=("kv_bits",))]


def serve(
    context: typer.Context,
    model: Model = DEFAULT_MODEL,
    alias: Alias = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = LOCAL,
    port: Port = 8080,
    token: Token = None,
    no_token: NoToken = False,
    allow_host: AllowHost = None,
    allow_origin: AllowOrigin = None,
    allow_urls: AllowUrls = False,
    no_history: NoHistory = False,
    open_page: OpenPage = False,
    options: Answers = CHAT,
    image_options: ImageOptions = ImageOptions(),
    loading: Loading = Loading(),
) -> None:
    """Answer over HTTP as OpenAI's API does, with a page to chat in.

    How answers are generated and pictures are cut is for requests that say nothing of it.
    """
    from ..server.start import Start

    if no_token and typed(context, "token"):
        raise ServerError("--token and --no-token; give one of them")
    if token == "":
        raise ServerError("--token is empty; leave it out for a random one")
    origins = [_origin(origin) for origin in allow_origin or []]
    start = Start([*given(context, options), *given(context, image_options)])
    settings = (options, image_options, start)
    secret = None if no_token else token or new_token()
    with listen(host, port) as listener:
        service = load_service(model, loading, *settings, not no_history, allow_urls, alias or ())
        run_server(service, listener, secret, open_page, allow_host or (), origins)


def load_service(
    model: str,
    loading: Loading,
    options: Options,
    image_options: ImageOptions,
    start: "Start",
    keep_history: bool,
    allow_urls: bool = False,
    aliases: Sequence[str] = (),
) -> "Service":
    """Load a model in the engine's thread, for requests that name no files of this machine."""
    from ..generation.engine import Engine
    from ..generation.scheduler import Scheduler
    from ..server.app import Service
    from ..tasks.history import History, cache_folder

    folder = cache_folder() if keep_history else None
    scheduler = Scheduler(
        lambda: Engine(*loading.load(model), cache_folder=folder, conversations=CONVERSATIONS)
    )
    processor = scheduler.start().processor
    history = History() if keep_history else None
    return Service(
        scheduler,
        processor,
        model_id(model),
        history,
        image_options,
        options,
        start,
        allow_urls,
        aliases,
    )


def model_id(model: str) -> str:
    """Return the name that a model has over the API: of a folder its last part, without the path
    to it; a hub id as it is."""
    folder = expanded(model)
    return folder.resolve().name if folder.is_dir() else model


def run_server(
    service: "Service",
    listener: socket,
    secret: str | None,
    open_page: bool,
    hosts: Sequence[str] = (),
    origins: Sequence[str] = (),
) -> None:
    """Say where the page and the API are, and answer until Ctrl-C or SIGTERM.

    Args:
        secret: the token that requests need; None lets everyone in.
        hosts: other names of this server, HOST:PORT; its own port where there is none.
        origins: of web pages that may ask.
    """
    import uvicorn

    from ..server.app import make_app
    from ..server.security import HeaderTimeoutProtocol

    address, port = _address(listener)
    _show_page(f"http://{address}:{port}", secret, open_page)
    names = [f"{name}:{port}" for name in (LOCAL, "localhost", "[::1]", address)]
    names += [name if ":" in name else f"{name}:{port}" for name in hosts]
    config = uvicorn.Config(
        make_app(service, names, secret, list(origins)),
        http=HeaderTimeoutProtocol,
        ws="none",
        log_level="warning",
        access_log=False,
        use_colors=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        h11_max_incomplete_event_size=32 * 1024,
    )
    uvicorn.Server(config).run(sockets=[listener])


def _address(listener: socket) -> tuple[str, int]:
    """Where a browser on this machine finds what listens, and its port."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": LOCAL, "::": "::1"}.get(host, host)  # of all addresses the local one
    return f"[{host}]" if ":" in host else host, port


def _origin(origin: str) -> str:
    """An origin as browsers send it; that of a page in a file is null."""
    if origin == "null":
        return origin
    scheme, _, host = origin.rstrip("/").partition("://")
    if not scheme or not host or "/" in host:
        raise ServerError(
            f"--allow-origin {quote(origin)}: give one such as https://friend.example"
        )
    return f"{scheme}://{host}".lower()


def _show_page(address: str, secret: str | None, open_page: bool) -> None:
    """Say where the page and the API are, and open the page if wanted."""
    page = f"{address}/" + (f"#token={secret}" if secret else "")
    print(
        f"page: {page}\nAPI:  {address}/v1" + (f"  token: {secret}" if secret else ""), flush=True
    )
    if open_page:
        import webbrowser

        webbrowser.open(page)


def new_token() -> str:
    import secrets

    return secrets.token_urlsafe(24)


def listen(host: str, port: int) -> socket:
    try:
        listener = create_server((host, port), family=AF_INET6 if ":" in host else AF_INET)
    except (OSError, TypeError) as error:  # the latter for a name that is no UTF-8
        # A name that is not found has a number of its own.
        number = None if isinstance(error, gaierror | TypeError) else error.errno
        why = os.strerror(number) if number else reason(error)
        raise ServerError(
            f"{host}:{port}: cannot listen there ({why}); choose another --host or --port"
        ) from error
    # Without it answers wait 40 ms; asyncio sets it for its own sockets alone.
    listener.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    return listener
