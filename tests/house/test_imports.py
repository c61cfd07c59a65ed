"""Who may import whom. import-linter reads its contracts from pyproject.toml; the rest stands here."""

import ast
import subprocess
import sys
from importlib.metadata import packages_distributions

from tests.house.sources import PACKAGES, ROOT, Source, sources

OUR_OWN = "penstock"


def test_the_import_rules_of_pyproject_hold() -> None:
    """In a process of its own, for import-linter switches off all loggers of the one that it runs in."""
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))",
    ]
    linted = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout


def test_the_words_need_the_standard_library_only() -> None:
    allowed = set(sys.stdlib_module_names) | {"core"}
    for source in sources("core"):
        assert {name.partition(".")[0] for name in source.imported()} <= allowed, source.path


def decides(source: Source) -> bool:
    """Whether a file belongs to what decides."""
    single = {"cluster.node", "cluster.gateway.streams", "engine.blocks", "kv_transfer.copy_plan"}
    return source.module.partition(".")[0] in {"core", "scheduler", "prefill_worker", "decode_worker"} or (
        source.module in single
    )


FORBIDDEN_CALLS = {"open", "input", "print", "eval", "exec", "breakpoint"}


def test_what_decides_neither_awaits_nor_reads_nor_writes() -> None:
    for source in filter(decides, sources(*PACKAGES)):
        program = next((node for node in source.tree.body if isinstance(node, ast.If)), None)  # `if __name__ == …`
        outside = (node for top in source.tree.body if top is not program for node in ast.walk(top))
        for node in outside:
            where = f"{source.path}:{getattr(node, 'lineno', 0)}"
            assert not isinstance(node, ast.Await | ast.AsyncFunctionDef | ast.AsyncFor | ast.AsyncWith), where
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in FORBIDDEN_CALLS, f"{where} calls {node.func.id}"


def test_the_machines_of_a_node_see_of_the_engine_only_its_blocks() -> None:
    for source in sources("prefill_worker", "decode_worker"):
        for name in source.imported():
            assert not name.startswith("engine.") or name.startswith("engine.blocks"), f"{source.path} imports {name}"


def test_ray_is_imported_in_one_file() -> None:
    found = {str(s.path) for s in sources(*PACKAGES) if any(n.split(".")[0] == "ray" for n in s.imported())}
    assert found <= {"cluster/live/ray_actors.py"}


def test_no_package_of_ours_hides_an_installed_one() -> None:
    installed = packages_distributions()
    for package in PACKAGES:
        assert set(installed.get(package, [])) <= {OUR_OWN}, f"{package} is also in {installed[package]}"
        assert package not in sys.stdlib_module_names


def test_nothing_that_can_carry_code_is_read() -> None:
    forbidden = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
    for source in sources(*PACKAGES):
        assert not forbidden & {name.partition(".")[0] for name in source.imported()}, source.path
        assert "torch.load" not in source.text, source.path
