"""The network interface that tensors go over.

Gloo by itself takes the one that the machine's own name leads to, which is often loopback (127.0.1.1 on Debian), where
no other machine finds it.
"""

import ipaddress
import os
import socket
from collections.abc import Sequence

import psutil

INTERFACE = "GLOO_SOCKET_IFNAME"


def address_towards(address: str) -> str:
    """This machine's own address on the way to another, to which nothing is sent; "" where there is no way."""
    try:
        places = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)
    except OSError:
        return ""
    for family, kind, protocol, _, place in places:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(place)
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return ""


def set_interface(own: str, all_of_them: Sequence[str]) -> None:
    """Tells gloo by which interface the others are reached, unless the environment does.

    Args:
        own: This machine's address on the way to where all meet.
        all_of_them: Those of all processes. Who is at home there may have loopback for its own, and takes the way to
            another then.
    """
    if INTERFACE in os.environ:
        return
    if _is_loopback(own):
        towards = (address_towards(other) for other in all_of_them if other and not _is_loopback(other))
        own = next((address for address in towards if address and not _is_loopback(address)), own)
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == own.partition("%")[0] for one in addresses):
            os.environ[INTERFACE] = name
            return


def _is_loopback(address: str) -> bool:
    return not address or ipaddress.ip_address(address.partition("%")[0]).is_loopback
