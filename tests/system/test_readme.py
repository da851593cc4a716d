"""Every command that the README and the how-to pages show is run, on small simulated data.

A fenced `sh` block runs as it stands in one shell per page, in a folder that holds what the page tells its reader
to have. A fenced `toml` or `python` block whose first line is `# NAME.toml` or `# NAME.py` is written to that file.
Comments before a block:

  <!-- test: background -->   a long-running command: started, waited for, asked to stop at the end of the page
  <!-- test: with NAME -->    needs the preparation NAME of this file
  <!-- test: only syntax: WHY --> cannot run here; its syntax is checked and its commands must exist

`make` is the real one with installation left out, and `make test`, which runs this very test, is a dry run.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import pytest

from tests.daemon import free_ports

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "deploy" / "docs").glob("*.md"))]
VENV = Path(sys.prefix)

_ALL_READY = (
    "import json, sys; stations = json.load(open('status.json'))['stations'].values();"
    " sys.exit(not all(s['trigger_ready'] for s in stations))"
)
_BLOCK = re.compile(
    r"(?:<!-- test: (?P<mark>.*?) -->\n)?^```(?P<language>sh|toml|python)\n(?P<text>.*?)^```$", re.M | re.S
)
_MARKS = re.compile(r"background|with \w+|only syntax: .+")
_MAKE = f"""
make() {{
    local dry=""
    case " $* " in *" test "*) dry=--dry-run ;; esac
    command make -C {ROOT} --no-print-directory $dry -o {VENV}/.installed -o {VENV}/.installed-dev VENV={VENV} \
        DEMO_ARGS="--out $PWD/out/demo --good-parts 24 --parts 6" "$@"
}}
"""


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    language: str
    text: str
    mark: str


def blocks(page: Path) -> list[Block]:
    return [Block(m["language"], m["text"], m["mark"] or "") for m in _BLOCK.finditer(page.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_mark_is_understood_and_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text()
    marks = re.findall(r"<!-- test: (.*?) -->", text)
    assert all(_MARKS.fullmatch(mark) for mark in marks)
    assert len(marks) == sum(bool(block.mark) for block in blocks(page)), "a mark stands before no block"
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    missing = [link for link in links if link and "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def save_parts(folder: Path, product: str, count: int, seed: int, defect: str | None = None) -> None:
    from edge_daemon.simulation.defects import DefectKind
    from edge_daemon.simulation.render import Scene

    folder.mkdir(parents=True)
    scene = Scene(product, (512, 512))
    for index in range(count):
        part = scene.part(seed, index, DefectKind(defect) if defect else None)
        cv2.imwrite(str(folder / f"{index:03}.png"), part.pixels[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
        if defect:
            truth = folder.parents[1] / "ground_truth" / defect
            truth.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(truth / f"{index:03}_mask.png"), part.mask.astype("uint8") * 255)


@pytest.fixture(scope="session")
def readers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages tell their readers to have: good parts, parts to replay, labelled pictures."""
    folder = tmp_path_factory.mktemp("reader")
    save_parts(folder / "good", "flange", 24, seed=1)
    save_parts(folder / "new", "flange", 6, seed=7)
    save_parts(folder / "labelled" / "test" / "good", "flange", 4, seed=2)
    save_parts(folder / "labelled" / "test" / "stain", "flange", 4, seed=3, defect="stain")
    shutil.copytree(folder / "labelled" / "test" / "good", folder / "parts")
    (folder / ".venv").symlink_to(VENV)
    return folder


def prepare_weights(folder: Path) -> None:
    """resnet18.safetensors with random numbers, as good as any for a command line."""
    pytest.importorskip("torch", reason="needs the extra `export`")
    code = (
        "import safetensors.torch\n"
        "from export.torch.teacher import import_timm\n"
        "network = import_timm().create_model('resnet18', pretrained=False, zero_init_last=False)\n"
        "safetensors.torch.save_file(network.state_dict(), 'resnet18.safetensors')\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, timeout=120)


def prepare_recipe(folder: Path) -> None:
    """flange.recipe, as the vision engineer hands it over."""
    command = [VENV / "bin" / "edge-export", "recipe", "--name", "flange", "--images", "good", "--out", "flange.recipe"]
    subprocess.run(command, cwd=folder, check=True, timeout=120, stdout=subprocess.DEVNULL)


PREPARATIONS = {"weights": prepare_weights, "recipe": prepare_recipe}


# Answers as soon as the daemon runs; its stations are ready a little later.
_READY = """edge-ctl --json status > status.json 2>/dev/null && ! grep -q '"trigger_ready": false' status.json"""
_STOP = "trap 'kill -TERM $daemon 2>/dev/null || true; wait $daemon' EXIT"


def script_of(page: Path) -> str:
    """The page's blocks as one shell script. A background command is waited for until every station is ready; at
    the end, also after a failure, it is asked to stop and must end with status 0."""
    lines = ["set -euo pipefail", _MAKE]
    for block in blocks(page):
        if block.language in ("toml", "python") and (name := re.match(r"# (\S+\.(?:toml|py))\n", block.text)):
            lines.append(f"cat > {name[1]} <<'END_OF_FILE'\n{block.text}END_OF_FILE")
        elif block.language == "sh" and block.mark == "background":
            lines += [f"{block.text.strip()} & daemon=$!", _STOP]
            lines += [f"until {_READY}; do kill -0 $daemon; sleep 0.1; done"]
        elif block.language == "sh" and not block.mark.startswith("only syntax"):
            lines.append(block.text)
    return "\n".join(lines)


def environment_for_readers() -> dict[str, str]:
    """As a reader has it, with ports of their own instead of the default ones."""
    names = ("RESULTS", "IMAGES", "STATUS", "TRIGGERS", "CONTROL", "REPLAY", "AMENDMENTS")
    endpoints = {name: f"tcp://127.0.0.1:{port}" for name, port in zip(names, free_ports(len(names)), strict=True)}
    own = {f"EDGE_WIRE__{name}": endpoint for name, endpoint in endpoints.items()}
    clients = {f"EDGE_CTL_{name}": endpoint for name, endpoint in endpoints.items()}
    return {**os.environ, **own, **clients, "ALL_READY": _ALL_READY, "PATH": f"{VENV / 'bin'}:{os.environ['PATH']}"}


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.language == "sh" for b in blocks(p))], ids=lambda p: p.name)
def test_the_commands_of_the_page_work(page: Path, readers_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "reader"
    shutil.copytree(readers_folder, folder, symlinks=True)
    for block in blocks(page):
        if block.mark.startswith("with "):
            PREPARATIONS[block.mark.removeprefix("with ")](folder)
    told = folder / "output.txt"
    with told.open("wb") as output:
        shell = subprocess.Popen(
            ["bash", "-c", script_of(page)],
            cwd=folder,
            env=environment_for_readers(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = shell.wait(timeout=200)
        finally:
            if shell.poll() is None:
                os.killpg(shell.pid, signal.SIGKILL)
                shell.wait()
    assert status == 0, told.read_text(errors="replace")[-6000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_cannot_run_here_is_at_least_shell(page: Path) -> None:
    for block in blocks(page):
        if block.mark.startswith("only syntax"):
            subprocess.run(["bash", "-n", "-c", block.text], check=True, timeout=10)
