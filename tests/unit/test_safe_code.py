"""What the product's code never does. Most of it ruff's rules `S` (flake8-bandit) say at every lint; here is that they
are on, that they bite, and what they do not know."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = [path for package in ("edge_daemon", "export", "deploy") for path in sorted((ROOT / package).rglob("*.py"))]

FORBIDDEN = {
    "import pickle; pickle.loads(x)": "S301",
    "import marshal; marshal.loads(x)": "S302",
    "eval(x)": "S307",
    "exec(x)": "S102",
    "import os; os.system(x)": "S605",
    "import os; os.popen(x)": "S605",
    "import subprocess; subprocess.run(x, shell=True)": "S602",
    "import yaml; yaml.load(x)": "S506",
    "import tempfile; tempfile.mktemp()": "S306",
    "import tarfile; tarfile.open(x).extractall(y)": "S202",
    "import ssl; ssl._create_unverified_context()": "S323",
    "import xml.etree.ElementTree as e; e.parse(x)": "S314",
    "import hashlib; hashlib.md5(x)": "S324",
    "assert x > 0": "S101",
}


@pytest.mark.parametrize("where", ["edge_daemon/artefact/new.py", "edge_daemon/wire/new.py", "edge_daemon/config.py"])
def test_the_linter_refuses_what_must_never_be_there(where: str) -> None:
    code = "\n".join(f"{line}  # {number}" for number, line in enumerate(FORBIDDEN))
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "concise", "--stdin-filename", where, "-"]
    told = subprocess.run(command, input=code, capture_output=True, text=True, cwd=ROOT, check=False).stdout
    assert [rule for rule in sorted(set(FORBIDDEN.values())) if f" {rule} " not in told] == [], told


def test_no_rule_about_shells_pickles_or_evaluation_is_switched_off_anywhere() -> None:
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    for_files = lint["per-file-ignores"]
    off = {rule for pattern, rules in for_files.items() if pattern != "tests/**" for rule in rules} | set(
        lint["ignore"]
    )
    assert "S" in lint["select"]
    assert {rule for rule in off if rule.startswith("S")} == {"S101", "S112", "S311", "S603", "S608", "S704"}


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_array_is_loaded_with_pickle_and_no_lint_is_silenced(path: Path) -> None:
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            named = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert "allow_pickle" not in named, f"{path}:{node.lineno}"
            if ast.unparse(node.func) == "torch.load":
                assert named.get("weights_only") == "True", f"{path}:{node.lineno}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert not names & {"pickle", "dill", "marshal", "shelve", "cloudpickle", "joblib"}, f"{path}:{node.lineno}"
    assert "noqa: S1" not in text
    assert "noqa: S3" not in text
    assert "noqa: S6" not in text
