"""Writes the Python of every `.proto` beside this file: `python -m cluster.api.generate`, from the repository's root.

The generated files are committed, so that running Penstock needs no compiler; `--check` says whether they are current.
"""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ("cluster/api/v1/post.proto", "cluster/api/v1/inference.proto", "cluster/api/v1/admin.proto")


def main(arguments: list[str]) -> int:
    """Generates in place, or with `--check` compares with what is there; returns an exit status."""
    protos = [proto for proto in PROTOS if (ROOT / proto).exists()]
    if arguments == ["--check"]:
        return _check(protos)
    if arguments:
        print("usage: python -m cluster.api.generate [--check]", file=sys.stderr)
        return 2
    return _generate(protos, ROOT)


def _check(protos: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        status = _generate(protos, Path(folder))
        stale = [file for file in _written(Path(folder)) if not _same(ROOT / file, Path(folder) / file)]
    for file in stale:
        print(f"{file} is not what its .proto gives; run: python -m cluster.api.generate", file=sys.stderr)
    return status or int(bool(stale))


def _written(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*.py*"))


def _same(left: Path, right: Path) -> bool:
    return left.exists() and left.read_bytes() == right.read_bytes()


def _generate(protos: list[str], into: Path) -> int:
    """Compiles from the root, so that generated files import each other as `from cluster.api.v1 import …`."""
    from grpc_tools import protoc

    well_known = Path(protoc.__file__).with_name("_proto")
    outputs = [f"--{kind}={into}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    sources = [str(ROOT / proto) for proto in protos]
    status: int = protoc.main(["protoc", f"-I{ROOT}", f"-I{well_known}", *outputs, *sources])
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
