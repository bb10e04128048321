"""Certificates for tests, from authorities that exist as long as they do."""

from pathlib import Path
from typing import NamedTuple

import trustme


class Certificates(NamedTuple):
    """PEM files."""

    ca: Path
    """Of the server's authority."""
    server: Path
    server_key: Path
    client_ca: Path
    """Of the clients' authority, which is another."""
    client: Path
    client_key: Path


def make_certificates(directory: Path) -> Certificates:
    """A server on this machine, and a client that it can know."""
    files = Certificates(
        *(directory / name for name in ("ca.pem", "server.pem", "server.key", "clients.pem", "client.pem", "client.key"))
    )
    for authority, name, ca, certificate, key in (
        (trustme.CA(), "localhost", files.ca, files.server, files.server_key),
        (trustme.CA(), "client.example.org", files.client_ca, files.client, files.client_key),
    ):
        issued = authority.issue_cert(name)
        authority.cert_pem.write_to_path(str(ca))
        issued.private_key_pem.write_to_path(str(key))
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    return files
