"""Says, before `make setup` starts it, what an installation is about to download, and which build of torch it found.

`python .ci/announce.py -c constraints.txt torch==2.13.0`: the arguments are pip's own. Standard library only.
"""

import json
import os
import subprocess
import sys
import urllib.parse
import urllib.request
from typing import Any

MB = 1 << 20


def planned(arguments: list[str]) -> list[dict[str, Any]]:
    """What pip would install; empty where pip cannot tell."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--report", "-", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return json.loads(run.stdout)["install"] if run.returncode == 0 else []


def size_bytes(url: str) -> int | None:
    """The size of a wheel; None where its server does not say."""
    if url.startswith("file:"):
        return os.path.getsize(urllib.parse.unquote(urllib.parse.urlparse(url).path))
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5) as answer:
            return int(answer.headers["Content-Length"])
    except (OSError, KeyError, TypeError, ValueError):
        return None


def build_of(packages: list[dict[str, Any]]) -> str:
    """`CPU build`, `CUDA build` or another word for the torch among the packages."""
    torch = next((p for p in packages if p["metadata"]["name"].lower() == "torch"), None)
    if torch is None:
        return "no torch"
    _, _, local = torch["metadata"]["version"].partition("+")
    if local:
        return "CPU build" if local == "cpu" else f"{local} build"
    names = {p["metadata"]["name"].lower() for p in packages}
    return "CUDA build" if any(name.startswith(("nvidia-", "cuda-")) for name in names) else "build without CUDA"


def main(arguments: list[str]) -> None:
    """Prints two or three lines; never fails, for it only tells."""
    packages = planned(arguments)
    if not packages:
        print("setup: pip could not say beforehand how much it will download")
        return
    sizes = [size_bytes(p["download_info"]["url"]) for p in packages]
    remote = [p["download_info"]["url"].startswith("http") for p in packages]
    known = sum(s for s, far in zip(sizes, remote, strict=True) if s and far)
    at_hand = sum(s for s, far in zip(sizes, remote, strict=True) if s and not far)
    more = "" if all(s is not None for s in sizes) else " or more"
    build = build_of(packages)
    amounts = f"{at_hand // MB:,} MB at hand, {known // MB:,} MB{more} to download"
    print(f"setup: torch is a {build}: {len(packages)} packages, {amounts}")
    if build == "CUDA build":
        print(
            "setup: without a GPU a far smaller CPU build does; README, 'Without a GPU', says how (Ctrl-C stops this)"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
