"""Which addresses a URL may lead to: those of the public internet.

A URL may come from someone who wants to reach what only this machine can reach. So the name is
resolved once, every address it has must be a public one, and the connection is made to that checked
address, not to the name: a second, different answer of the resolver (DNS rebinding) is never asked
for. Redirects go through the same check.
"""

import ipaddress
import socket
from urllib.parse import SplitResult, urlsplit

from smolvlm_mlx.errors import FetchError, quote

# What of IANA's special-purpose registries, and of multicast, is not of the public internet, or may
# lead to an address that is not: `is_global` of ipaddress differs between versions of Python.
NOT_PUBLIC_V4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network, RFC 791
        "10.0.0.0/8",  # private, RFC 1918
        "100.64.0.0/10",  # shared by a provider's customers, RFC 6598
        "127.0.0.0/8",  # loopback, RFC 1122
        "169.254.0.0/16",  # link-local, RFC 3927
        "172.16.0.0/12",  # private, RFC 1918
        "192.0.0.0/24",  # protocol assignments, RFC 6890
        "192.0.2.0/24",  # documentation, RFC 5737
        "192.88.99.0/24",  # 6to4 relays, RFC 7526
        "192.168.0.0/16",  # private, RFC 1918
        "198.18.0.0/15",  # benchmarking, RFC 2544
        "198.51.100.0/24",  # documentation, RFC 5737
        "203.0.113.0/24",  # documentation, RFC 5737
        "224.0.0.0/4",  # multicast, RFC 5771
        "240.0.0.0/4",  # reserved, and broadcast, RFC 1112
    )
)
PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")  # global unicast; nothing outside is, RFC 4291
NOT_PUBLIC_V6 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, among them Teredo and ORCHID, RFC 2928
        "2001:db8::/32",  # documentation, RFC 3849
        "2002::/16",  # 6to4, RFC 3056
        "3fff::/20",  # documentation, RFC 9637
    )
)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet: not private, local, shared, multicast or
    reserved, and not a form that wraps an IPv4 address, except an IPv4-mapped one, which is judged
    by what it maps."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in network for network in NOT_PUBLIC_V4)
    return ip in PUBLIC_V6 and not any(ip in network for network in NOT_PUBLIC_V6)


def check_url(url: str) -> SplitResult:
    """The parts of an http(s) URL, its host in ASCII. Raises FetchError."""
    if any(character <= " " or character == "\x7f" for character in url):
        raise FetchError(
            f"URL {quote(url)} holds white space or control characters; write them as %20 and so on"
        )
    try:
        parts = urlsplit(url)
        port, host = parts.port, (parts.hostname or "").encode("idna").decode()
    except ValueError as error:
        raise FetchError(f"{quote(url)} is not a URL: {error}") from None
    if parts.scheme not in ("http", "https"):
        named = quote(url, end=True) if parts.scheme == "file" else quote(url)
        raise FetchError(
            f"URL {named} has scheme {quote(parts.scheme)}; only http and https are fetched"
        )
    if not host or port == 0:
        raise FetchError(f"URL {quote(url)} names no {'port' if host else 'host'} to connect to")
    if "@" in parts.netloc:
        raise FetchError(
            f"URL of host {quote(host)} holds a user name or password; remove the part before the @"
        )
    netloc = f"[{host}]" if ":" in host else host
    return parts._replace(netloc=netloc if port is None else f"{netloc}:{port}")


def public_addresses(parts: SplitResult) -> list[str]:
    """All addresses of a URL's host; FetchError if one of them is not public."""
    host = parts.hostname or ""
    try:
        found = socket.getaddrinfo(
            host, parts.port or (443 if parts.scheme == "https" else 80), type=socket.SOCK_STREAM
        )
    except (OSError, UnicodeError) as error:
        raise FetchError(f"host {quote(host)} cannot be found: {quote(error)}") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    refused = [address for address in addresses if not is_public(address)]
    if refused or not addresses:
        raise FetchError(
            f"host {quote(host)} is not on the public internet "
            f"({', '.join(refused[:2]) or 'no address'})"
        )
    return addresses
