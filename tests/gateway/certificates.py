"""Certificates of an hour, made by the machine's own openssl; tests skip, and say so, where it has none."""

import shutil
import subprocess
from pathlib import Path

import pytest

from cluster.gateway.tls import TLSFiles

OPENSSL = shutil.which("openssl")
needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")


class Authority:
    """One that signs certificates for `localhost`, in a folder of its own."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.ca = folder / f"{name}-ca.pem"
        self._key = folder / f"{name}-ca.key"
        self._name = name
        run("req", "-x509", *FRESH, "-keyout", self._key, "-out", self.ca, "-subj", f"/CN={name}", "-days", "1")

    def sign(self, who: str) -> TLSFiles:
        """A certificate with its key."""
        key, asked, cert = (self.folder / f"{self._name}-{who}.{end}" for end in ("key", "csr", "pem"))
        names = self.folder / "names.txt"
        names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        run("req", *FRESH, "-keyout", key, "-out", asked, "-subj", f"/CN={who}")
        signer = ("-CA", self.ca, "-CAkey", self._key, "-CAcreateserial", "-days", "1", "-extfile", names)
        run("x509", "-req", "-in", asked, "-out", cert, *signer)
        return TLSFiles(cert, key)


FRESH = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def run(*words: object) -> None:
    """One openssl command."""
    assert OPENSSL is not None
    subprocess.run([OPENSSL, *map(str, words)], check=True, capture_output=True, timeout=30)
