"""onnxruntime sessions: one per distinct graph, on the provider that the configuration demands."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edge_daemon.engines.choice import Choices
from edge_daemon.engines.device import BoundGraph, DeviceFeatures, SearchGraphs
from edge_daemon.engines.onnx_bytes import refuse_foreign_files
from edge_daemon.errors import EdgeError, ProviderError, RecipeEngineError
from edge_daemon.threads import one_core_each

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Which provider runs, what may replace it, and with how many threads (0: onnxruntime decides).

    embeddings: where they are kept between backbone and search, on the `host` or the `device`; `auto` is the
    device where that is not the CPU and the search runs on it too.
    """

    provider: str = "cpu"
    fallback: str | None = None
    intra_op_threads: int = 0
    embeddings: Literal["auto", "host", "device"] = "auto"


def _create(model: bytes, provider: str, options: EngineOptions) -> ort.InferenceSession:
    """A session whose first provider is the one asked for. Raises ProviderError when it is another.

    A session asked for CUDA where there is none runs on the CPU without a word, and the list of
    available providers names CUDA all the same: only session.get_providers() tells the truth.
    """
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.intra_op_threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 4
    # Spinning pools steal the cores from the search: 45 ms with, 20 ms without.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if cores := pool_cores(options.intra_op_threads):
        settings.add_session_config_entry("session.intra_op_thread_affinities", cores)
    name = PROVIDERS[provider]
    wanted: list[str | tuple[str, dict[str, str]]] = [name]
    if provider == "cuda":
        wanted = [(name, {"use_tf32": "0"})]
    elif provider == "tensorrt":
        wanted = [name, (PROVIDERS["cuda"], {"use_tf32": "0"})]
    if provider != "cpu":
        wanted.append(PROVIDERS["cpu"])
    session = ort.InferenceSession(model, settings, providers=wanted)
    running = session.get_providers()[0]
    if running != name:
        raise ProviderError(
            f"the configuration demands {name}, but the session runs on {running}: check driver and CUDA "
            "libraries (`pip install 'edge-daemon[cuda]'`), or name a fallback in [engine]"
        )
    return session


class OnnxExtractor:
    """A fused backbone in a session: uint8 pictures in, patch embeddings out (`detectors.base.Extractor`)."""

    def __init__(self, model: bytes, sha256: str, options: EngineOptions) -> None:
        """Load and check the graph. Raises ProviderError, or RecipeEngineError when it is not a fused backbone."""
        refuse_foreign_files(model)
        self._session = _open_session(model, options)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shape = inputs[0].shape if inputs else []
        if (
            len(inputs) != 1
            or len(outputs) != 1
            or inputs[0].type != "tensor(uint8)"
            or outputs[0].type != "tensor(float)"
            or len(shape) != 4
            or not all(isinstance(n, int) for n in shape[1:])
            or shape[3] != 3
        ):
            raise RecipeEngineError(
                "the backbone graph must take uint8 (N, H, W, 3) and give float32 (N, gh, gw, D): "
                "make it with `edge-export backbone`"
            )
        self._input, self._output = inputs[0].name, outputs[0].name
        self._bound = BoundGraph("backbone", self._session)
        self.key = (sha256, int(shape[1]), int(shape[2]))
        self.provider = str(self._session.get_providers()[0])

    def extract(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, H, W, 3) uint8 RGB -> (N, gh, gw, D) float32. Raises EdgeError when the session fails."""
        try:
            embedding: NDArray[np.float32] = self._session.run([self._output], {self._input: batch})[0]
        except Exception as error:  # onnxruntime raises bare classes of its own
            raise EdgeError(f"the backbone failed on {self.provider}: {error}") from error
        if embedding.ndim != 4 or len(embedding) != len(batch):
            raise EdgeError(f"the backbone gave {embedding.shape} for {len(batch)} pictures")
        return embedding

    def extract_on_device(self, batch: NDArray[np.uint8]) -> ort.OrtValue:
        """(N, H, W, 3) uint8 RGB -> (N, gh, gw, D) float32, left on the device. Raises EdgeError."""
        (value,), _ = self._bound.run({self._input: batch}, keep=[self._output])
        if len(value.shape()) != 4 or value.shape()[0] != len(batch):
            raise EdgeError(f"the backbone gave {tuple(value.shape())} for {len(batch)} pictures")
        return value


def pool_cores(threads: int, cores: Sequence[frozenset[int]] | None = None) -> str:
    """A core for each thread of a pool but the caller's, as onnxruntime writes it ("3,4;5,6", counted from 1). Empty
    where there are not enough; 0 threads are onnxruntime's own choice, cores included.

    A thread that sleeps between parts is woken on the core of whoever wakes it, and both take turns until the system
    moves one: a model of 4.1 ms took 6.0 at every part that came after a pause, as long as with a single thread.
    """
    return ";".join(",".join(str(cpu + 1) for cpu in sorted(core)) for core in one_core_each(threads, cores)[1:])


def _open_session(model: bytes, options: EngineOptions) -> ort.InferenceSession:
    """The session on the demanded provider, else on the fallback that the configuration names."""
    candidates: Sequence[str] = [options.provider, *([options.fallback] if options.fallback else [])]
    for provider in candidates:
        try:
            return _create(model, provider, options)
        except ProviderError as error:
            if provider == candidates[-1]:
                raise
            last: Exception = error
        except Exception as error:  # onnxruntime raises bare classes of its own
            last = error
            if provider == candidates[-1]:
                break
    raise RecipeEngineError(f"the backbone graph does not load: {last}") from last


def _open_on(model: bytes, provider: str, options: EngineOptions) -> ort.InferenceSession:
    """A session on that provider and no other. Raises ProviderError, RecipeEngineError."""
    try:
        return _create(model, provider, options)
    except ProviderError:
        raise
    except Exception as error:  # onnxruntime raises bare classes of its own
        raise RecipeEngineError(f"a graph of the search does not load on {provider}: {error}") from error


class DeviceExtractor:
    """A fused backbone whose embeddings stay on the device (`detectors.base.Extractor`).

    With the CPU provider that is ordinary memory, and the embeddings are those of `OnnxExtractor` to the bit.
    """

    def __init__(self, extractor: OnnxExtractor, graphs: SearchGraphs) -> None:
        self._backbone = extractor
        self._graphs = graphs
        self.key = extractor.key
        self.provider = extractor.provider

    def extract(self, batch: NDArray[np.uint8]) -> list[DeviceFeatures]:
        """(N, H, W, 3) uint8 RGB -> N embeddings (gh, gw, D) on the device. Raises EdgeError."""
        value = self._backbone.extract_on_device(batch)
        return [DeviceFeatures(value, index, self._graphs) for index in range(len(batch))]


class Sessions:
    """Extractors by graph digest: recipes with one graph share one session.

    choices: what was measured of the search engines on this PC, None where the rule is enough.
    """

    def __init__(self, options: EngineOptions, choices: Choices | None = None) -> None:
        self.options = options
        self.choices = choices
        self._extractors: dict[str, OnnxExtractor] = {}
        self._graphs: dict[str, SearchGraphs] = {}

    def graphs(self, provider: str = PROVIDERS["cpu"]) -> SearchGraphs:
        """The graphs of the search for a backbone that runs on `provider`, as onnxruntime names it.

        Those of TensorRT are run by CUDA on the same device: TensorRT builds an engine for every new shape, which
        takes seconds, and rounds to TF32 by itself.
        """
        if provider not in self._graphs:
            name = "cpu" if provider == PROVIDERS["cpu"] else "cuda"
            self._graphs[provider] = SearchGraphs(lambda model: _open_on(model, name, self.options))
        return self._graphs[provider]

    def keeps_on_device(self, provider: str, engine: str) -> bool:
        """Whether embeddings stay on the device, for a search by `engine`."""
        if self.options.embeddings == "auto":
            return engine == "graph" and provider != PROVIDERS["cpu"]
        return self.options.embeddings == "device"

    def on_device(self, extractor: OnnxExtractor) -> DeviceExtractor:
        """The same backbone, its embeddings left on the device."""
        return DeviceExtractor(extractor, self.graphs(extractor.provider))

    def extractor(self, model: bytes, sha256: str) -> OnnxExtractor:
        """The extractor of that graph, loaded on first use. Raises ProviderError, RecipeEngineError."""
        if sha256 not in self._extractors:
            self._extractors[sha256] = OnnxExtractor(model, sha256, self.options)
        return self._extractors[sha256]

    def keep_only(self, digests: set[str]) -> None:
        """Drop the sessions of graphs that no active recipe uses."""
        for digest in set(self._extractors) - digests:
            del self._extractors[digest]
