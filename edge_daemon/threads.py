"""Thread pools and memory: every pool sized and told to sleep, not spin, when it has nothing to do.

On a PC with two cores a pool that spins takes them from the next step: a search of 3,072 rows took 45 ms
behind a spinning pool and 20 ms behind a sleeping one. The libraries read these variables once, when
they are first imported; this module therefore imports none of them.
"""

import ctypes
import gc
import math
import os
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path

_POOL_SIZES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

# OpenBLAS workers spin for 2^n cycles before they sleep; 2^4 is the least it takes (openblas_env).
_SLEEP_AT_ONCE = {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_THREAD_TIMEOUT": "4"}

# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

# Below, a second thread gains less than it costs to wake it (see `CoreSharing`).
_ROWS_FOR_MORE_CORES = 8_192

_READ_AT_IMPORT = ("numpy", "cv2", "faiss", "onnxruntime")


def physical_cores(
    cpus: frozenset[int] | None = None,
    topology: Path = Path("/sys/devices/system/cpu"),
    quota: Path = Path("/sys/fs/cgroup/cpu.max"),
) -> int:
    """Physical cores that this process may use; hardware threads of one core count once.

    cpus: the logical CPUs to count, by default those of this process. Where the system does not tell which
    share a core, each counts. quota: what a container may use (cgroup v2, "MICROSECONDS PERIOD"): a pool
    that is larger spends its time waiting for its own threads.
    """
    return max(1, min(len(cores_allowed(cpus, topology)), _cores_of_quota(quota)))


def cores_allowed(
    cpus: frozenset[int] | None = None, topology: Path = Path("/sys/devices/system/cpu")
) -> list[frozenset[int]]:
    """The physical cores that this process may use, each as the numbers of its logical CPUs; see `physical_cores`."""
    cores: dict[str, set[int]] = {}
    for cpu in sorted(cpus if cpus is not None else os.sched_getaffinity(0)):
        try:
            core = (topology / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
        except OSError:
            core = f"cpu{cpu}"
        cores.setdefault(core, set()).add(cpu)
    return [frozenset(core) for core in cores.values()]


def _cores_of_quota(quota: Path) -> int:
    try:
        share, period = quota.read_text().split()
        return math.ceil(int(share) / int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return sys.maxsize  # none, or "max"


def set_thread_environment(threads: int = 0, environ: MutableMapping[str, str] = os.environ) -> list[str]:
    """Set the size and the waiting of all pools; 0 threads means one per physical core.

    Call it before anything imports numpy, cv2, faiss or onnxruntime. A variable that the operator has set
    keeps its value. Returns the libraries that were imported too early and did not see it.
    """
    count = str(threads or physical_cores())
    for name in _POOL_SIZES:
        environ.setdefault(name, count)
    for name, value in _SLEEP_AT_ONCE.items():
        environ.setdefault(name, value)
    return [name for name in _READ_AT_IMPORT if name in sys.modules]


def thread_pools(environ: Mapping[str, str] = os.environ) -> dict[str, str | int]:
    """Every pool of this process as it is, for `status`: environment, and what loaded libraries report."""
    pools: dict[str, str | int] = {"physical_cores": physical_cores()}
    pools |= {name: environ.get(name, "") for name in (*_POOL_SIZES, *_SLEEP_AT_ONCE)}
    cv2, faiss = sys.modules.get("cv2"), sys.modules.get("faiss")
    if cv2 is not None:
        pools["cv2"] = int(cv2.getNumThreads())
    if faiss is not None:
        pools["faiss"] = int(faiss.omp_get_max_threads())
    return pools


def blas_limiter(maps: Path = Path("/proc/self/maps")) -> Callable[[int], None] | None:
    """What sets the number of threads of numpy's matrix products from now on; None where there is no such thing.

    numpy brings its own OpenBLAS (under either name) and no way to size it after the import; faiss and OpenCV bring
    others, which numpy's products know nothing of. A call takes a microsecond. It never gives more threads than there
    were at first: `OPENBLAS_NUM_THREADS` is the operator's.
    """
    try:
        loaded = {line.split()[-1] for line in maps.read_text().splitlines() if "openblas" in line}
    except OSError:
        return None
    for path in sorted(loaded, key=lambda path: ("/numpy" not in path, path)):
        for name in ("scipy_openblas_{}_num_threads64_", "openblas_{}_num_threads64_", "openblas_{}_num_threads"):
            try:
                library = ctypes.CDLL(path)
                resize, size = getattr(library, name.format("set")), getattr(library, name.format("get"))
            except (OSError, AttributeError):
                continue
            resize.argtypes, resize.restype, size.restype = [ctypes.c_int], None, ctypes.c_int
            most = int(size())
            return lambda count: resize(min(count, most))
    return None


def one_core_each(threads: int, cores: Sequence[frozenset[int]] | None = None) -> Sequence[frozenset[int]]:
    """A core for each thread of a pool, the caller's first; none where the caller is alone or there are not enough.
    0 threads are the library's own choice, cores included."""
    cores = cores_allowed() if cores is None else cores
    return cores[:threads] if 1 < threads <= len(cores) else ()


class CoreSharing:
    """Model and search on the same few cores: who gets how many, and which.

    threads: of the search's matrix products, at most; pool: of the model's pool, whose threads but the caller's are
    pinned each to a core of its own (`engines.sessions.pool_cores`).
    """

    def __init__(self, threads: int, pool: int, cores: Sequence[frozenset[int]] | None = None) -> None:
        cores = cores_allowed() if cores is None else cores
        self._threads = threads
        self._limit = blas_limiter()
        self._everywhere = frozenset[int]().union(*cores)
        self._free_core = next(iter(one_core_each(pool, cores)), self._everywhere)
        self._placed = self._everywhere

    def model_begins(self, search_busy: bool) -> None:
        """Told by the model's thread before each run. Alone, it takes the core that its pool leaves free: wherever
        else it is woken, a thread of the pool has to wait for it. Beside a search it takes what there is."""
        wanted = self._everywhere if search_busy else self._free_core
        if wanted == self._placed:
            return
        try:
            os.sched_setaffinity(0, wanted)
        except OSError:  # the cores were taken from this process meanwhile, or it may not choose
            self._free_core = self._everywhere
        self._placed = wanted

    def search_begins(self, model_busy: bool, rows: int) -> None:
        """Told by the search's thread before each frame. rows: of its bank.

        A product in two threads waits, and spins, for a core that the model has: on two cores and 2,000 rows the
        daemon judged 72 frames a second with two threads, 108 with one (medians of four turns). And in a small bank
        a second thread gains little: 7% with 1,719 rows when frames follow each other at once; after a pause of 10 ms
        it lost, the slowest frame taking 18 ms with two, 13 with one.
        """
        if self._limit is not None:
            self._limit(1 if model_busy or rows < _ROWS_FOR_MORE_CORES else self._threads)


def keep_freed_memory() -> bool:
    """Let the allocator keep what is freed for the next frame instead of giving it back to the system each time.

    Arrays of a megabyte are otherwise mapped and unmapped for every frame, and each of their pages faults in
    anew: resizing 512² to 256² took 8 ms with 700 page faults and 2.3 ms without. Only glibc knows these
    settings (mallopt(3)); False elsewhere. Blocks above 32 MB are still returned at once.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 32 << 20) and mallopt(_M_TRIM_THRESHOLD, 512 << 20))


def spare_collector() -> None:
    """Let the garbage collector pass over what the imports made: it lives as long as the process.

    To be called once, before anything is loaded that may be dropped again. Looking through these 84,000 objects took a
    full collection 55 ms, and every thread waited for it.
    """
    gc.collect()
    gc.freeze()
