"""What a maker's GenTL producer finds, in a process of its own: `python -m edge_daemon.cameras.gentl_devices FILE.cti`.

A producer is a library of a maker, which may hang, crash or print; so only whoever started this process meets that. The
last line on standard output is a JSON list of `{"vendor", "model", "serial", "id"}`, or an object with `error`.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_daemon.errors import CameraError

_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class GentlDevice:
    """What a camera says of itself through its producer."""

    vendor: str
    model: str
    serial: str
    id: str


def devices_of(producer: Path, timeout_s: float = _TIMEOUT_S) -> tuple[GentlDevice, ...]:
    """Every camera that the producer finds, asked in a process of its own. Raises CameraError."""
    if not producer.is_file():
        raise CameraError(f"there is no producer {producer}; install the camera maker's software")
    command = [sys.executable, "-P", "-m", __name__, str(producer)]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as exc:
        raise CameraError(
            f"{producer} names no camera within {timeout_s:.0f} s; try its maker's own viewer, then restart the PC"
        ) from exc
    try:
        answer = json.loads((told.stdout.strip().splitlines() or [""])[-1])
    except ValueError as exc:
        raise CameraError(f"{producer} ends the program that loads it (status {told.returncode})") from exc
    if "error" in answer:
        raise CameraError(str(answer["error"]))
    return tuple(GentlDevice(**device) for device in answer)


def main(argv: Sequence[str]) -> int:
    """The process. Always ends with 0: what went wrong is in what it prints."""
    print("\n" + json.dumps(_asked(argv[0])), flush=True)
    return 0


def _asked(producer: str) -> object:
    try:
        from harvesters.core import Harvester
    except ImportError:
        return {"error": "GenTL cameras need harvesters, which is not installed; pip install 'edge-daemon[gentl]'"}
    harvester = Harvester()
    try:
        harvester.add_file(producer)
        harvester.update()
        return [
            {"vendor": str(i.vendor), "model": str(i.model), "serial": str(i.serial_number), "id": str(i.id_)}
            for i in harvester.device_info_list
        ]
    except Exception as exc:  # whatever a producer throws
        return {"error": f"{producer} does not answer ({(str(exc).splitlines() or [type(exc).__name__])[0][:200]})"}
    finally:
        harvester.reset()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
