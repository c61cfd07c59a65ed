"""Flags of commands that call a running server: where it is, and who calls."""

import argparse
import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import ConfigError

if TYPE_CHECKING:
    from cluster.gateway.client import Credentials

KEY_VARIABLE = "PENSTOCK_API_KEY"


def add_client_flags(parser: argparse.ArgumentParser) -> None:
    """The key and the certificates; addresses are each command's own."""
    group = parser.add_argument_group("who calls")
    group.add_argument(
        "--api-key-file",
        default=None,
        metavar="FILE",
        help=f"the key's file (default: the environment's {KEY_VARIABLE}); a key never stands on a command line",
    )
    group.add_argument("--tls", action="store_true", help="talk TLS, trusting the system's authorities")
    group.add_argument("--tls-ca", default=None, metavar="FILE", help="talk TLS, trusting this authority (PEM)")
    group.add_argument("--tls-cert", default=None, metavar="FILE", help="our own certificate, where the server asks")
    group.add_argument("--tls-key", default=None, metavar="FILE", help="its key")


def credentials(args: argparse.Namespace) -> "Credentials":
    """What the flags say. Raises ConfigError."""
    from cluster.gateway.client import Credentials
    from cluster.gateway.tls import client_credentials

    paths = (args.tls_ca, args.tls_cert, args.tls_key)
    ca, cert, key = (None if path is None else Path(path).expanduser() for path in paths)
    wants_tls = args.tls or any(paths)
    return Credentials(key_of(args), client_credentials(ca, cert, key) if wants_tls else None)


def ssl_context(args: argparse.Namespace) -> ssl.SSLContext:
    """The certificates for HTTPS. Raises ConfigError."""
    try:
        context = ssl.create_default_context(cafile=_path(args.tls_ca))
        if args.tls_cert is not None:
            context.load_cert_chain(str(_path(args.tls_cert)), _path(args.tls_key))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError([f"--tls-ca, --tls-cert or --tls-key cannot be used: {error}"]) from error
    return context


def _path(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser())


def key_of(args: argparse.Namespace) -> str:
    """The key; empty where none is shown. Raises ConfigError."""
    if args.api_key_file is None:
        return os.environ.get(KEY_VARIABLE, "").strip()
    try:
        return Path(args.api_key_file).expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"--api-key-file {args.api_key_file} cannot be read: {error}"]) from error
