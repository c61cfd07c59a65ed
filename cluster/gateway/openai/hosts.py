"""The `host` of a request: sound, and on a server for this machine only, one of this machine's names."""

import ipaddress
import re
import socket
from collections.abc import Sequence

from cluster.gateway.errors_wire import echoed
from core.errors import RequestError

LOCAL_ENDINGS = (".localhost", ".local", ".internal")
"""Names that no page of the world can have, but containers and machines nearby do."""

_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


class HostCheck:
    """Refuses requests by their `host`. `is_local`: the server takes everybody who reaches it, from this machine only.

    A page that has its own name resolve to 127.0.0.1 would otherwise be let in by the reader's browser as one of ours.
    """

    def __init__(self, is_local: bool) -> None:
        self._is_local = is_local
        self._own = {"localhost", socket.gethostname().lower()}

    def check(self, hosts: Sequence[str]) -> None:
        """Raises RequestError. A request of HTTP/1.0 may have none."""
        found = _HOST.fullmatch(hosts[0]) if hosts else None
        if len(hosts) > 1 or (hosts and found is None):
            raise RequestError(f"host: {echoed(', '.join(hosts))} is no host", code="bad_request_line")
        if found is not None and self._is_local and not self._is_near(found.group(1).lower()):
            problem = f"host: {echoed(hosts[0])} is no name of this machine, and without keys nobody else is served"
            raise RequestError(problem, code="bad_request_line")

    def _is_near(self, name: str) -> bool:
        return name in self._own or name.endswith(LOCAL_ENDINGS) or is_address(name)


def is_address(name: str) -> bool:
    """Whether this is an address, not a name."""
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address that is bound; a name but `localhost` may be any."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)
