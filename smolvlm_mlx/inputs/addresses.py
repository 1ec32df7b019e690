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

# ipaddress (Python 3.11) counts these as global. The first two carry an IPv4 address that may be a
# private one.
NOT_PUBLIC = (
    ipaddress.ip_network("64:ff9b::/96"),  # NAT64, RFC 6052
    ipaddress.ip_network("2002::/16"),  # 6to4, RFC 3056
    ipaddress.ip_network("192.88.99.0/24"),  # 6to4 relays, RFC 7526
    ipaddress.ip_network("fec0::/10"),  # site-local, RFC 3879
)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet: not private, local, shared, multicast or
    reserved, and not a form that wraps an IPv4 address, except an IPv4-mapped one, which is judged
    by what it maps."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return ip.is_global and not (
        ip.is_multicast or ip.is_reserved or any(ip in network for network in NOT_PUBLIC)
    )


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
