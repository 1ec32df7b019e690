"""Bytes from a path, an http(s) URL, a data: URL or base64 text, within limits.

In goes a string a user wrote; out come bytes, or one FetchError line. Knows nothing about pictures or videos.

A URL may come from someone who wants to reach what only this machine can reach. So the name is resolved once, every
address it has must be a public one, and the connection is made to that checked address, not to the name: a second,
different answer of the resolver (DNS rebinding) is never asked for. Redirects go through the same check.
"""

import base64
import os
import socket
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from smolvlm_mlx.errors import FetchError, short, short_path

if TYPE_CHECKING:
    from http.client import HTTPResponse
import contextlib
import http.client
import ipaddress
import ssl
import threading

# ipaddress (Python 3.11) counts these as global. The first two carry an IPv4 address that may be a private one.
NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "64:ff9b::/96",  # NAT64, RFC 6052
        "2002::/16",  # 6to4, RFC 3056
        "192.88.99.0/24",  # 6to4 relays, RFC 7526
        "fec0::/10",  # site-local, RFC 3879
    )
)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet: not private, local, shared, multicast or reserved, and not
    a form that wraps an IPv4 address, except an IPv4-mapped one, which is judged by what it maps."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if any(ip in network for network in NOT_PUBLIC):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)


class Connection(http.client.HTTPConnection):
    """One request to addresses that were checked before, cut off at the deadline however slowly bytes come."""

    def __init__(self, parts: SplitResult, addresses: list[str], deadline: float) -> None:
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self.default_port = 443 if self._tls else 80  # read by the base class for the Host header
        super().__init__(parts.hostname or "", parts.port or self.default_port)
        self._addresses, self._deadline = addresses, deadline
        self._watched: socket.socket | None = None  # the base class drops `sock` before the body is read
        # A timeout of the socket starts anew with each byte, so a drip of bytes would never end without this.
        self._watchdog = threading.Timer(self._left(), self._cut)
        self._watchdog.daemon = True
        self._watchdog.start()

    def _left(self) -> float:
        return max(self._deadline - time.monotonic(), 0.001)  # 0 would mean "do not wait", not "no time left"

    def _cut(self) -> None:
        if self._watched is not None:
            with contextlib.suppress(OSError):  # closed meanwhile
                socket.socket.shutdown(self._watched, socket.SHUT_RDWR)  # SSLSocket's own also drops its TLS state

    def connect(self) -> None:
        for position, address in enumerate(self._addresses):
            share = self._left() / (len(self._addresses) - position)
            try:
                self.sock = socket.create_connection((address, self.port), timeout=share)
                break
            except OSError:
                if position + 1 == len(self._addresses):
                    raise
        if self._tls is not None:
            self.sock = self._tls.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
        self.sock.settimeout(self._left())
        self._watched = self.sock
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.do_handshake()  # only now, under the watchdog

    def finish(self) -> None:
        """Close, and stop watching. (`close` alone is also called by the base class, before the body is read.)"""
        self._watchdog.cancel()
        self.close()


MAX_PATH = 4096  # characters, of Linux; macOS has 1024
MAX_IMAGE_BYTES = 20 * 2**20
CHUNK_BYTES = 64 * 2**10
REDIRECTS = (301, 302, 303, 307, 308)

Resolver = Callable[..., Sequence[tuple[Any, ...]]]  # called and answering like socket.getaddrinfo


@dataclass(frozen=True)
class FetchLimits:
    """What may be fetched: at most `max_bytes`, within `timeout` seconds overall (a name lookup has the system's own
    timeout), over `max_redirects` redirects; and whether paths and URLs are followed at all (a server says no)."""

    max_bytes: int = MAX_IMAGE_BYTES
    timeout: float = 20.0
    max_redirects: int = 3
    allow_paths: bool = True
    allow_urls: bool = True


DEFAULT_LIMITS = FetchLimits()


def fetch(source: str, limits: FetchLimits = DEFAULT_LIMITS) -> bytes:
    """Bytes of an http(s) URL, a data: URL, a file:// URL, a path or base64 text, told apart in this order.

    Text that names an existing file is a path; other text is base64 if it decodes as such, as in transformers'
    `load_image`. Raises FetchError.
    """
    scheme = source[:8].lower()
    if scheme.startswith(("http://", "https://")):
        return fetch_url(source, limits)
    if scheme.startswith("data:"):
        return decode_base64(source, limits)
    if scheme.startswith("file://") or (limits.allow_paths and is_path(source)):
        return read_path(source, limits)
    # A mistyped path of a few letters can be valid base64, which has no dots; the smallest GIF is 35 letters.
    if len(source) < 32 or "." in source[:MAX_PATH]:
        return read_path(source, limits)
    try:
        return decode_base64(source, limits)
    except FetchError as error:
        path = "nor is it the path of an existing file" if limits.allow_paths else "and local files are not read here"
        raise FetchError(f"{error}; {path}") from None


def read_path(path: str | Path, limits: FetchLimits = DEFAULT_LIMITS) -> bytes:
    """Bytes of a regular file; `~` is expanded and file:// accepted. Raises FetchError."""
    if not limits.allow_paths:
        raise FetchError(f"local files are not read here: {short_path(path)}; send the bytes as a data: URL")
    name = _local_path(str(path))
    try:
        # O_NONBLOCK: opening a FIFO that nobody writes to would wait for ever. The check is made on what was opened.
        with open(name, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise FetchError(f"{short_path(name)} is not a regular file; give the path of a file")
            _check_size(status.st_size, short_path(name), limits)
            data = file.read(limits.max_bytes + 1)  # a file may grow after fstat
    except FileNotFoundError:
        raise FetchError(f"no such file: {short_path(name)}") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise FetchError(f"cannot read {short_path(name)}: {reason}") from error
    _check_size(len(data), short_path(name), limits)
    return data


def decode_base64(text: str, limits: FetchLimits = DEFAULT_LIMITS) -> bytes:
    """Bytes of plain base64 (standard alphabet, padded, white space allowed) or of a data: URL. Raises FetchError."""
    head, payload = "base64 text", text
    if text[:5].lower() == "data:":
        head, comma, payload = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise FetchError(f"data: URL {short(head[:40])} is not base64; write data:image/png;base64,...")
    payload = "".join(payload.split())
    _check_size(len(payload) // 4 * 3 - payload[-2:].count("="), short(head), limits)
    try:
        data = base64.b64decode(payload, validate=True)
    except ValueError as error:
        raise FetchError(f"{short(head[:40])} of {len(payload)} letters is not valid base64: {error}") from None
    if not data:
        raise FetchError(f"{short(head[:40])} is empty")
    return data


def fetch_url(
    url: str,
    limits: FetchLimits = DEFAULT_LIMITS,
    *,
    resolve: Resolver = socket.getaddrinfo,
    allow_address: Callable[[str], bool] | None = None,
) -> bytes:
    """Body of an http(s) URL, redirects followed. Proxies and cookies are not used. Raises FetchError.

    `resolve` and `allow_address` are for tests, which serve from the loopback address.
    """
    import http.client  # with TLS, more than pictures from files should wait for

    from smolvlm_mlx.inputs.fetch import Connection, is_public

    if not limits.allow_urls:
        raise FetchError(f"URLs are not fetched here: {short(url)}; send the bytes as a data: URL")
    deadline = time.monotonic() + limits.timeout
    for _ in range(limits.max_redirects + 1):
        parts = _check_url(url)
        addresses = _checked_addresses(parts, resolve, allow_address or is_public)
        connection = Connection(parts, addresses, deadline)
        try:
            connection.request("GET", _target(parts), headers={"User-Agent": "smolvlm-mlx", "Accept": "*/*"})
            with connection.getresponse() as answer:
                location = answer.getheader("Location")
                if answer.status not in REDIRECTS or location is None:
                    return _read_body(answer, url, limits, deadline)
            url = urljoin(url, location)
        except (OSError, http.client.HTTPException, ValueError) as error:
            late = time.monotonic() >= deadline or isinstance(error, TimeoutError)
            reason = f"no complete answer within {limits.timeout:g} s" if late else short(error or type(error).__name__)
            raise FetchError(f"cannot fetch {short(url)}: {reason}") from error
        finally:
            connection.finish()
    raise FetchError(f"more than {limits.max_redirects} redirects, the last to {short(url)}; give the final URL")


def _check_url(url: str) -> SplitResult:
    if any(character <= " " or character == "\x7f" for character in url):
        raise FetchError(f"URL {short(url)} holds white space or control characters; write them as %20 and so on")
    try:
        parts = urlsplit(url)
        port, host = parts.port, (parts.hostname or "").encode("idna").decode()
    except ValueError as error:
        raise FetchError(f"{short(url)} is not a URL: {error}") from None
    if parts.scheme not in ("http", "https"):
        named = short_path(url) if parts.scheme == "file" else short(url)
        raise FetchError(f"URL {named} has scheme {short(parts.scheme)}; only http and https are fetched")
    if not host or port == 0:
        raise FetchError(f"URL {short(url)} names no {'port' if host else 'host'} to connect to")
    if "@" in parts.netloc:
        raise FetchError(f"URL of host {short(host)} holds a user name or password; remove the part before the @")
    netloc = f"[{host}]" if ":" in host else host
    return parts._replace(netloc=netloc if port is None else f"{netloc}:{port}")


def _checked_addresses(parts: SplitResult, resolve: Resolver, allow_address: Callable[[str], bool]) -> list[str]:
    host = parts.hostname or ""
    try:
        found = resolve(host, parts.port or (443 if parts.scheme == "https" else 80), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise FetchError(f"host {short(host)} cannot be found: {short(error)}") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    refused = [address for address in addresses if not allow_address(address)]
    if refused or not addresses:
        raise FetchError(f"host {short(host)} is not on the public internet ({', '.join(refused[:2]) or 'no address'})")
    return addresses


def _read_body(answer: "HTTPResponse", url: str, limits: FetchLimits, deadline: float) -> bytes:
    if answer.status != 200:
        raise FetchError(f"{short(url)} answered {answer.status} {short(answer.reason)}")
    encoding = answer.getheader("Content-Encoding", "identity")
    if encoding.strip().lower() != "identity":  # never asked for; a few bytes could unpack to gigabytes
        raise FetchError(f"{short(url)} is sent with Content-Encoding {short(encoding)}, which is not read")
    _check_size(answer.length or 0, url, limits)
    pieces: list[bytes] = []
    total = 0
    while piece := answer.read(CHUNK_BYTES):
        pieces.append(piece)
        total += len(piece)
        _check_size(total, short(url), limits, "at least ")
        if time.monotonic() >= deadline:
            raise TimeoutError
    if time.monotonic() >= deadline:  # the connection was cut, which reads like the end of the body
        raise TimeoutError
    if answer.length:  # http.client does not complain when a body ends early
        raise FetchError(f"{short(url)} ended {answer.length} bytes early; try again")
    return b"".join(pieces)


def _check_size(size: int, name: str, limits: FetchLimits, more: str = "") -> None:
    if size > limits.max_bytes:
        raise FetchError(f"{name} holds {more}{size} bytes; the limit is {limits.max_bytes}")


def _target(parts: SplitResult) -> str:
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return quote(target, safe="%/:=&?~#+!$,;'@()*[]|")  # letters beyond ASCII only; what is quoted stays


def _local_path(name: str) -> str:
    if name[:7].lower() == "file://":
        parts = urlsplit(name)
        if parts.netloc not in ("", "localhost"):
            raise FetchError(f"{short_path(name)} names a file of another machine; write file:///path")
        name = unquote(parts.path)
    return os.path.expanduser(name)


def is_path(name: str) -> bool:
    """Whether it names something that is there, and is no text that is to be decoded."""
    try:
        return os.path.lexists(_local_path(name))
    except ValueError:  # a null byte
        return False
