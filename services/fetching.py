"""Pictures from elsewhere, by their address: only from hosts that the platform's settings name, and only over HTTPS.

Whoever can make a server fetch an address of their choosing can see what only that server can reach. So a host must be on the
list, all that its name stands for must be public, the connection goes to what was checked (the name is not looked up again),
and nobody is redirected.

A host may be slow: nothing here waits on a thread that others need.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from ferret_core.images import ImageError

_SECONDS = 10.0
_LOOKING_UP = ThreadPoolExecutor(4, "look-up")  # names; not asyncio's own threads, on which all else waits
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NOT_PUBLIC = tuple(map(ipaddress.IPv6Network, ("64:ff9b:1::/48", "fec0::/10", "::/96")))  # which Python takes for public


async def fetch_image(url: str, allowed_hosts: Collection[str], max_bytes: int, seconds: float = _SECONDS) -> bytes:
    """What is at an address, encoded as it is.

    Args:
        url: `https://HOST/...`.
        allowed_hosts: names, exactly; `HOST:PORT` for another port than 443.
        max_bytes: largest image.
        seconds: that it may take in all.

    Raises:
        ImageError: the address is not allowed, or there is no image of that size there; says which.
    """
    address = _check(url, allowed_hosts)
    certificates = await asyncio.to_thread(ssl.create_default_context)  # reads a file of some hundred
    try:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(resolver=_PublicResolver(), ssl=certificates),
                timeout=aiohttp.ClientTimeout(total=seconds),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,  # a few bytes may stand for gigabytes
            ) as session,
            session.get(address, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise ImageError(f"image_url: {address.host} answered with {response.status}; redirects are not followed")
            data = bytearray()
            async for chunk in response.content.iter_any():
                data += chunk
                if len(data) > max_bytes:
                    raise ImageError(f"image_url: more than {max_bytes:,} bytes at {address.host}")
            return bytes(data)
    except TimeoutError:
        raise ImageError(f"image_url: {address.host} took longer than {seconds:g} s; send its bytes instead") from None
    except (aiohttp.ClientError, OSError):  # no more: it would tell what can be reached from here
        raise ImageError(f"image_url: could not be fetched from {address.host}; send its bytes instead") from None


def _check(url: str, allowed_hosts: Collection[str]) -> URL:
    """An address that is allowed, as the connection will read it."""
    try:
        address = URL(url)
        if address.scheme != "https" or not address.host or address.user is not None:
            raise ValueError
    except ValueError:
        raise ImageError("image_url: must be https://HOST/...") from None
    if not allowed_hosts:
        raise ImageError("image_url: this platform fetches no pictures; send its bytes")
    host = address.host if address.port == 443 else f"{address.host}:{address.port}"
    if host not in allowed_hosts or _is_address(address.host):  # no name is looked up, and checked, for one
        raise ImageError(f"image_url: pictures are fetched only from {', '.join(allowed_hosts)}; send its bytes instead")
    return address


class _PublicResolver(AbstractResolver):
    """Finds hosts whose every address is public: one that is not may be the next in turn."""

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        """As the base class. Raises `OSError` for a host that is not public."""
        look_up = partial(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        found = await asyncio.get_running_loop().run_in_executor(_LOOKING_UP, look_up)
        results = [
            ResolveResult(hostname=host, host=str(address[0]), port=port, family=kind, proto=proto, flags=socket.AI_NUMERICHOST)
            for kind, _, proto, _, address in found
        ]
        if not (results and all(is_public(result["host"]) for result in results)):
            raise OSError(f"{host} is not a public host")
        return results

    async def close(self) -> None:
        """Nothing to close."""


def is_public(address: str) -> bool:
    """Whether an IP address is one that anybody on the internet can reach; those inside others count as well."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip.sixtofour or (ip.teredo or (None, None))[1] or _translated(ip) or ip
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _NOT_PUBLIC)


def _translated(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """What a NAT64 gateway makes of an address."""
    return ipaddress.IPv4Address(ip.packed[-4:]) if ip in _NAT64 else None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
