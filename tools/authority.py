"""A site's own certificate authority: one folder, made by one command, that says who is who.

The folder holds ``ca.pem`` and ``ca.key`` (signs certificates), ``tokens.pub`` and ``tokens.key``
(signs tokens), ``revoked`` (what counts no more) and ``issued.jsonl`` (what was ever issued). The
two keys stay where they were made; servers need ``ca.pem``, ``tokens.pub`` and ``revoked``.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protos.access import tokens
from protos.access.errors import CredentialsError
from protos.access.roles import NAME, Role, identity_uri
from tools.errors import UsageError

AUTHORITY_YEARS = 10
#: What certificates and tokens are valid for unless somebody says otherwise.
CERTIFICATE_DAYS = 825
TOKEN_DAYS = 30

_DAY_S = 86_400
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Issued:
    """A line of the ledger: ``kind`` is certificate or token, ``entry`` its line on the revocation
    list, ``expires`` Unix seconds."""

    kind: str
    name: str
    role: str
    entry: str
    expires: int


class Authority:
    """The authority in a folder. Open it with `open` or make it with `ensure`."""

    def __init__(self, folder: Path, trust_domain: str) -> None:
        self.folder = folder
        self.trust_domain = trust_domain

    @classmethod
    def ensure(cls, folder: Path, trust_domain: str = "ratchet") -> tuple[Authority, bool]:
        """The authority in ``folder``, made there unless there is one; and whether it was made."""
        authority = cls(folder, trust_domain)
        if (folder / "ca.pem").exists():
            return authority, False
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        ca, signer = ec.generate_private_key(ec.SECP256R1()), Ed25519PrivateKey.generate()
        _write_private(folder / "ca.key", ca)
        _write_private(folder / "tokens.key", signer)
        public = signer.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        write_whole(folder / "tokens.pub", public, 0o644)
        (folder / "revoked").touch()
        # Last: where it is, the rest is too.
        write_whole(folder / "ca.pem", _pem(_self_signed(ca, trust_domain)), 0o644)
        return authority, True

    @classmethod
    def open(cls, folder: Path, trust_domain: str = "ratchet") -> Authority:
        """The authority in ``folder``. Raises UsageError when there is none."""
        if not (folder / "ca.pem").exists():
            raise UsageError(f"no authority in {folder}; make one with `ratchet keys init`")
        return cls(folder, trust_domain)

    def server(self, out: Path, hosts: Sequence[str]) -> None:
        """Write server.pem, server.key, ca.pem and what a server needs for tokens into ``out``.

        ``hosts`` are the names and addresses under which clients reach it. Raises UsageError for
        one that is neither.
        """
        names = [_host(host) for host in hosts]
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        self._certificate(out, "server", hosts[0], "server", names, usage, CERTIFICATE_DAYS)
        write_whole(out / "tokens.pub", (self.folder / "tokens.pub").read_bytes(), 0o644)

    def client(self, out: Path, name: str, role: Role, days: int = CERTIFICATE_DAYS) -> None:
        """Write client.pem, client.key and ca.pem for ``name`` into ``out``. Raises UsageError."""
        if re.fullmatch(NAME, name) is None:
            raise UsageError(
                f"name {name!r} has other characters than letters, digits, '.', '_' and '-'; choose another"
            )
        uri = x509.UniformResourceIdentifier(identity_uri(self.trust_domain, role, name))
        usage = [ExtendedKeyUsageOID.CLIENT_AUTH]
        self._certificate(out, "client", name, role.name.lower(), [uri], usage, days)

    def token(self, name: str, role: Role, days: float = TOKEN_DAYS) -> tokens.Token:
        """A new token. Raises UsageError for a name that is none."""
        key = _read_private(self.folder / "tokens.key")
        assert isinstance(key, Ed25519PrivateKey)
        expires = round(time.time() + days * _DAY_S)
        try:
            token = tokens.issue(key, self.trust_domain, name, role, expires)
        except ValueError as error:
            raise UsageError(f"{error}; choose another") from None
        self._note(Issued("token", name, role.name.lower(), f"token:{token.id}", expires))
        return token

    @property
    def issued(self) -> list[Issued]:
        """Everything ever issued, oldest first."""
        path = self.folder / "issued.jsonl"
        if not path.exists():
            return []
        try:
            return [Issued(**json.loads(line)) for line in path.read_text().splitlines()]
        except (ValueError, TypeError) as error:
            raise UsageError(f"{path} is damaged ({error}); restore it from a copy") from None

    @property
    def revoked(self) -> frozenset[str]:
        """The entries of the revocation list."""
        return frozenset((self.folder / "revoked").read_text().split())

    def revoke(self, name: str) -> list[Issued]:
        """Put everything that was issued to ``name`` (or one entry) on the list; what was added.

        Raises UsageError when nothing was issued to that name.
        """
        meant = [one for one in self.issued if name in (one.name, one.entry)]
        if not meant:
            raise UsageError(f"nothing was issued to {name!r}; see `ratchet keys show`")
        before = self.revoked
        added = [one for one in meant if one.entry not in before]
        lines = sorted(before | {one.entry for one in added})
        write_whole(self.folder / "revoked", "".join(f"{line}\n" for line in lines).encode(), 0o644)
        return added

    def _certificate(
        self,
        out: Path,
        stem: str,
        name: str,
        role: str,
        names: Sequence[x509.GeneralName],
        usage: list[x509.ObjectIdentifier],
        days: int,
    ) -> None:
        signer = _read_private(self.folder / "ca.key")
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        ca = x509.load_pem_x509_certificate((self.folder / "ca.pem").read_bytes())
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        expires = min(now + datetime.timedelta(days=days), ca.not_valid_after_utc)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])]))
            .issuer_name(ca.subject)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))  # clocks differ
            .not_valid_after(expires)
            .public_key(key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .sign(signer, hashes.SHA256())
        )
        entry = f"cert:{certificate.serial_number:x}"
        # Noted first: what cannot be named later cannot be revoked.
        self._note(Issued("certificate", name, role, entry, round(expires.timestamp())))
        out.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write_private(out / f"{stem}.key", key)
        write_whole(out / f"{stem}.pem", _pem(certificate), 0o644)
        write_whole(out / "ca.pem", (self.folder / "ca.pem").read_bytes(), 0o644)

    def _note(self, issued: Issued) -> None:
        with (self.folder / "issued.jsonl").open("a") as file:
            file.write(json.dumps(asdict(issued)) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _self_signed(key: ec.EllipticCurvePrivateKey, trust_domain: str) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{trust_domain} authority")])
    now = datetime.datetime.now(datetime.UTC)
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=365 * AUTHORITY_YEARS))
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if _HOST.fullmatch(host) is None:
        raise UsageError(f"{host!r} is neither a host name nor an address; give one as in robot.local")
    return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write_private(path: Path, key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> None:
    data = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_whole(path, data, 0o600)


def _read_private(path: Path) -> object:
    if path.stat().st_mode & 0o077:
        raise CredentialsError(
            f"{path} is readable by others", "chmod 600 it, or make a new authority if it leaked"
        )
    try:
        return serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise CredentialsError(f"{path} is no private key in PEM form ({error})", "restore it") from None


def write_whole(path: Path, data: bytes, mode: int) -> None:
    """Replace a file as a whole: never readable by more than ``mode`` says, never half there."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
