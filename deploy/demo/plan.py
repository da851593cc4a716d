"""What the demo inspects: the stations, their parts, the pictures to learn from and the configuration."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
from tqdm import tqdm

from edge_daemon.simulation.defects import DefectKind, DefectScript
from edge_daemon.simulation.render import Scene

# Parts to learn from and parts to judge come from different seeds: nothing that is judged was seen before.
_LEARNING_SEED_OFFSET = 1_000_000


@dataclass(frozen=True, slots=True)
class DemoStation:
    """One station with one simulated camera. `defect_rate` of its parts are spoiled, which ones the seed decides."""

    name: str
    camera: str
    product: str
    seed: int
    defect_rate: float = 0.2
    size: tuple[int, int] = (512, 512)

    def truth(self, frame_id: int) -> DefectKind | None:
        """What is wrong with the part that this frame shows; part i comes in frame i + 1."""
        return DefectScript(self.seed, self.defect_rate).truth(frame_id - 1)


def stations(seed: int) -> tuple[DemoStation, DemoStation]:
    """A turned flange and a moulded cap."""
    return (
        DemoStation("turning", "cam-flange", "flange", 2 * seed),
        DemoStation("moulding", "cam-cap", "cap", 2 * seed + 1),
    )


def render_good_parts(station: DemoStation, count: int, folder: Path) -> None:
    """Writes `count` pictures of good parts as PNG, with a progress bar."""
    folder.mkdir(parents=True)
    scene = Scene(station.product, station.size)

    def write(index: int) -> None:
        pixels = scene.part(station.seed + _LEARNING_SEED_OFFSET, index).pixels
        path = folder / f"{index:04}.png"
        # Level 1: four times faster than the default and hardly larger, sensor noise does not compress.
        if not cv2.imwrite(str(path), pixels[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1]):
            raise OSError(f"{path} could not be written; is the disk full?")

    with ThreadPoolExecutor(max_workers=2) as pool:
        done = pool.map(write, range(count))
        for _ in tqdm(done, total=count, desc=f"{station.product}: good parts", unit="picture"):
            pass


def config_text(plan: tuple[DemoStation, ...], ports: Iterator[int]) -> str:
    """An ordinary configuration file; the recipes and the state lie beside it."""
    wire = "\n".join(
        f'{socket} = "tcp://127.0.0.1:{next(ports)}"'
        for socket in ("results", "images", "status", "triggers", "control", "replay", "amendments")
    )
    parts = [
        "# Written by the demo. Try: edge-daemon check --config edge.toml\n"
        'line = "demo"\nstate_dir = "state"\n\n'
        "# Free ports of this PC, chosen when the demo started.\n"
        f"[wire]\n{wire}\n"
    ]
    parts += [
        f"[cameras.{station.camera}]\n"
        f'kind = "simulated"\nproduct = "{station.product}"\nseed = {station.seed}\n'
        f"defect_rate = {station.defect_rate}\nsize = [{station.size[0]}, {station.size[1]}]\n\n"
        f"[stations.{station.name}]\n"
        f'views = [{{ camera = "{station.camera}", recipe = "recipes/{station.product}.recipe" }}]\n'
        'trigger = "software"\nimages = { publish = "always", heatmap_format = "jpeg", max_side_px = 320 }\n'
        for station in plan
    ]
    return "\n".join(parts)
