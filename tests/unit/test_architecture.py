"""What the packages may know of each other and of the world, checked on the code as it is."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("edge_daemon", "export")
# Only for the workshop; a line PC has none of them.
WORKSHOP = ("torch", "torchvision", "timm", "matplotlib", "jinja2", "scipy", "sklearn", "PIL")

# Import name -> name in the package registry, where the two differ.
DISTRIBUTION = {
    "cv2": "opencv-python-headless",
    "faiss": "faiss-cpu",
    "onnxruntime": "onnxruntime-gpu",
    "zmq": "pyzmq",
    "pydantic_core": "pydantic",
    "PIL": "pillow",
    "gi": "pygobject",
}


def sources(package: str) -> Iterator[Path]:
    yield from sorted((ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# Each one breaks a contract that the daemon's safety or its installation rests on.
VIOLATIONS = {
    "edge_daemon/core/bad_clock.py": ("import time", "The core is pure"),
    "edge_daemon/core/bad_layer.py": ("import edge_daemon.wire.messages", "Imports point one way"),
    "edge_daemon/cameras/bad_torch.py": ("def late():\n    import torch", "The daemon runs without the workshop"),
    "edge_daemon/wire/bad_export.py": ("import export.errors", "The daemon runs without the workshop"),
    "edge_daemon/simulation/bad_wire.py": ("import edge_daemon.wire.messages", "The simulation knows the core"),
    "edge_daemon/client.py": ("import edge_daemon.detectors.base", "Clients know the wire"),
    "export/bad_torch.py": ("import torch", "torch lives in export.torch"),
    "export/bad_daemon.py": ("import edge_daemon.app", "Export builds recipes"),
    "edge_daemon/unplaced.py": ("", "Imports point one way"),
}


@pytest.fixture(scope="module")
def report_on_violations(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What lint-imports says of a copy of the tree into which every violation was written."""
    copy = tmp_path_factory.mktemp("tree")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__", "*.onnx"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    for name, (code, _) in VIOLATIONS.items():
        with (copy / name).open("a") as file:
            file.write(f"\n{code}\n")
    result = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache", "--no-logo"],
        cwd=copy,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"},
    )
    assert result.returncode != 0
    return result.stdout


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_forbidden_import_breaks_its_contract(report_on_violations: str, name: str) -> None:
    _, contract = VIOLATIONS[name]
    assert re.search(rf"^{re.escape(contract)}.* BROKEN\b", report_on_violations, re.MULTILINE), report_on_violations
    assert module_name(ROOT / name).removeprefix("edge_daemon.") in report_on_violations


def test_every_module_of_the_daemon_imports_without_the_workshop_packages() -> None:
    modules = [module_name(path) for path in sources("edge_daemon")]
    blocked = (*WORKSHOP, "export", "onnx", "tqdm")
    result = run_python(
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({blocked!r}))\n"
        f"for name in {modules!r}:\n    importlib.import_module(name)\n"
    )
    assert result.returncode == 0, result.stderr


def test_importing_a_package_starts_no_thread_and_prints_nothing() -> None:
    modules = [module_name(path) for path in sources("edge_daemon")]
    result = run_python(
        "import importlib, threading\n"
        f"for name in {modules!r}:\n    importlib.import_module(name)\n"
        "assert threading.enumerate() == [threading.main_thread()], threading.enumerate()\n"
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_recipe_command_needs_no_torch() -> None:
    result = run_python(
        f"import sys\nsys.modules.update(dict.fromkeys({WORKSHOP!r}))\n"
        "sys.argv = ['edge-export', 'recipe', '--help']\n"
        "from export.cli import main\nraise SystemExit(main())\n"
    )
    assert result.returncode == 0, result.stderr
    assert "--images" in result.stdout


@pytest.mark.parametrize("path", list(sources("edge_daemon/core")), ids=lambda path: path.name)
def test_the_core_touches_no_file_and_no_terminal(path: Path) -> None:
    calls = {
        node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute)
    }
    assert not calls & {"open", "print", "input", "imread", "imwrite", "fromfile", "tofile", "memmap", "VideoCapture"}


def third_party_imports(package: str) -> dict[str, Path]:
    """Top-level names that are neither ours nor Python's, with a file that imports each."""
    found = {}
    for path in sources(package):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            found.update({name.split(".")[0]: path for name in names})
    return {name: path for name, path in found.items() if name not in {*sys.stdlib_module_names, *PACKAGES}}


def declared(*groups: str) -> set[str]:
    lines = list(PYPROJECT["project"]["dependencies"])
    for group in groups:
        lines += PYPROJECT["project"]["optional-dependencies"][group]
    return {canonicalize_name(Requirement(line).name) for line in lines}


@pytest.mark.parametrize(
    ("package", "groups"), [("edge_daemon", ("gige", "gentl", "gateway")), ("export", ("export",))]
)
def test_every_import_is_a_declared_dependency(package: str, groups: tuple[str, ...]) -> None:
    known = declared(*groups)
    undeclared = {
        name: str(path.relative_to(ROOT))
        for name, path in third_party_imports(package).items()
        if canonicalize_name(DISTRIBUTION.get(name, name)) not in known
    }
    assert undeclared == {}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def test_every_requirement_is_pinned_at_a_version_it_allows() -> None:
    project = PYPROJECT["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    for line in lines:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)]), line


def test_every_package_that_an_installation_pulls_in_is_pinned() -> None:
    """Walks the metadata of what is installed, from the project's requirements down."""
    unpinned, seen = set(), set()
    queue = [Requirement(line) for line in PYPROJECT["project"]["dependencies"]]
    queue += [
        Requirement(line)
        for extra in ("gateway", "export", "dev")
        for line in PYPROJECT["project"]["optional-dependencies"][extra]
    ]
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        if name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        if name not in pins():
            unpinned.add(name)
        queue += [Requirement(line) for line in importlib.metadata.distribution(requirement.name).requires or []]
    # The CUDA libraries of the torch of another registry pin themselves.
    assert {name for name in unpinned if not name.startswith(("nvidia-", "cuda-", "triton"))} == set()


def test_torch_is_pinned_exactly_or_gigabytes_of_cuda_libraries_arrive() -> None:
    assert pins()["torch"] == "2.13.0"
    assert pins()["torchvision"] == "0.28.0"


@pytest.mark.parametrize("script", sorted(PYPROJECT["project"]["scripts"]))
def test_every_command_exists_and_teaches(script: str) -> None:
    module, _, function = PYPROJECT["project"]["scripts"][script].partition(":")
    result = run_python(
        f"import sys\nsys.argv = [{script!r}, '--help']\n"
        f"from {module} import {function}\nraise SystemExit({function}())\n",
        COLUMNS="100",
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"usage: {script}")
