"""`smolvlm-mlx serve`: the OpenAI-compatible server and its page, on this machine unless told
otherwise."""

import os
from collections.abc import Sequence
from socket import AF_INET, AF_INET6, IPPROTO_TCP, TCP_NODELAY, create_server, socket
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ServerError
from ..generation.options import Options
from ..inputs.settings import ImageOptions
from ..tasks.options import CHAT
from .options import DEFAULT_MODEL, Flags, Loading, Model, given

if TYPE_CHECKING:
    from ..server.app import Service
    from ..server.start import Start

LOCAL = "127.0.0.1"
CONVERSATIONS = 16  # whose keys and values are kept
GRACE_SECONDS = 8  # for answers under way, after SIGTERM

Token = Annotated[
    str | None, typer.Option(envvar="SMOLVLM_MLX_TOKEN", help="Bearer token; else a random one.")
]
AllowUrls = Annotated[
    bool, typer.Option("--allow-urls", help="Fetch pictures from the web that requests name.")
]
AllowHost = Annotated[
    list[str] | None, typer.Option(help="Another name for this server, HOST:PORT. Repeatable.")
]
# Answers that are made together share no cache of few bits.
Answers = Annotated[Options, Flags(without=("kv_bits",))]


def serve(
    context: typer.Context,
    model: Model = DEFAULT_MODEL,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = LOCAL,
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 for any.", min=0, max=65535)
    ] = 8080,
    token: Token = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Let in everyone who can reach it.")
    ] = False,
    allow_host: AllowHost = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="A web origin that may ask. Repeatable.")
    ] = None,
    allow_urls: AllowUrls = False,
    no_history: Annotated[
        bool, typer.Option("--no-history", help="Keep no conversations.")
    ] = False,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the page in the browser.")
    ] = False,
    options: Answers = CHAT,
    image_options: ImageOptions = ImageOptions(),
    loading: Loading = Loading(),
) -> None:
    """Answer over HTTP as OpenAI's API does, with a page to chat in.

    How answers are generated and pictures are cut is for requests that say nothing of it.
    """
    from ..server.start import Start

    start = Start([*given(context, options), *given(context, image_options)])
    listener = listen(host, port)
    service = load_service(
        model, loading, options, image_options, not no_history, allow_urls, start
    )
    secret = None if no_token else token or new_token()
    run_server(service, listener, secret, open_page, allow_host or (), allow_origin or ())


def load_service(
    model: str,
    loading: Loading,
    options: Options,
    image_options: ImageOptions,
    keep_history: bool,
    allow_urls: bool = False,
    start: "Start | None" = None,
) -> "Service":
    """Load a model in the engine's thread, for requests that name no files of this machine."""
    from ..generation.engine import Engine
    from ..generation.scheduler import Scheduler
    from ..server.app import Service
    from ..server.start import Start
    from ..tasks.history import History, cache_folder

    folder = cache_folder() if keep_history else None
    scheduler = Scheduler(
        lambda: Engine(*loading.load(model), cache_folder=folder, conversations=CONVERSATIONS)
    )
    processor = scheduler.start().processor
    history = History() if keep_history else None
    return Service(
        scheduler, processor, model, history, image_options, options, start or Start(), allow_urls
    )


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
        hosts: other names of this server, HOST:PORT.
        origins: of web pages that may ask.
    """
    import uvicorn

    from ..server.app import make_app
    from ..server.security import HeaderTimeoutProtocol

    port = listener.getsockname()[1]
    _show_page(port, secret, open_page)
    names = [f"{name}:{port}" for name in (LOCAL, "localhost", "[::1]")]
    config = uvicorn.Config(
        make_app(service, [*names, *hosts], secret, list(origins)),
        http=HeaderTimeoutProtocol,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        h11_max_incomplete_event_size=32 * 1024,
    )
    uvicorn.Server(config).run(sockets=[listener])


def _show_page(port: int, secret: str | None, open_page: bool) -> None:
    """Say where the page and the API are, and open the page if wanted."""
    page = f"http://{LOCAL}:{port}/" + (f"#token={secret}" if secret else "")
    print(
        f"page: {page}\nAPI:  http://{LOCAL}:{port}/v1" + (f"  token: {secret}" if secret else ""),
        flush=True,
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
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise ServerError(
            f"{host}:{port}: cannot listen there ({why}); choose another --port"
        ) from error
    # Without it answers wait 40 ms; asyncio sets it for its own sockets alone.
    listener.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    return listener
