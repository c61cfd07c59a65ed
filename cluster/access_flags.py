"""Flags of who may call: keys, certificates, and addresses beyond loopback."""

import argparse
import ipaddress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.gateway.keys import AccessSettings
from cluster.gateway.limits import Limits
from core.errors import ConfigError

if TYPE_CHECKING:
    from cluster.gateway.tls import TLSFiles
    from cluster.service import ServiceConfig

NO_ADMIN = -1


def add_access_flags(parser: argparse.ArgumentParser) -> None:
    """Keys, TLS, and the operators' port."""
    group = parser.add_argument_group("access")
    group.add_argument(
        "--access-file",
        default=None,
        metavar="FILE",
        help="API keys by their hashes, tenants, limits and SLO classes (docs/security.md; `penstock keys new`)",
    )
    add_server_flags(group)
    group.add_argument(
        "--max-open-requests",
        type=int,
        default=Limits().max_streams,
        metavar="N",
        help="answers at once, every choice counted; more are refused with a time to come back",
    )
    group.add_argument(
        "--default-max-tokens",
        type=int,
        default=Limits().default_max_tokens,
        metavar="N",
        help="of answers whose request names no length",
    )
    group.add_argument(
        "--chat-template", default=None, metavar="FILE", help="a Jinja template instead of the model's own"
    )
    group.add_argument(
        "--generation-config",
        default="auto",
        metavar="FOLDER",
        help="whose generation_config.json gives temperature, top_p, top_k, min_p and repetition_penalty to requests "
        "that name none; auto: the model's own, vllm: nobody's",
    )
    group.add_argument("--admin-host", default="127.0.0.1", help="address that the operators' port binds")
    group.add_argument(
        "--admin-port",
        type=int,
        default=None,
        help="of `penstock status`, `role`, `ratio`, `drain`; 0 lets the kernel choose, -1: none (default: the one "
        "after --grpc-port)",
    )
    group.add_argument(
        "--admin-http-port",
        type=int,
        default=NO_ADMIN,
        help="serve operators over HTTP as well, on a port of its own at --admin-host; 0 lets the kernel choose, "
        "-1: none",
    )


def add_server_flags(group: "argparse._ArgumentGroup") -> None:
    """Of the public servers of any gateway: certificates, contracts, and whether anybody may call."""
    group.add_argument(
        "--insecure-no-keys",
        action="store_true",
        help="listen beyond loopback although no key is asked for; for a network that lets trusted callers in only",
    )
    group.add_argument(
        "--tls-cert", "--ssl-certfile", default=None, metavar="FILE", help="the servers' certificate chain, PEM"
    )
    group.add_argument("--tls-key", "--ssl-keyfile", default=None, metavar="FILE", help="its key, PEM, unencrypted")
    group.add_argument(
        "--tls-client-ca",
        "--ssl-ca-certs",
        default=None,
        metavar="FILE",
        help="clients must show a certificate that it signed (mTLS)",
    )
    group.add_argument(
        "--vllm-grpc",
        action="store_true",
        help="speak vLLM's gRPC engine contract on the gRPC port as well (needs the extra smg)",
    )


def with_access(config: "ServiceConfig", args: argparse.Namespace) -> "ServiceConfig":
    """A service with its keys, certificates and operators' port. Raises ConfigError with every problem."""
    if problems := access_problems(args):
        raise ConfigError(problems)
    access = access_settings(args)
    tls = server_tls(args)
    check_host(config.grpc_host, "--host", access.is_open, args)
    check_contract(args)
    limits = replace(config.limits, max_streams=args.max_open_requests, default_max_tokens=args.default_max_tokens)
    path = None if args.access_file is None else Path(args.access_file).expanduser()
    config = replace(config, access=access, access_file=path, tls=tls, limits=limits, vllm_grpc=args.vllm_grpc)
    template = None if args.chat_template is None else Path(args.chat_template).expanduser()
    config = replace(config, generation_config=args.generation_config, chat_template=template)
    return _with_operators(config, args)


def _with_operators(config: "ServiceConfig", args: argparse.Namespace) -> "ServiceConfig":
    """With the ports that change the cluster. Raises ConfigError."""
    from cluster.gateway.listening import Endpoint

    port = args.admin_port
    if port is None:
        port = config.grpc_port + 1 if 0 < config.grpc_port < 65535 else 0
    if port == NO_ADMIN and args.admin_http_port == NO_ADMIN:
        return config
    check_host(args.admin_host, "--admin-host", not config.access.has_admin, args)
    if port != NO_ADMIN:
        admin = Endpoint(args.admin_host, port, config.tls, "--admin-host or --admin-port")
        config = replace(config, admin=admin)
    if args.admin_http_port != NO_ADMIN:
        admin_http = Endpoint(args.admin_host, args.admin_http_port, config.tls, "--admin-host or --admin-http-port")
        config = replace(config, admin_http=admin_http)
    return config


def server_tls(args: argparse.Namespace) -> "TLSFiles | None":
    """The servers' certificate, read and checked. Raises ConfigError."""
    from cluster.gateway.tls import TLSFiles

    if problems := tls_problems(args):
        raise ConfigError(problems)
    if args.tls_cert is None:
        return None
    paths = (args.tls_cert, args.tls_key, args.tls_client_ca)
    cert, key, client_ca = (None if path is None else Path(path).expanduser() for path in paths)
    assert cert is not None and key is not None, "checked above"
    tls = TLSFiles(cert, key, client_ca)
    tls.check()
    return tls


def check_contract(args: argparse.Namespace) -> None:
    """Raises ConfigError where a contract is asked for whose extra is not installed."""
    if args.vllm_grpc and find_spec("smg_grpc_proto") is None:
        raise ConfigError(["--vllm-grpc needs the extra smg: pip install 'penstock[smg]'"])


def access_settings(args: argparse.Namespace) -> AccessSettings:
    """What the access file says; everybody may call without one. Raises ConfigError."""
    if args.access_file is None:
        return AccessSettings()
    from cluster.gateway.keys_file import read_access_file

    try:
        return read_access_file(Path(args.access_file).expanduser())
    except ConfigError as error:
        raise ConfigError([f"--access-file {problem}" for problem in error.problems]) from error


def access_problems(args: argparse.Namespace) -> list[str]:
    """What is wrong with the flags themselves, files aside."""
    found = tls_problems(args)
    if args.admin_port is not None and not NO_ADMIN <= args.admin_port <= 65535:
        found.append(f"--admin-port must be from 0 to 65535, or -1 for none, not {args.admin_port}")
    if not NO_ADMIN <= args.admin_http_port <= 65535:
        found.append(f"--admin-http-port must be from 0 to 65535, or -1 for none, not {args.admin_http_port}")
    for flag in ("max_open_requests", "default_max_tokens"):
        if getattr(args, flag) < 1:
            found.append(f"--{flag.replace('_', '-')} must be at least 1, not {getattr(args, flag)}")
    return found


def tls_problems(args: argparse.Namespace) -> list[str]:
    """Which of the three files are missing beside the others."""
    found = []
    if (args.tls_cert is None) != (args.tls_key is None):
        found.append("--tls-cert and --tls-key go together")
    if args.tls_client_ca is not None and args.tls_cert is None:
        found.append("--tls-client-ca needs --tls-cert and --tls-key")
    return found


def access_sentence(config: "ServiceConfig") -> str:
    """Who may call, in a line."""
    num_keys = len(config.access.keys)
    who = f"{num_keys} keys" if num_keys > 1 else "one key" if num_keys else "no key is asked for"
    how = (
        "in clear" if config.tls is None else "TLS" if config.tls.client_ca is None else "TLS, with client certificates"
    )
    return f"{who}; {how}"


def check_host(host: str, flag: str, is_open: bool, args: argparse.Namespace) -> None:
    """Nobody but this machine may call a server that asks for no key, unless that is wanted. Raises ConfigError."""
    if is_open and not args.insecure_no_keys and not is_loopback(host):
        why = f"{flag} {host} is open to other machines, and no key is asked for"
        raise ConfigError(
            [f"{why}: give --access-file (see `penstock keys new`), or --insecure-no-keys if you mean it"]
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; a name that is not `localhost` may be any."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
