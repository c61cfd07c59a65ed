"""What is asked of a Kubernetes cluster, and how it can go wrong."""

from enum import StrEnum
from typing import Protocol

from cluster.kube.fleet import ClusterView, GroupChange


class Trouble(StrEnum):
    """Why a call did not do what it should. All of them are normal, and go on with the next round."""

    CONFLICT = "conflict"
    FORBIDDEN = "forbidden"
    MISSING = "missing"
    INVALID = "invalid"
    UNREACHABLE = "unreachable"


class KubeError(Exception):
    """A call that failed. `trouble` says how; nothing is known of what it did where that is `unreachable`."""

    def __init__(self, trouble: Trouble, what: str) -> None:
        super().__init__(what)
        self.trouble = trouble


class ClusterApi(Protocol):
    """A RayCluster in a Kubernetes cluster. Every call blocks, and raises KubeError."""

    def read(self) -> ClusterView:
        """The object and its pods now; remembers which version of the object that was."""

    def write(self, changes: tuple[GroupChange, ...]) -> None:
        """Changes worker groups of the version that was read last; a conflict where there is a newer one."""

    def note(self, reason: str, message: str, is_warning: bool) -> None:
        """Tells people, by an Event of the object."""


class Leadership(Protocol):
    """Whether this process is the one that may write."""

    def holds(self) -> bool:
        """Asks for it, or renews it; blocks, and raises KubeError."""

    def release(self) -> None:
        """Gives it up where it is ours, so that the next one need not wait; blocks, and raises KubeError."""
