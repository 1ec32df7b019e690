"""Which addresses a URL may lead to."""

import socket

from smolvlm_mlx.errors import FetchError
from smolvlm_mlx.inputs.addresses import check_url, is_public, public_addresses

import pytest

NOT_PUBLIC = """
127.0.0.1 127.9.9.9 0.0.0.0 10.0.0.1 172.16.0.1 192.168.1.1 100.64.0.1
169.254.169.254 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255 198.18.0.1 192.0.2.1
:: ::1 fe80::1 fe80::1%eth0 fc00::1 fd00:ec2::254 ff02::1 2001:db8::1
::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::127.0.0.1
64:ff9b::7f00:1 64:ff9b::808:808 2002:7f00:1:: 2002:a00:1::1 192.88.99.1 fec0::1
""".split()


LONG = "folder/" * 20


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_address_that_is_not_public(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_public(address)
    found = [(2, 1, 6, "", (address, 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(FetchError, match="not on the public internet"):
        public_addresses(check_url("http://example.com/a.png"))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8"]
)
def test_address_that_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://example.com/a", "only http and https"),
        (f"ftp://a.b/{LONG}a.png", r"^URL 'ftp://a\.b/folder/.*\.\.\.' has scheme 'ftp'; only"),
        (f"file:///{LONG}a.png", r"^URL '\.\.\..*/folder/a\.png' has scheme 'file'; only"),
        ("http://user:secret@example.com/", "user name or password"),
        ("http://user@example.com/", "user name or password"),
        ("http:///a.png", "names no host"),
        ("http://example.com:0/", "names no port"),
        ("http://example.com:99999/", "is not a URL"),
        ("http://[::1/", "is not a URL"),
        ("http://exam ple.com/", "white space"),
        ("http://example.com/a\r\nHost: b", "white space"),
        (f"http://{'a' * 70}.com/", "is not a URL"),
    ],
)
def test_url_that_is_refused(url: str, message: str) -> None:
    with pytest.raises(FetchError, match=message) as caught:
        check_url(url)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("http://example.com/", ("example.com", 80)),
        ("https://example.com/", ("example.com", 443)),
        ("https://example.com:80/", ("example.com", 80)),
        ("http://[2001:db8::1]:81/", ("2001:db8::1", 81)),
        ("http://Bücher.example/", ("xn--bcher-kva.example", 80)),
    ],
)
def test_addresses_are_asked_for_once_with_their_port(
    url: str, asked: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    def resolve(host: str, port: int, **options: object) -> list[tuple[object, ...]]:
        calls.append((host, port, options))
        return [(2, 1, 6, "", (address, port)) for address in ("8.8.8.8", "1.1.1.1", "8.8.8.8")]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert public_addresses(check_url(url)) == ["8.8.8.8", "1.1.1.1"]
    assert calls == [(*asked, {"type": socket.SOCK_STREAM})]


@pytest.mark.parametrize(
    ("found", "said"),
    [([], "no address"), (["10.0.0.1", "8.8.8.8", "10.0.0.2", "10.0.0.3"], "10.0.0.1, 10.0.0.2")],
)
def test_two_addresses_are_named_of_those_that_are_not_public(
    found: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [(2, 1, 6, "", (address, 80)) for address in found]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: entries)
    with pytest.raises(FetchError) as caught:
        public_addresses(check_url("http://example.com/"))
    assert str(caught.value) == f"host 'example.com' is not on the public internet ({said})"
