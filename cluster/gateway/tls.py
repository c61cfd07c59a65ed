"""The certificate of the public servers, and whom they trust: files that are read and checked once, at the start."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TLSFiles:
    """PEM files. `client_ca`: clients must show a certificate that it signed (mTLS); None: any client may connect."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    def check(self) -> None:
        """Raises ConfigError where a file cannot be read, or key and certificate do not belong together."""
        problems = [
            problem
            for flag, path in (("--tls-cert", self.cert), ("--tls-key", self.key), ("--tls-client-ca", self.client_ca))
            if path is not None and (problem := _unreadable(flag, path))
        ]
        if problems:
            raise ConfigError(problems)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.cert, self.key, password=_no_password)
        except (ssl.SSLError, ValueError) as error:
            why = f"--tls-cert {self.cert} and --tls-key {self.key} are no certificate and its unencrypted key in PEM"
            raise ConfigError([f"{why}: {error}"]) from error
        if self.client_ca is None:
            return
        try:
            context.load_verify_locations(self.client_ca)
        except (ssl.SSLError, ValueError) as error:
            raise ConfigError([f"--tls-client-ca {self.client_ca} has no certificate in PEM: {error}"]) from error

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For a gRPC server. Raises ConfigError as `check` does."""
        self.check()
        return grpc.ssl_server_credentials(
            [(self.key.read_bytes(), self.cert.read_bytes())],
            root_certificates=None if self.client_ca is None else self.client_ca.read_bytes(),
            require_client_auth=self.client_ca is not None,
        )


def client_credentials(ca: Path | None, cert: Path | None = None, key: Path | None = None) -> grpc.ChannelCredentials:
    """For a gRPC client: whom it trusts (None: the system's), and what it shows of itself. Raises ConfigError."""
    problems = [
        problem
        for flag, path in (("--tls-ca", ca), ("--tls-cert", cert), ("--tls-key", key))
        if path is not None and (problem := _unreadable(flag, path))
    ]
    if (cert is None) != (key is None):
        problems.append("--tls-cert and --tls-key go together")
    if problems:
        raise ConfigError(problems)
    roots, chain, secret = (None if path is None else path.read_bytes() for path in (ca, cert, key))
    return grpc.ssl_channel_credentials(roots, secret, chain)


def _no_password() -> str:
    raise ValueError("the key is encrypted")


def _unreadable(flag: str, path: Path) -> str:
    try:
        with path.open("rb"):
            return ""
    except OSError as error:
        return f"{flag} {path} cannot be read: {error.strerror}"
