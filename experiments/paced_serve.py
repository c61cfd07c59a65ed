"""`penstock serve` whose nodes are paced (`experiments.paced_node`)."""

import sys

import cluster.live.cluster
from cluster.cli import main
from cluster.live.config import LiveConfig
from cluster.live.launcher import Launcher
from cluster.live.local import LocalLauncher


def _paced(config: LiveConfig) -> Launcher:
    return LocalLauncher(config.node.num_threads, program="experiments.paced_node")


if __name__ == "__main__":
    cluster.live.cluster.make_launcher = _paced  # the command line knows one kind of node only
    sys.exit(main(sys.argv[1:]))
