"""Bytes from paths, URLs and base64: what is fetched, what is refused, and that it ends in time."""

import asyncio
import base64
import contextlib
import io
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from smolvlm_mlx.errors import FetchError
from smolvlm_mlx.inputs.addresses import is_public
from smolvlm_mlx.inputs.fetch import (
    DEFAULT_LIMITS,
    MAX_IMAGE_BYTES,
    FetchLimits,
    decode_base64,
    fetch,
    fetch_url,
    read_opened,
    read_path,
)

import httpx2
import pytest

SMALL = FetchLimits(max_bytes=1000, timeout=60)
Script = Callable[[socket.socket, bytes], None]
ROOT = Path(__file__).parents[1]
# Of example.com by itself, with its key, to 2120.
CERTIFICATE = Path(__file__).parent / "support" / "example.com.pem"


@contextlib.contextmanager
def server(script: Script, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A port of 127.0.0.1 that hands each connection and its request to the script."""

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # closed
                return
            with (
                contextlib.suppress(OSError),  # the other side hung up, as it should
                client,
                tls.wrap_socket(client, server_side=True) if tls else client as stream,
            ):
                if request := stream.recv(65536):
                    script(stream, request)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(60)
            assert not thread.is_alive()


def answer(body: bytes, *headers: str, status: str = "200 OK") -> Script:
    head = "\r\n".join(
        [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    ).encode()
    return lambda client, _: client.sendall(head + body)


def answer_with(data: bytes) -> Script:
    return lambda client, _: client.sendall(data)


def get_url(
    url: str,
    limits: FetchLimits = SMALL,
    *,
    resolve: Callable[..., object] = socket.getaddrinfo,
    allow_address: Callable[[str], bool] = lambda address: True,
) -> bytes:
    """As `fetch_url`, for addresses that are not public, and names that nobody has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", resolve)
        patch.setattr("smolvlm_mlx.inputs.addresses.is_public", allow_address)
        return fetch_url(url, limits)


def get(port: int, limits: FetchLimits = SMALL, path: str = "/") -> bytes:
    return get_url(f"http://localhost:{port}{path}", limits)


def resolver(*answers: list[str]) -> Callable[..., list[tuple[Any, ...]]]:
    """Answers like socket.getaddrinfo, another list of addresses each time."""
    remaining = iter(answers)
    return lambda host, port, **_: [(2, 1, 6, "", (address, port)) for address in next(remaining)]


# --- the client


def run(source: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_files_are_read_without_the_http_client() -> None:
    heavy = ("httpx2", "http.client", "ssl", "asyncio")
    result = run(
        "import sys; from smolvlm_mlx.inputs.fetch import fetch; fetch('pyproject.toml'); "
        f"sys.exit(str([name for name in {heavy} if name in sys.modules]))"
    )
    assert result.stderr.strip() == "[]"


def test_where_an_event_loop_runs_already() -> None:
    async def cell() -> bytes:  # as in Jupyter
        return get(port)

    with server(answer(b"picture")) as port:
        assert asyncio.run(cell()) == b"picture"


def test_a_fetch_does_not_keep_python_from_ending() -> None:
    fetching = list[threading.Thread]()

    def look(client: socket.socket, request: bytes) -> None:
        fetching.extend(t for t in threading.enumerate() if t.name == "fetch")
        answer(b"picture")(client, request)

    with server(look) as port:
        assert get(port) == b"picture"
    assert fetching
    assert all(thread.daemon for thread in fetching)


INTERRUPTED = """
import os, signal, socket, threading
from smolvlm_mlx.inputs import addresses, fetch

def serve():
    client, _ = listener.accept()
    client.recv(65536)
    os.kill(os.getpid(), signal.SIGINT)
    print(client.recv(1))  # until the other side hangs up

listener = socket.create_server(("127.0.0.1", 0))
server = threading.Thread(target=serve)
server.start()
addresses.is_public = lambda address: True
try:
    fetch.fetch_url("URL:%d/" % listener.getsockname()[1], fetch.FetchLimits(timeout=1000))
except KeyboardInterrupt:
    server.join()
    print("interrupted")
"""


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_ctrl_c_ends_it_and_closes_the_connection(scheme: str) -> None:
    result = run(INTERRUPTED.replace("URL", f"{scheme}://localhost"))
    assert (result.stdout, result.stderr, result.returncode) == ("b''\ninterrupted\n", "", 0)


def test_no_proxy_cookie_or_password_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine localhost login me password secret\n")
    for name, value in {"HOME": str(tmp_path), "NETRC": str(tmp_path / ".netrc")}.items():
        monkeypatch.setenv(name, value)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    requests: list[bytes] = []

    def script(client: socket.socket, request: bytes) -> None:
        requests.append(request)
        status = "302 Found" if len(requests) == 1 else "200 OK"
        answer(b"x", "Set-Cookie: a=b", "Location: /two", status=status)(client, request)

    with server(script) as port:
        assert get(port) == b"x"
    names = [line.split(b":")[0] for line in requests[1].split(b"\r\n")[1:] if line]
    assert sorted(names) == [b"Accept", b"Accept-Encoding", b"Host", b"User-Agent"]
    assert b"User-Agent: smolvlm-mlx\r\n" in requests[1]


# --- addresses


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://localhost:80/",
        "http://[::1]/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://0/",
    ],
)
def test_loopback_in_disguise(url: str) -> None:
    with pytest.raises(FetchError, match=r"not on the public internet|cannot be found"):
        fetch_url(url)


def test_one_private_address_among_public_ones() -> None:
    with pytest.raises(FetchError, match=r"not on the public internet \(10\.0\.0\.1\)"):
        get_url(
            "https://example.com/",
            resolve=resolver(["8.8.8.8", "10.0.0.1"]),
            allow_address=is_public,
        )


def test_the_checked_address_is_dialled() -> None:
    """A resolver that answers differently the second time (DNS rebinding) is not asked a second
    time."""
    with server(answer(b"picture")) as port:
        checked: list[str] = []

        def allow(address: str) -> bool:
            checked.append(address)
            return True

        body = get_url(
            f"http://example.com:{port}/",
            SMALL,
            resolve=resolver(["127.0.0.1"]),  # asked twice, it raises StopIteration
            allow_address=allow,
        )
    assert body == b"picture"
    assert checked == ["127.0.0.1"]


@pytest.mark.parametrize(
    "inside", ["http://127.0.0.1:9/", "//[::1]/", "http://2130706433/", "http://[::ffff:7f00:1]/"]
)
def test_redirect_to_this_machine(inside: str) -> None:
    allowed = iter([True])
    with (
        server(answer(b"", f"Location: {inside}", status="301 Moved")) as port,
        pytest.raises(FetchError, match="not on the public internet"),
    ):
        get_url(
            f"http://localhost:{port}/",
            allow_address=lambda ip: next(allowed, False) or is_public(ip),
        )


def test_the_next_address_is_tried() -> None:
    with server(answer(b"picture")) as port:  # which does not listen on ::1
        found = resolver(["::1", "127.0.0.1"])
        url = f"http://example.com:{port}/"
        assert get_url(url, resolve=found) == b"picture"


def test_each_address_has_its_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    shares: list[float] = []

    async def silent(_: object, request: httpx2.Request) -> None:
        asked.append(request.url.host)
        shares.append(request.extensions["timeout"]["connect"])
        raise httpx2.ConnectTimeout("")

    monkeypatch.setattr(httpx2.AsyncHTTPTransport, "handle_async_request", silent)
    addresses = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    with pytest.raises(FetchError, match=r"no complete answer within 600 s$"):
        get_url("http://a.b/", FetchLimits(timeout=600), resolve=resolver(addresses))
    assert asked == addresses
    assert shares == pytest.approx([200, 300, 600], abs=60)


def test_redirect_to_a_private_address() -> None:
    found = resolver(["127.0.0.1"], ["169.254.169.254"])
    reply = answer(b"", "Location: http://inside.example/secret", status="302 Found")
    with (
        server(reply) as port,
        pytest.raises(FetchError, match=r"not on the public internet \(169\.254\.169\.254\)"),
    ):
        get_url(
            f"http://example.com:{port}/", resolve=found, allow_address=lambda ip: ip == "127.0.0.1"
        )


def test_unknown_host() -> None:
    def unknown(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        raise socket.gaierror(-2, "Name or service not known")

    with pytest.raises(FetchError, match=r"host 'nowhere\.example' cannot be found"):
        get_url("http://nowhere.example/", resolve=unknown)


# --- bodies


def test_body_and_request() -> None:
    requests: list[bytes] = []

    def script(client: socket.socket, request: bytes) -> None:
        requests.append(request)
        answer(b"x" * 1000)(client, request)

    with server(script) as port:
        assert get(port, path="/é?q=1#part") == b"x" * 1000  # max_bytes itself is allowed
    head = requests[0].decode()
    assert head.startswith("GET /%C3%A9?q=1 HTTP/1.1\r\n")
    assert f"Host: localhost:{port}\r\n" in head
    assert "Accept-Encoding: identity\r\n" in head


def test_body_too_large() -> None:
    with (
        server(answer(b"x" * 1001)) as port,
        pytest.raises(FetchError, match="holds 1001 bytes; the limit is 1000"),
    ):
        get(port)


def test_body_too_large_without_a_length() -> None:
    def script(client: socket.socket, _: bytes) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            client.sendall(b"x" * 1000)

    with server(script) as port, pytest.raises(FetchError, match="holds at least"):
        get(port)


def test_chunked_body() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with server(
        lambda client, _: client.sendall(head + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    ) as port:
        assert get(port) == b"abcde"


def test_body_that_ends_early() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"
    with (
        server(lambda client, _: client.sendall(head + b"abc")) as port,
        pytest.raises(FetchError, match="7 bytes early"),
    ):
        get(port)


@pytest.mark.parametrize("came", [b"", b"abc"])
def test_chunked_body_that_ends_early(came: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with (
        server(answer_with(head + b"5\r\n" + came)) as port,
        pytest.raises(FetchError, match="without sending complete message body"),
    ):
        get(port)


def test_body_of_http_1_0_ends_with_the_connection() -> None:
    with server(answer_with(b"HTTP/1.0 200 OK\r\n\r\npicture")) as port:
        assert get(port) == b"picture"


def test_length_that_is_announced_is_refused_unread() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\nx"
    with (
        server(answer_with(head)) as port,
        pytest.raises(FetchError, match="holds 1000000000000 bytes; the limit is"),
    ):
        get(port)


ENDLESS = {
    "chunks": (
        b"Transfer-Encoding: chunked\r\n\r\n",
        b"64\r\n" + b"x" * 100 + b"\r\n",
        "holds at least",
    ),
    "headers": (b"", b"X: " + b"y" * 100 + b"\r\n", "cannot fetch"),
    "one header": (b"X: ", b"y" * 1000, "cannot fetch"),
    "trailers": (b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n" * 100, "cannot fetch"),
}


@pytest.mark.parametrize(("start", "more", "message"), list(ENDLESS.values()), ids=list(ENDLESS))
def test_answer_without_an_end(start: bytes, more: bytes, message: str) -> None:
    def script(client: socket.socket, _: bytes) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\n" + start)
        while True:  # until the other side hangs up
            client.sendall(more)

    with server(script) as port, pytest.raises(FetchError, match=message):
        get(port)


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nX: ",
        b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n384\r\n",
    ],
)
def test_drip_of_bytes_ends_at_the_deadline(start: bytes) -> None:
    def script(client: socket.socket, _: bytes) -> None:
        client.sendall(start)
        while True:  # until the other side hangs up
            client.sendall(b"x")
            time.sleep(0.05)

    with (
        server(script) as port,
        pytest.raises(FetchError, match=r"no complete answer within 0\.4 s"),
    ):
        get(port, FetchLimits(timeout=0.4))


def test_drip_without_a_length_is_not_taken_for_a_short_body() -> None:
    def script(client: socket.socket, _: bytes) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\nabc")
        client.recv(1)  # until the other side hangs up

    with server(script) as port, pytest.raises(FetchError, match="no complete answer"):
        get(port, FetchLimits(timeout=0.3))


def test_redirects_are_followed_three_times() -> None:
    def script(client: socket.socket, request: bytes) -> None:
        count = int(request.split(b" ")[1].strip(b"/"))
        if count == 0:
            answer(b"there")(client, request)
        answer(b"", f"Location: /{count - 1}", status="301 Moved")(client, request)

    with server(script) as port:
        assert get(port, path="/3") == b"there"
        with pytest.raises(FetchError, match=r"more than 3 redirects, the last to 'http://.*/0';"):
            get(port, path="/4")


def test_content_encoding_is_refused() -> None:
    with server(answer(b"x", "Content-Encoding:  Identity ")) as port:
        assert get(port) == b"x"
    with (
        server(answer(b"x", "Content-Encoding: gzip")) as port,
        pytest.raises(FetchError, match="'gzip'"),
    ):
        get(port)


def test_status() -> None:
    with (
        server(answer(b"x", status="404 Not Found")) as port,
        pytest.raises(FetchError, match="404 'Not Found'"),
    ):
        get(port)


@pytest.mark.parametrize(
    "reply", [b"", b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n"]
)
def test_answer_that_is_not_http(reply: bytes) -> None:
    with (
        server(lambda client, _: client.sendall(reply)) as port,
        pytest.raises(FetchError, match="cannot fetch"),
    ):
        get(port)


def test_an_answer_has_at_most_a_hundred_headers() -> None:
    with server(answer(b"x", *["X: y"] * 99)) as port:
        assert get(port) == b"x"
    with (
        server(answer(b"x", *["X: y"] * 100)) as port,
        pytest.raises(FetchError, match=r"it answers with more than 100 headers$"),
    ):
        get(port)


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(FetchError, match=r"cannot fetch .*: Connection refused"):
        get(port)


# --- TLS


@pytest.fixture
def tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))


def get_safely(name: str, port: int, *addresses: str) -> bytes:
    found = [(2, 1, 6, "", (address, port)) for address in addresses or ("127.0.0.1",)]
    return get_url(f"https://{name}:{port}/", resolve=lambda *_, **__: found)


@pytest.mark.usefixtures("trusted")
def test_tls_asks_for_the_name_and_checks_it(tls: ssl.SSLContext) -> None:
    asked: list[str | None] = []
    tls.sni_callback = lambda stream, name, context: asked.append(name)
    with server(answer(b"picture"), tls) as port:
        assert get_safely("example.com", port) == b"picture"
        with pytest.raises(FetchError, match="certificate verify failed: Hostname mismatch"):
            get_safely("example.org", port)
        with pytest.raises(FetchError, match="certificate verify failed: IP address mismatch"):
            get_safely("127.0.0.1", port)
    assert asked == ["example.com", "example.org", None]


def test_tls_of_a_certificate_that_nobody_vouches_for(tls: ssl.SSLContext) -> None:
    with (
        server(answer(b"picture"), tls) as port,
        pytest.raises(FetchError, match="certificate verify failed"),
    ):
        # No other address is tried, whose error would be said.
        get_safely("example.com", port, "127.0.0.1", "::1")


@pytest.mark.usefixtures("trusted")
def test_tls_checks_the_name_of_a_redirect_to_the_same_address(tls: ssl.SSLContext) -> None:
    def script(client: socket.socket, request: bytes) -> None:
        answer(b"", f"Location: https://example.org:{port}/", status="302 Found")(client, request)

    with server(script, tls) as port, pytest.raises(FetchError, match="Hostname mismatch"):
        get_safely("example.com", port)


@pytest.mark.parametrize("reply", [b"not TLS", b""])
def test_tls_that_is_none(reply: bytes) -> None:
    with (
        server(answer_with(reply)) as port,
        pytest.raises(FetchError, match=r"cannot fetch '[^']*': \S"),
    ):
        get_safely("localhost", port)


def test_drip_of_a_handshake_ends_at_the_deadline() -> None:
    def script(client: socket.socket, _: bytes) -> None:
        client.sendall(b"\x16\x03\x03\x40\x00")  # a record of 16 KB begins
        while True:  # until the other side hangs up
            client.sendall(b"x")
            time.sleep(0.05)

    with (
        server(script) as port,
        pytest.raises(FetchError, match=r"no complete answer within 0\.4 s"),
    ):
        get_url(f"https://localhost:{port}/", FetchLimits(timeout=0.4))


# --- paths


def test_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a picture.png"
    file.write_bytes(b"picture")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (
        str(file),
        "~/a picture.png",
        file.as_uri(),
        file.as_uri().replace("file", "FILE"),
        f"file://localhost{file.as_uri()[7:]}",
    ):
        assert fetch(name) == read_path(name) == b"picture"
    assert read_path(file) == b"picture"


def test_path_size(tmp_path: Path) -> None:
    file = tmp_path / "large"
    with file.open("wb") as out:
        out.truncate(MAX_IMAGE_BYTES)  # sparse
    assert len(read_path(file, FetchLimits())) == MAX_IMAGE_BYTES
    with file.open("ab") as out:
        out.write(b"x")
    with pytest.raises(FetchError, match="holds 20971521 bytes; the limit is 20971520"):
        read_path(file, FetchLimits())
    assert len(read_path(file)) == MAX_IMAGE_BYTES + 1, "the user's own"


def test_a_file_may_grow_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, measured = tmp_path / "a", os.fstat
    file.write_bytes(b"x" * 1000)

    def then_grown(descriptor: int) -> os.stat_result:
        status = measured(descriptor)
        with file.open("ab") as more:
            more.write(b"x" * 9)
        return status

    monkeypatch.setattr(os, "fstat", then_grown)
    with pytest.raises(FetchError, match="holds 1001 bytes; the limit is 1000"):
        read_path(file, SMALL)


def test_of_an_open_file_one_byte_more_than_the_limit_is_read() -> None:
    file = io.BytesIO(bytes(2000))
    file.seek(1500)
    assert read_opened(file, SMALL) == bytes(1001)
    assert file.tell() == 1001


def test_limits() -> None:
    own = FetchLimits(2**30, max_pixels=None, timeout=20.0, allow_paths=True, allow_urls=True)
    assert own == DEFAULT_LIMITS
    assert FetchLimits() == replace(own, max_bytes=20 * 2**20)


def test_path_that_is_not_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, message in (
        (tmp_path / "fifo", "regular"),
        (Path("/dev/zero"), "regular"),
        (tmp_path, "is a folder; give a file of it"),
    ):
        with pytest.raises(FetchError, match=message):
            read_path(path)


@pytest.mark.parametrize(
    "name",
    [
        "missing.png",
        "missing",
        "/no/such/folder/picture.jpeg",
        "a\0b.png",
        "file://host/a",
        "file://[a",
    ],
)
def test_path_that_cannot_be_read(name: str) -> None:
    for read in (fetch, read_path):
        with pytest.raises(FetchError, match=r"no such file|cannot read|another machine|not a URL"):
            read(name)


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ("", r"^no such file: '\.\.\..*/folder/a\.png'$"),
        (
            "file://host/",
            r"^'\.\.\..*/folder/a\.png' names a file of another machine; write file:///path$",
        ),
        ("file://[", r"^'\.\.\..*/folder/a\.png' is not a URL: "),
    ],
)
def test_the_end_of_a_long_path_is_said(start: str, said: str) -> None:
    with pytest.raises(FetchError, match=said):
        read_path(f"{start}{'folder/' * 20}a.png")


def test_sources_can_be_switched_off(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"picture")
    limits = FetchLimits(allow_paths=False, allow_urls=False)
    for source in (str(tmp_path / "a"), (tmp_path / "a").as_uri(), "missing.png"):
        with pytest.raises(FetchError, match="local files are not read here"):
            fetch(source, limits)
    with pytest.raises(FetchError, match="URLs are not fetched here"):
        fetch("http://example.com/", limits)
    with pytest.raises(FetchError, match=r": '\.\.\..*/folder/a\.png'; send the bytes as a data"):
        fetch(f"{'folder/' * 20}a.png", limits)
    assert fetch("data:image/png;base64,YWJj", limits) == b"abc"


# --- base64


@pytest.mark.parametrize(
    "text",
    [
        "YWJjZA==",
        " YWJj\nZA==\n",
        "data:image/png;base64,YWJjZA==",
        "data:;base64,YWJjZA==",
        "DATA:a/b;BASE64,YWJjZA==",
        "YWJjZA",
        "data:image/png;base64,YWJjZA",
        "data:image/png;base64,YWJj\r\nZA%3D%3D",
    ],
)
def test_base64(text: str) -> None:
    assert decode_base64(text) == b"abcd"


LONG = "data:image/png;name=abcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize("size", range(1, 9))
def test_base64_of_either_alphabet_padded_or_not(size: int) -> None:
    data = bytes(range(255, 255 - size, -1))
    for text in (base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()):
        for payload in (text, text.rstrip("="), f"data:;base64,{text.rstrip('=')}"):
            assert decode_base64(payload) == data


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("YWJjZ", "^'base64 text' of 8 letters is not valid base64: "),
        ("YWJj*A==", "not valid base64"),
        ("é" * 8, "not valid base64"),
        ("", "^'base64 text' is empty$"),
        ("data:image/png;base64,", "^'data:image/png;base64' is empty$"),
        ("data:image/png,abc", "^data: URL 'data:image/png' is not base64; write data:image/png;"),
        ("data:image/png;base64", "is not base64; write data:"),
        (f"{LONG},abc", f"^data: URL '{LONG[:40]}' is not base64"),
        (f"{LONG};base64,?", f"^'{LONG[:40]}' of 4 letters is not valid base64"),
        (f"{LONG};base64,", f"^'{LONG[:40]}' is empty$"),
    ],
)
def test_base64_that_is_refused(text: str, message: str) -> None:
    with pytest.raises(FetchError, match=message):
        decode_base64(text)


@pytest.mark.parametrize("size", [998, 999, 1000])
def test_base64_size(size: int) -> None:
    assert len(decode_base64(base64.b64encode(b"x" * size).decode(), SMALL)) == size
    with pytest.raises(FetchError, match="'base64 text' holds 1001 bytes; the limit is 1000"):
        decode_base64(base64.b64encode(b"x" * 1001).decode(), SMALL)


def test_text_without_a_scheme() -> None:
    data = bytes(range(60))
    assert fetch(base64.b64encode(data).decode()) == data
    name = "a long name of a picture that is not there at all"
    for text in (name, name.replace(" ", "_"), name.replace(" ", "\0")):
        with pytest.raises(FetchError, match=r"; nor is it the path of an existing file$"):
            fetch(text)
    with pytest.raises(FetchError, match=r"; and local files are not read here$"):
        fetch(name, FetchLimits(allow_paths=False))


def test_few_letters_are_a_path() -> None:
    assert fetch("A" * 32) == bytes(24)
    with pytest.raises(FetchError, match=f"^no such file: '{'A' * 31}'$"):
        fetch("A" * 31)


def test_messages_are_short_and_hold_no_base64() -> None:
    text = base64.b64encode(bytes(range(256)) * 40).decode()
    for source in (
        text + "*",
        f"data:image/png;base64,{text}*",
        "/".join(["folder"] * 300) + ".png",
    ):
        with pytest.raises(FetchError) as caught:
            fetch(source)
        assert len(str(caught.value)) < 200
        assert text[:40] not in str(caught.value)
