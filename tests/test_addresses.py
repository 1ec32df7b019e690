"""Which addresses a URL may lead to."""

import ipaddress
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


# IANA's special-purpose registries, October 2025, with multicast and site-local addresses: whether
# ours is public. Where it is not as "Globally Reachable" there, it says why.
REGISTRY = {
    "0.0.0.0/8": False,
    "0.0.0.0/32": False,
    "10.0.0.0/8": False,
    "100.64.0.0/10": False,
    "127.0.0.0/8": False,
    "169.254.0.0/16": False,
    "172.16.0.0/12": False,
    "192.0.0.0/24": False,
    "192.0.0.0/29": False,
    "192.0.0.8/32": False,
    "192.0.0.9/32": False,  # anycast to the nearest port control server, which is a router's
    "192.0.0.10/32": False,  # anycast to the nearest TURN server
    "192.0.0.170/32": False,
    "192.0.0.171/32": False,
    "192.0.2.0/24": False,
    "192.31.196.0/24": True,
    "192.52.193.0/24": True,
    "192.88.99.0/24": False,
    "192.168.0.0/16": False,
    "192.175.48.0/24": True,
    "198.18.0.0/15": False,
    "198.51.100.0/24": False,
    "203.0.113.0/24": False,
    "224.0.0.0/4": False,
    "240.0.0.0/4": False,
    "255.255.255.255/32": False,
    "::/3": False,  # with all that wraps an IPv4 address, NAT64 among them, but mapped ones
    "::/128": False,
    "::1/128": False,
    "64:ff9b::/96": False,  # NAT64, of any IPv4 address
    "64:ff9b:1::/48": False,
    "100::/64": False,
    "100:0:0:1::/64": False,
    "2001::/23": False,
    "2001::/32": False,
    "2001:1::1/128": False,  # the three anycasts, as of IPv4
    "2001:1::2/128": False,
    "2001:1::3/128": False,
    "2001:2::/48": False,
    "2001:3::/32": False,  # AMT, a relay of the provider's
    "2001:4:112::/48": False,  # AS112, within 2001::/23
    "2001:10::/28": False,
    "2001:20::/28": False,  # ORCHID, no addresses of the network
    "2001:30::/28": False,  # drones, none either
    "2001:db8::/32": False,
    "2002::/16": False,
    "2620:4f:8000::/48": True,
    "3fff::/20": False,
    "4000::/2": False,
    "5f00::/16": False,
    "8000::/1": False,
    "fc00::/7": False,
    "fe80::/10": False,
    "fec0::/10": False,
    "ff00::/8": False,
}
NETWORKS = {ipaddress.ip_network(network): public for network, public in REGISTRY.items()}


def edges() -> list[str]:
    """The first and last address of each network, and those beside it."""
    found = set[str]()
    for network in NETWORKS:
        first, last = int(network[0]), int(network[-1])
        for number in {first - 1, first, first + 1, (first + last) // 2, last - 1, last, last + 1}:
            if 0 <= number < 2**network.max_prefixlen:
                found.add(str(type(network[0])(number)))
    return sorted(found)


@pytest.mark.parametrize("address", edges())
def test_the_registries_of_special_addresses(address: str) -> None:
    ip = ipaddress.ip_address(address)
    within = [each for each in NETWORKS if each.version == ip.version and ip in each]
    public = NETWORKS[max(within, key=lambda each: each.prefixlen)] if within else True
    assert is_public(address) == public
    assert is_public(f"{address}%eth0" if ip.version == 6 else address) == public
    if ip.version == 4:
        assert is_public(f"::ffff:{address}") == public
        wrapped = f"{int(ip) >> 16:x}:{int(ip) & 0xFFFF:x}"
        high, low = wrapped.split(":")
        for form in (
            f"::{wrapped}",
            f"64:ff9b::{wrapped}",
            f"64:ff9b:1::{wrapped}",
            f"2002:{wrapped}::1",
            f"2001:0:{wrapped}::{wrapped}",
            f"::ffff:0:{wrapped}",
            f"fe80::5efe:{high}:{low}",
        ):
            assert not is_public(form), form


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
