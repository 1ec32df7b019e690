"""Bytes from a path, an http(s) URL, a data: URL or base64 text, within limits.

In goes what a user wrote; out come bytes, or one FetchError line. Knows nothing about pictures or
videos.
"""

import base64
import contextlib
import io
import os
import stat
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import SplitResult, unquote, urljoin, urlsplit
from urllib.parse import quote as percent_encode

from smolvlm_mlx.errors import FetchError, SmolVLMError, cut, quote, reason
from smolvlm_mlx.inputs.addresses import check_url, public_addresses

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")

MAX_PATH = 4096  # characters, of Linux; macOS has 1024
MAX_IMAGE_BYTES = 20 * 2**20  # of a picture that is not the user's own file
MAX_ESCAPED = 2**20  # characters of a data: URL; what escapes + and / alone has fewer in 20 MiB
MAX_REDIRECTS = 3
MAX_HEADERS = 100  # of an answer; httpx2 lets them have 100 KB together


@dataclass(frozen=True)
class FetchLimits:
    """What may be fetched: at most `max_bytes`, within `timeout` seconds overall (a name lookup has
    the system's own timeout); pictures of at most `max_pixels` (None: as many as the user lets his
    own have); and whether paths and URLs are followed at all (a server says no)."""

    max_bytes: int = MAX_IMAGE_BYTES
    max_pixels: int | None = None
    timeout: float = 20.0
    allow_paths: bool = True
    allow_urls: bool = True


DEFAULT_LIMITS = FetchLimits(max_bytes=2**30)  # of the user's own files


def fetch(source: str, limits: FetchLimits = DEFAULT_LIMITS) -> bytes:
    """Bytes of an http(s) URL, a data: URL, a file:// URL, a path or base64 text, told apart in
    this order.

    Text that names an existing file is a path; other text is base64 if it decodes as such, as in
    transformers' `load_image`. Raises FetchError.
    """
    scheme = source[:8].lower()
    if scheme.startswith(("http://", "https://")):
        return fetch_url(source, limits)
    if scheme.startswith("data:"):
        return decode_base64(source, limits)
    # A mistyped path of a few letters can be valid base64, which has no dots; the smallest GIF is
    # 35 letters.
    looks_like_path = scheme.startswith("file://") or len(source) < 32 or "." in source[:MAX_PATH]
    if looks_like_path or (limits.allow_paths and is_path(source)):
        return read_path(source, limits)
    try:
        return decode_base64(source, limits, strict=True)
    except FetchError as error:
        path = (
            "nor is it the path of an existing file"
            if limits.allow_paths
            else "and local files are not read here"
        )
        raise FetchError(f"{error}; {path}") from None


def one_of(
    part: object, keys: Sequence[str], what: str, error: type[SmolVLMError]
) -> tuple[str, object]:
    """The one of the keys that a part of a message has, and what is there; what is no part stands
    for the first key."""
    if not isinstance(part, Mapping):
        return keys[0], part
    given = [key for key in keys if part.get(key) is not None]
    if len(given) != 1:
        raise error(f"{what} needs one of {', '.join(keys)}; it has {', '.join(given) or 'none'}")
    return given[0], part[given[0]]


def read_source(key: str, source: object, limits: FetchLimits) -> bytes | None:
    """Bytes of what a part has under a key: read as a `path`, `url` or `base64`, or as `fetch`
    does; None if it is no text, path, bytes or open file. Bytes stay as they are, however many.
    Raises FetchError."""
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, os.PathLike):
        return read_path(os.fsdecode(source), limits)
    if hasattr(source, "read"):
        return read_opened(source, limits)
    if not isinstance(source, str):
        return None
    if key == "path":
        return read_path(source, limits)
    if key == "url" and source[:5].lower() != "data:":
        return fetch_url(source, limits)
    return decode_base64(source, limits) if key in ("url", "base64") else fetch(source, limits)


def read_path(path: str | Path, limits: FetchLimits = DEFAULT_LIMITS) -> bytes:
    """Bytes of a regular file; `~` is expanded and file:// accepted. Raises FetchError."""
    if not limits.allow_paths:
        raise FetchError(
            f"local files are not read here: {quote(path, end=True)}; send the bytes as a data: URL"
        )
    name = local_path(str(path))
    shown = quote(name, end=True)
    try:
        # O_NONBLOCK: opening a FIFO that nobody writes to would wait for ever. The check is made on
        # what was opened.
        with open(
            name, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)
        ) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise FetchError(f"{shown} is not a regular file; give the path of a file")
            _check_size(status.st_size, shown, limits)
            data = file.read(limits.max_bytes + 1)  # a file may grow after fstat
    except FileNotFoundError:
        raise FetchError(f"no such file: {shown}") from None
    except IsADirectoryError:
        raise FetchError(f"{shown} is a folder; give a file of it, or use caption") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise FetchError(f"cannot read {shown}: {reason(error)}") from error
    _check_size(len(data), shown, limits)
    return data


def read_opened(file: Any, limits: FetchLimits = DEFAULT_LIMITS) -> bytes:
    """Bytes of a file that is open, from its beginning where it can go back there: what was just
    written is read. At most one byte more than the limit. Raises FetchError."""
    if isinstance(file, io.TextIOBase):
        raise FetchError('the file is open as text; open it with "rb"')
    try:
        if getattr(file, "seekable", bool)():
            file.seek(0)
        return bytes(file.read(limits.max_bytes + 1))
    except (OSError, ValueError, TypeError) as error:  # it is closed, or gives no bytes
        raise FetchError(f"cannot read the open file: {reason(error)}") from error


def read_start(path: str | Path, count: int) -> bytes:
    """The first `count` bytes of a regular file; none where there is no such file."""
    with contextlib.suppress(OSError, ValueError, FetchError):
        name = Path(local_path(str(path)))
        if name.is_file():
            with name.open("rb") as file:
                return file.read(count)
    return b""


def decode_base64(
    text: str, limits: FetchLimits = DEFAULT_LIMITS, *, strict: bool = False
) -> bytes:
    """Bytes of plain base64 or of a data: URL, in which characters may be escaped; of either
    alphabet, padded or not, unless `strict`, which tells it from other text. White space is
    allowed. Raises FetchError."""
    head, payload = "base64 text", text
    if text[:5].lower() == "data:":
        head, comma, payload = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise FetchError(
                f"data: URL {quote(head[:40])} is not base64; write data:image/png;base64,..."
            )
        if (escaped := payload.count("%")) > MAX_ESCAPED:
            raise FetchError(f"{escaped} escaped characters; the limit is {MAX_ESCAPED}")
        payload = unquote(payload) if escaped else payload
    letters = payload.encode("ascii", "replace").translate(None, b" \t\n\r\v\f")
    if not strict:
        letters = letters.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
        letters += b"=" * (-len(letters) % 4)
    _check_size(len(letters) // 4 * 3 - letters[-2:].count(b"="), quote(head), limits)
    try:
        data = base64.b64decode(letters, validate=True)
    except ValueError as error:
        what = f"{quote(head[:40])} of {len(letters)} letters"
        raise FetchError(f"{what} is not valid base64: {error}") from None
    if not data:
        raise FetchError(f"{quote(head[:40])} is empty")
    return data


def fetch_url(url: str, limits: FetchLimits = DEFAULT_LIMITS) -> bytes:
    """Body of an http(s) URL, redirects followed. Proxies and cookies are not used. Raises
    FetchError."""
    if not limits.allow_urls:
        raise FetchError(f"URLs are not fetched here: {quote(url)}; send the bytes as a data: URL")
    import httpx2  # with TLS and asyncio, more than pictures from files should wait for

    deadline = time.monotonic() + limits.timeout
    for _ in range(MAX_REDIRECTS + 1):
        parts = check_url(url)
        addresses = public_addresses(parts)
        try:
            answer = _run_apart(_get(url, parts, addresses, limits, deadline))
            if isinstance(answer, bytes):
                return answer
            url = urljoin(url, answer)
        except (TimeoutError, httpx2.TimeoutException) as error:
            raise FetchError(
                f"cannot fetch {quote(url)}: no complete answer within {limits.timeout:g} s"
            ) from error
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
            raise FetchError(f"cannot fetch {quote(url)}: {_network_reason(error)}") from error
    raise FetchError(
        f"more than {MAX_REDIRECTS} redirects, the last to {quote(url)}; give the final URL"
    )


def _run_apart(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a thread and an event loop of its own: the caller's thread may be running
    a loop already, as in Jupyter. What interrupts the caller, such as Ctrl-C, cancels it."""
    import asyncio

    loop = asyncio.new_event_loop()
    task = loop.create_task(work)
    done = threading.Event()  # an interrupted Thread.join takes the thread for ended (Python 3.12)

    def run() -> None:
        try:
            loop.run_until_complete(asyncio.wait([task]))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()
            done.set()

    threading.Thread(target=run, name="fetch", daemon=True).start()
    try:
        done.wait()
    except BaseException:
        with contextlib.suppress(RuntimeError):  # it ended meanwhile, and its loop is closed
            loop.call_soon_threadsafe(task.cancel)
        done.wait()
        raise
    return task.result()


async def _get(
    url: str, parts: SplitResult, addresses: list[str], limits: FetchLimits, deadline: float
) -> bytes | str:
    """Ask for a URL once, and return its body, or the place that it redirects to.

    The transport alone, without a client around it, knows no redirects, cookies, proxies or netrc.
    Each request has its own, so that no connection is used again for another host of the same
    address. The certificate is checked by OpenSSL alone: the check of the system, which is httpx2's
    default on a Mac, may itself fetch what a certificate names.
    """
    import asyncio
    import ssl

    import httpx2

    # A timeout of httpx2 starts anew with each byte; this one ends a drip of bytes as well.
    async with (
        asyncio.timeout(deadline - time.monotonic()),
        httpx2.AsyncHTTPTransport(verify=ssl.create_default_context()) as transport,
        contextlib.AsyncExitStack() as opened,
        contextlib.aclosing(await _send(transport, parts, addresses, deadline, opened)) as answer,
    ):
        if answer.has_redirect_location:
            return answer.headers["Location"]
        return await _read_body(answer, url, limits)


async def _send(
    transport: "httpx2.AsyncBaseTransport",
    parts: SplitResult,
    addresses: list[str],
    deadline: float,
    opened: contextlib.AsyncExitStack,
) -> "httpx2.Response":
    """Send the request to the first address that can be connected to, and return the answer, whose
    body is not read yet. `opened` closes the connections."""
    import ssl

    import httpx2

    async def trace(event: str, info: dict[str, Any]) -> None:
        # httpx2 leaves the connection open when the handshake of TLS is cancelled.
        if event == "connection.connect_tcp.complete":
            opened.push_async_callback(info["return_value"].aclose)

    named = httpx2.URL(scheme=parts.scheme, host=parts.hostname or "", port=parts.port)
    host = named.netloc.decode()  # without the scheme's own port
    headers = {
        "Host": host,
        "Accept-Encoding": "identity",
        "User-Agent": "smolvlm-mlx",
        "Accept": "*/*",
    }
    # The URL has the address; TLS asks for the name, and checks that the certificate is the name's.
    extensions = {"target": _target(parts).encode(), "trace": trace, "sni_hostname": parts.hostname}
    for position, address in enumerate(addresses):
        share = (deadline - time.monotonic()) / (len(addresses) - position)
        timed = {**extensions, "timeout": {"connect": share}}
        request = httpx2.Request(
            "GET", named.copy_with(host=address), headers=headers, extensions=timed
        )
        try:
            return await transport.handle_async_request(request)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            if position + 1 == len(addresses) or isinstance(_first_cause(error), ssl.SSLError):
                raise
    raise AssertionError("no address to connect to")


def _first_cause(error: BaseException) -> BaseException:
    """The error that began it. httpcore2 raises some `from None`, and has the cause as argument."""
    causes = [each for each in (error.__cause__, *error.args) if isinstance(each, BaseException)]
    return _first_cause(causes[0]) if causes else error


def _network_reason(error: Exception) -> str:
    """What went wrong, in the words of whoever saw it first: httpx2 says "All connection attempts
    failed" of a refused one."""
    import ssl

    first = _first_cause(error)
    if isinstance(first, OSError) and first.errno and not isinstance(first, ssl.SSLError):
        return os.strerror(first.errno)
    return cut(str(first) or str(error) or "the connection was closed")


async def _read_body(answer: "httpx2.Response", url: str, limits: FetchLimits) -> bytes:
    import httpx2

    if answer.status_code != 200:
        raise FetchError(
            f"{quote(url)} answered {answer.status_code} {quote(answer.reason_phrase)}"
        )
    if len(answer.headers.raw) > MAX_HEADERS:
        raise httpx2.RemoteProtocolError(f"it answers with more than {MAX_HEADERS} headers")
    encoding = answer.headers.get("Content-Encoding", "identity")
    # Never asked for; a few bytes could unpack to gigabytes.
    if encoding.strip().lower() != "identity":
        raise FetchError(
            f"{quote(url)} is sent with Content-Encoding {quote(encoding)}, which is not read"
        )
    is_chunked = "Transfer-Encoding" in answer.headers
    length = 0 if is_chunked else int(answer.headers.get("Content-Length", 0))
    _check_size(length, quote(url), limits)
    body = bytearray()
    try:
        async with contextlib.aclosing(answer.aiter_raw()) as pieces:
            async for piece in pieces:
                body += piece
                _check_size(len(body), quote(url), limits, "at least ")
    except httpx2.RemoteProtocolError as error:
        if len(body) < length:
            raise FetchError(
                f"{quote(url)} ended {length - len(body)} bytes early; try again"
            ) from error
        raise
    return bytes(body)


def _check_size(size: int, name: str, limits: FetchLimits, more: str = "") -> None:
    if size > limits.max_bytes:
        raise FetchError(f"{name} holds {more}{size} bytes; the limit is {limits.max_bytes}")


def _target(parts: SplitResult) -> str:
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    # Letters beyond ASCII only; what is quoted stays.
    return percent_encode(target, safe="%/:=&?~#+!$,;'@()*[]|")


def local_path(name: str) -> str:
    """A path that may begin with `~`, or a file:// URL, as a path. Raises FetchError."""
    if name[:7].lower() == "file://":
        try:
            parts = urlsplit(name)
        except ValueError as error:
            raise FetchError(f"{quote(name, end=True)} is not a URL: {error}") from None
        if parts.netloc not in ("", "localhost"):
            raise FetchError(
                f"{quote(name, end=True)} names a file of another machine; write file:///path"
            )
        name = unquote(parts.path)
    return os.path.expanduser(name)


def is_path(name: str) -> bool:
    """Whether it names something that is there, and is no text that is to be decoded."""
    try:
        return os.path.lexists(local_path(name))
    except ValueError:  # a null byte
        return False
