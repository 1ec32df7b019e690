"""`smolvlm-mlx serve`: the OpenAI-compatible server and its page, on this machine unless told
otherwise."""

import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from errno import EADDRINUSE
from ipaddress import IPv6Address, ip_address
from itertools import islice
from socket import (
    AF_INET,
    AI_PASSIVE,
    IPPROTO_TCP,
    SOCK_STREAM,
    TCP_NODELAY,
    create_server,
    gaierror,
    getaddrinfo,
    socket,
)
from types import FrameType
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote as percent_encoded

import typer

from ..errors import ServerError, quote
from ..files import expanded
from ..generation.options import Options
from ..inputs.settings import ImageOptions
from ..tasks.options import CHAT, SERVE
from .options import DEFAULT_MODEL, INTERRUPTED, Flags, Loading, Model, given, typed
from .token import checked_token, kept_token, random_token

if TYPE_CHECKING:
    from ..server.app import Service
    from ..server.start import Start

LOCAL = "127.0.0.1"
PAGE_PORT = 7665  # of `chat --web`, where bookmarks find it: SMOL on the keys of a phone
PAGE_PORTS = 20  # that are tried, from that one on
CONVERSATIONS = 16  # whose keys and values are kept
SHOW_CURSOR = b"\x1b[?25h"  # which a bar hides
GRACE_SECONDS = 6  # for answers under way, after SIGTERM
QUIET = {"log_level": "warning", "access_log": False, "use_colors": False, "server_header": False}
HISTORY_SECONDS = 3  # to wait for another process that writes to it

Port = Annotated[int, typer.Option(help="Port to listen on; 0 for any.", min=0, max=65535)]
Token = Annotated[
    str | None,
    typer.Option(
        envvar="SMOLVLM_MLX_TOKEN",
        help="Bearer token of this run; else the one that is kept. Other users of this machine see "
        "it in the list of processes, but not in the environment.",
    ),
]
NewToken = Annotated[
    bool,
    typer.Option("--new-token", help="Keep another token; browsers have to be let in again."),
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


class PortError(ServerError):
    """Another program listens there."""


def serve(
    context: typer.Context,
    model: Model = DEFAULT_MODEL,
    alias: Alias = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = LOCAL,
    port: Port = 8080,
    token: Token = None,
    new_token: NewToken = False,
    no_token: NoToken = False,
    allow_host: AllowHost = None,
    allow_origin: AllowOrigin = None,
    allow_urls: AllowUrls = False,
    no_history: NoHistory = False,
    open_page: OpenPage = False,
    options: Answers = SERVE,
    image_options: ImageOptions = ImageOptions(),
    loading: Loading = Loading(),
) -> None:
    """Answer over HTTP as OpenAI's API does, with a page to chat in.

    How answers are generated and pictures are cut is for requests that say nothing of it. The page
    ends loops and asks with the settings of `chat`, but for those that are typed here.
    """
    flags = typed(context, "token", "new_token", "no_token")
    if "," in flags:
        raise ServerError(f"{flags.replace(', ', ' and ')}; give one of them")
    origins = [_origin(origin) for origin in allow_origin or []]
    own = None if token is None or new_token or no_token else checked_token(token)
    with leaving_at_once(), listen(host, port) as listener:
        from ..server.start import Start

        secret = None if no_token else own or kept_token(new=new_token)
        said = given(context, options)
        start = Start([*said, *given(context, image_options)], options=replace(CHAT, **said))
        settings = (options, image_options, start)
        service = load_service(model, loading, *settings, not no_history, allow_urls, alias or ())
        run_server(service, listener, secret, open_page, host, allow_host or (), origins)


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Ctrl-C and SIGTERM within end the process where it is: nothing has to be finished, and in
    Python's own end MLX's thread would abort while it computes."""
    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave(number: int, frame: FrameType | None) -> None:
    """End the process as a signal wants it: 130 after Ctrl-C, 0 after SIGTERM."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, RuntimeError, SystemExit):  # closed, being written to
            stream.flush()
            if stream.isatty() and os.environ.get("TERM") != "dumb":
                os.write(stream.fileno(), SHOW_CURSOR)
    if number == signal.SIGINT:
        with suppress(OSError, ValueError):
            os.write(sys.stderr.fileno(), b"\n")
    os._exit(INTERRUPTED if number == signal.SIGINT else 0)


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
    engine = scheduler.start()
    history = History(timeout=HISTORY_SECONDS) if keep_history else None
    return Service(
        scheduler,
        engine.processor,
        model_id(model),
        history,
        image_options,
        options,
        start,
        allow_urls,
        aliases,
        parameters=engine.model.config.parameters,
        weight_bytes=engine.weight_bytes,
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
    host: str = LOCAL,
    hosts: Sequence[str] = (),
    origins: Sequence[str] = (),
) -> None:
    """Say where the page and the API are, and answer until Ctrl-C or SIGTERM end the process.

    Args:
        secret: the token that requests need; None lets everyone in.
        host: where it listens; `hosts` are its other names, HOST or HOST:PORT.
        origins: of web pages that may ask.

    Raises ServerError: the engine has failed.
    """
    import uvicorn

    from ..server.app import make_app
    from ..server.closing import Server
    from ..server.connections import options

    address, port = _address(listener)
    pages = [f"http://{address}:{port}", *_urls(hosts, port)]
    _show_page(pages, secret)
    ticket = random_token() if secret and open_page else None
    if open_page:
        _open_page(pages[0], ticket)
    names = [*host_headers([LOCAL, "localhost", "::1", address, host, *hosts], port)]
    config = uvicorn.Config(
        make_app(service, names, secret, list(origins), ticket),
        timeout_graceful_shutdown=1,  # after what `Server` waits for
        **{**QUIET, **options()},
    )
    # At its end uvicorn raises the signal again that it has ended for, which is `leave`'s.
    server = Server(config, service.requests, service.scheduler, GRACE_SECONDS, leave)
    server.run([listener])


def _address(listener: socket) -> tuple[str, int]:
    """Where a browser on this machine finds what listens, and its port."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": LOCAL, "::": "::1"}.get(host, host)  # of all addresses the local one
    return _bracketed(host.partition("%")[0]), port


def host_headers(names: Iterable[str], port: int) -> Iterator[str]:
    """Yield what a browser sends as Host for each of these, HOST or HOST:PORT. "All addresses" are
    the name of none."""
    for name in map(_bracketed, names):
        if name in ("", "0.0.0.0", "[::]"):
            continue
        whole = name if ":" in name.rpartition("]")[2] else f"{name}:{port}"
        yield whole
        bare, _, number = whole.rpartition(":")
        if number in ("80", "443"):  # which browsers leave out, the latter for https
            yield bare


def _bracketed(host: str) -> str:
    """An IPv6 address as it stands in a URL; all else as it is."""
    try:
        address = ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return host
    return f"[{address}]" if isinstance(address, IPv6Address) else host


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


def _show_page(addresses: Sequence[str], secret: str | None) -> None:
    """Say where the page is, on this machine and under other names, and the API."""
    pages = "\n      ".join(_with_token(address, secret) for address in dict.fromkeys(addresses))
    token = f"  token: {secret}" if secret else ""
    print(f"page: {pages}\nAPI:  {addresses[0]}/v1{token}", flush=True)


def _urls(names: Iterable[str], port: int) -> Iterator[str]:
    """The addresses of other names; at the port of https there is a proxy that speaks it."""
    for name in names:
        for host in islice(host_headers([name], port), 1):
            scheme = "https" if host.endswith(":443") else "http"
            yield f"{scheme}://{re.sub(':(80|443)$', '', host)}"


def _open_page(address: str, ticket: str | None) -> None:
    import webbrowser

    webbrowser.open(_with_token(address, ticket))


def _with_token(address: str, token: str | None) -> str:
    """The page's address. Browsers send no server what is after #, and the page takes it away."""
    return f"{address}/" + (f"#token={percent_encoded(token, safe='')}" if token else "")


def listen_for_page(port: int | None) -> socket:
    """Listen on this machine at a port; where none is wanted at the page's own, or the next that is
    free, which is said.

    Raises ServerError: it is taken.
    """
    for number in range(PAGE_PORT, PAGE_PORT + PAGE_PORTS) if port is None else ():
        with suppress(PortError):
            listener = listen(LOCAL, number)
            if number != PAGE_PORT:
                why = f"port {PAGE_PORT} is taken, maybe by another page; this one is at {number}"
                print(f"smolvlm-mlx: {why}", file=sys.stderr)
            return listener
    return listen(LOCAL, PAGE_PORT if port is None else port)


def listen(host: str, port: int) -> socket:
    """Listen at an address, or at the first that a name has: one of IPv4 if there is one.

    Raises:
        ServerError: it is no address of this machine, or, as PortError, is taken.
    """
    bare = host.removeprefix("[").removesuffix("]")
    try:
        found = getaddrinfo(bare or None, port, type=SOCK_STREAM, flags=AI_PASSIVE)
        family, *_, address = min(found, key=lambda one: one[0] != AF_INET)
        listener = create_server(address, family=family)
    except (OSError, TypeError, UnicodeError) as error:  # the latter for a name that is none
        # A name that is not found has a number of its own.
        number = None if isinstance(error, gaierror | TypeError | UnicodeError) else error.errno
        why = os.strerror(number) if number else getattr(error, "strerror", None) or "no host name"
        raise (PortError if number == EADDRINUSE else ServerError)(
            f"{host}:{port}: cannot listen there ({why}); choose another --host or --port"
        ) from error
    # Without it answers wait 40 ms; asyncio sets it for its own sockets alone.
    listener.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    return listener
