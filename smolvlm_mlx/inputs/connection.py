"""One HTTP request to addresses that were checked before, within a deadline.

Knows nothing about files, limits of size or redirects. Errors are those of socket, ssl and http.client.
"""

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from urllib.parse import SplitResult

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
