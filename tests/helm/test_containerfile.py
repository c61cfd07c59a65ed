"""The image's recipe: linted, without build tools in what runs, with steps that do install what the chart starts."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.helm.charts import pod_templates, render, values_of
from tests.house.sources import PACKAGES, ROOT

TEXT = (ROOT / "Containerfile").read_text()
LINES = re.sub(r"\\\n\s*", "", TEXT).splitlines()
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")


def stages() -> dict[str, list[str]]:
    """Instructions by stage."""
    found: dict[str, list[str]] = {}
    for line in LINES:
        if line.startswith("FROM "):
            found[line.split()[-1]] = []
        elif found and line and not line.startswith("#"):
            found[list(found)[-1]].append(line)
    return found


def test_the_linter_finds_nothing() -> None:
    if HADOLINT is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([HADOLINT, str(ROOT / "Containerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    bad = subprocess.run(
        [HADOLINT, "-"],
        input="FROM debian\nRUN cd /x && apt-get install gcc\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert bad.returncode != 0, "it would find something"


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_what_runs_is_not_root_and_takes_only_the_environment_from_the_build(target: str) -> None:
    lines = stages()[target]
    assert "USER 10001:10001" in lines
    assert [line for line in lines if line.startswith("COPY")] == [f"COPY --from=build-{target} /venv /venv"]
    assert lines.index("USER 10001:10001") > lines.index(f"COPY --from=build-{target} /venv /venv")
    installs = [line for line in lines + stages()["run"] if "install" in line]
    assert len(installs) == (target == "cuda"), "Triton's compiler, and nothing else"
    assert 'ENTRYPOINT ["penstock"]' in lines
    assert any(line.startswith("HEALTHCHECK") for line in lines)


def test_the_user_is_the_one_that_the_chart_runs_pods_as() -> None:
    for template in pod_templates(render(values_of("cpu"))).values():
        assert template["spec"]["securityContext"]["runAsUser"] == 10001


def test_the_steps_are_those_of_a_plain_installation_torch_first_and_pinned() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for target in ("cpu", "cuda"):
        torch, everything = [line for line in stages()[f"build-{target}"] if line.startswith("RUN pip install")]
        assert f'"torch=={pins["torch"]}"' in torch
        named = re.search(r"\[([\w,]+)\]", everything)
        assert named and set(named[1].split(",")) <= extras.keys() and "k8s" in named[1]
        assert "-c constraints.txt" in everything
        copied = {line.split()[1] for line in stages()[f"build-{target}"] if line.startswith("COPY")}
        assert set(PACKAGES) <= copied, "every package is installed"


def test_every_package_that_the_image_installs_has_a_pin_that_its_requirement_takes() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    pins = {
        name.partition("[")[0].lower().replace("_", "-"): version.partition(";")[0] for name, version in pins.items()
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extras in ((), ("k8s",), ("cuda", "k8s")):
        texts = project["dependencies"] + [text for extra in extras for text in project["optional-dependencies"][extra]]
        asked = [Requirement(text) for text in texts]
        assert len(asked) > 10
        for each in asked:
            name = each.name.lower().replace("_", "-")
            assert name in pins, f"{name} is in no constraint"
            assert each.specifier.contains(pins[name].strip()), f"{each} does not take {pins[name]}"


def test_the_build_sees_what_it_copies_and_nothing_else() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {word for line in LINES if line.startswith("COPY") and "--from" not in line for word in line.split()[1:-1]}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_cpu_steps_make_an_environment_that_runs_penstock(tmp_path: Path) -> None:
    """The very RUN lines, in a fresh environment over this one's packages: all but the download of gigabytes."""
    steps = [line.removeprefix("RUN ") for line in stages()["build-cpu"] if line.startswith("RUN")]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    source = tmp_path / "src"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, source / name)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    made = [sys.executable, "-m", "venv", "--system-site-packages", str(tmp_path / "venv")]
    subprocess.run(made, check=True, timeout=120)
    site = next((tmp_path / "venv/lib").glob("python*")) / "site-packages"
    here = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "here.pth").write_text(f"{here}\n")
    python = tmp_path / "venv/bin/python"
    install = steps[-1].replace("pip install", "-m pip install --no-deps --quiet")
    built = subprocess.run(
        [str(python), *install.replace('"', "").split()], cwd=source, env=clean, capture_output=True, text=True
    )
    if built.returncode and "hatchling" in built.stderr:
        pytest.skip("the build backend cannot be fetched")
    assert built.returncode == 0, built.stderr
    code = "import cluster, importlib.metadata as m; print(cluster.__file__, m.version('penstock'))"
    ran = subprocess.run([str(python), "-c", code], cwd=tmp_path, env=clean, capture_output=True, text=True, check=True)
    assert str(site) in ran.stdout, "what runs is what was installed, not this checkout"
    version = subprocess.run(
        [str(tmp_path / "venv/bin/penstock"), "serve", "--help"], cwd=tmp_path, capture_output=True
    )
    assert version.returncode == 0
    assert (site / "engine/embedded/model.safetensors").exists(), "the embedded model is in the wheel"
