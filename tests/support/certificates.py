"""Certificates for the tests: authorities of our own, and what they sign, good and bad."""

from __future__ import annotations

import datetime
import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme

DAY = datetime.timedelta(days=1)


class Authority:
    """A CA; its certificate lies in `file`."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._ca = trustme.CA(organization_name=name)
        self._directory = directory
        self._name = name
        self.file = directory / f"{name}.pem"
        self.pem = self._ca.cert_pem.bytes()
        self.key = self._ca.private_key_pem.bytes()
        self.der = ssl.PEM_cert_to_DER_cert(self.pem.decode())
        self.file.write_bytes(self.pem)

    def issue(self, *names: str, days: tuple[int, int] = (-1, 30)) -> Certificate:
        """A certificate for these host names and addresses, valid from the one day to the other."""
        now = datetime.datetime.now(datetime.timezone.utc)
        leaf = self._ca.issue_cert(
            *names, not_before=now + days[0] * DAY, not_after=now + days[1] * DAY
        )
        place = self._directory / f"{self._name}-{names[0]}-{days[0]}-{days[1]}"
        certificate = Certificate(self, place.with_suffix(".pem"), place.with_suffix(".key"))
        certificate.file.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        certificate.key.write_bytes(leaf.private_key_pem.bytes())
        return certificate


@dataclass(frozen=True)
class Certificate:
    """What a server, or a client, shows: its certificate, and the key to it."""

    authority: Authority
    file: Path
    key: Path


def self_signed(directory: Path) -> Certificate:
    """A CA's certificate that a server uses as its own, as `openssl req -x509` makes them."""
    authority = Authority(directory, "own")
    key = directory / "own.key"
    key.write_bytes(authority.key)
    return Certificate(authority, authority.file, key)
