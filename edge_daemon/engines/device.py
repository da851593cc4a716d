"""Values that stay on the provider's device between one session and the next (onnxruntime I/O binding).

On a card the embeddings of a batch never come to the host: one frame's patches are taken from them there, the
nearest rows are proposed there, and only distances, row numbers and those patches are fetched on which the
judgement rests. On the CPU provider the same path runs on ordinary memory; it is tested there.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edge_daemon.errors import EdgeError

_GRAPHS = Path(__file__).parent / "graphs"


class BoundGraph:
    """A session whose inputs and outputs lie on its device. Safe to use from several threads."""

    def __init__(self, name: str, session: ort.InferenceSession) -> None:
        self._name = name
        self._session = session
        self.provider = str(session.get_providers()[0])
        self.device = "cpu" if self.provider == "CPUExecutionProvider" else "cuda"

    def run(
        self,
        inputs: Mapping[str, "ort.OrtValue | NDArray[Any]"],
        keep: Sequence[str] = (),
        fetch: Sequence[str] = (),
    ) -> tuple[list[ort.OrtValue], list[NDArray[Any]]]:
        """Outputs `keep` as values on the device, outputs `fetch` on the host. Raises EdgeError."""
        try:
            binding = self._session.io_binding()
            for name, value in inputs.items():
                if isinstance(value, ort.OrtValue):
                    binding.bind_ortvalue_input(name, value)
                else:
                    binding.bind_cpu_input(name, np.ascontiguousarray(value))
            for name in keep:
                binding.bind_output(name, self.device)
            for name in fetch:
                binding.bind_output(name, "cpu")
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()
            found = binding.get_outputs()
            return found[: len(keep)], [value.numpy() for value in found[len(keep) :]]
        except Exception as error:  # onnxruntime raises bare classes of its own
            raise EdgeError(f"the graph {self._name} failed on {self.provider}: {error}") from error


class SearchGraphs:
    """The graphs of the search on one provider, loaded once, and values put on its device.

    open_session: bytes of a graph -> session on that provider. They are made by export/search_graphs.py:

    nearest    queries (p, d), centre (d), bank (m, d), norms (m), count (1) -> the `count` lowest values of
               norms − 2·(queries − centre)·bankᵀ of each query, their rows, and ‖query − centre‖²
    frame      embedding (n, gh, gw, c), index (1) -> patches (gh·gw, c) and their ‖x‖²
    projected  the same, patches multiplied by projection (c, d)
    pick       patches (p, d), which (k) -> (k, d)
    """

    def __init__(self, open_session: Callable[[bytes], ort.InferenceSession]) -> None:
        self._load = cache(lambda name: BoundGraph(name, open_session((_GRAPHS / f"{name}.onnx").read_bytes())))

    def graph(self, name: str) -> BoundGraph:
        """Raises ProviderError, RecipeEngineError when there is no session for it."""
        return self._load(name)

    def upload(self, values: NDArray[np.float32]) -> ort.OrtValue:
        """A copy of an array on the device. Raises EdgeError."""
        try:
            return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(values), self.graph("nearest").device)
        except Exception as error:  # onnxruntime raises bare classes of its own
            raise EdgeError(f"{values.nbytes >> 20} MiB do not fit on the device of the search: {error}") from error


class DevicePatches:
    """Patches of one frame on the device. value: (P, D) float32; squared_norms: (P,) float32, on the host."""

    def __init__(self, value: ort.OrtValue, squared_norms: NDArray[np.float32], graphs: SearchGraphs) -> None:
        self.value = value
        self.squared_norms = squared_norms
        self._graphs = graphs

    def __len__(self) -> int:
        return len(self.squared_norms)

    def __getitem__(self, which: NDArray[np.int64]) -> NDArray[np.float32]:
        """These patches on the host, (K, D) float32. Raises EdgeError."""
        _, (picked,) = self._graphs.graph("pick").run({"patches": self.value, "which": which}, fetch=["picked"])
        return np.asarray(picked, np.float32)


class DeviceFeatures:
    """Embedding of one frame of a batch that lies on the device; `shape` is (gh, gw, D)."""

    def __init__(self, batch: ort.OrtValue, index: int, graphs: SearchGraphs) -> None:
        self._batch = batch
        self._index = np.array([index], np.int64)
        self._graphs = graphs
        self.shape: tuple[int, int, int] = tuple(batch.shape()[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def patches(self, projection: ort.OrtValue | None) -> DevicePatches:
        """All patches, projected when the recipe has a projection, left on the device. Raises EdgeError."""
        (value,), (norms,) = self._run(projection, keep=["patches"], fetch=["squared_norms"])
        return DevicePatches(value, norms, self._graphs)

    def host(self) -> NDArray[np.float32]:
        """The embedding on the host, (gh, gw, D) float32. Raises EdgeError."""
        _, (patches,) = self._run(None, fetch=["patches"])
        return np.asarray(patches, np.float32).reshape(self.shape)

    def _run(
        self, projection: ort.OrtValue | None, keep: Sequence[str] = (), fetch: Sequence[str] = ()
    ) -> tuple[list[ort.OrtValue], list[NDArray[Any]]]:
        inputs: dict[str, ort.OrtValue | NDArray[Any]] = {"embedding": self._batch, "index": self._index}
        if projection is None:
            return self._graphs.graph("frame").run(inputs, keep, fetch)
        return self._graphs.graph("projected").run(inputs | {"projection": projection}, keep, fetch)
