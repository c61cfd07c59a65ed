"""The Python files of the project, read once and parsed once."""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("core", "cluster", "prefill_worker", "decode_worker", "kv_transfer", "scheduler", "engine")


@dataclass(frozen=True, slots=True)
class Source:
    """One file; `path` is relative to the repository's root."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def module(self) -> str:
        """Its dotted name."""
        return ".".join(self.path.with_suffix("").parts).removesuffix(".__init__")

    @property
    def is_generated(self) -> bool:
        """Whether protoc wrote it."""
        return self.path.stem.endswith(("_pb2", "_pb2_grpc"))

    def imported(self) -> list[str]:
        """Dotted names of all that it imports, wherever in the file, `from a import b` as `a.b`."""
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found += [f"{node.module}.{alias.name}" for alias in node.names]
        return found


@cache
def sources(*folders: str) -> tuple[Source, ...]:
    """All sources below `folders`."""
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    texts = ((path.relative_to(ROOT), path.read_text()) for path in paths)
    return tuple(Source(path, text, ast.parse(text, str(path))) for path, text in texts)
