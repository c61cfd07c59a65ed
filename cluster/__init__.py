"""Penstock's processes and the gateway in front of them."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
"""gRPC reads it when it is imported: a client's leaving, or a fork, is no news on somebody's terminal."""
