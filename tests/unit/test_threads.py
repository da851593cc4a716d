"""Pools that are sized while the program runs."""

import ctypes
import gc
import os
import threading
import weakref
from pathlib import Path

import faiss  # noqa: F401 - its OpenBLAS must not be taken for numpy's
import numpy as np
import pytest

from edge_daemon.engines.sessions import pool_cores
from edge_daemon.threads import CoreSharing, blas_limiter, spare_collector


def openblas_threads() -> int:
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "openblas" in line}
    library = ctypes.CDLL(next(iter(path for path in loaded if "/numpy" in path)))
    return int(library.scipy_openblas_get_num_threads64_())


def test_products_of_numpy_get_as_many_threads_as_said_and_come_out_the_same() -> None:
    limit = blas_limiter()
    if limit is None:
        pytest.skip("this numpy was built without OpenBLAS")
    before = openblas_threads()
    try:
        draw = np.random.default_rng(0)
        # Whole numbers: exact in whatever order they are added.
        a, b = (draw.integers(-8, 8, (300, 300)).astype(np.float32) for _ in range(2))
        found = []
        for count in (1, before, before + 7, 1):
            limit(count)
            assert openblas_threads() == min(count, before)
            found.append(a @ b)
        assert all((product == found[0]).all() for product in found)
    finally:
        limit(before)


def test_without_openblas_there_is_nothing_to_limit(tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.write_text(
        "7f00-7f01 r-xp 00000000 08:01 1 /usr/lib/libc.so.6\n7f02-7f03 r-xp 0 08:01 2 /gone/libopenblas.so\n"
    )
    assert blas_limiter(maps) is None
    assert blas_limiter(tmp_path / "none") is None


def test_each_thread_of_a_pool_but_the_callers_gets_a_core() -> None:
    cores = [frozenset({0, 4}), frozenset({1, 5}), frozenset({3})]
    assert pool_cores(3, cores) == "2,6;4"
    assert pool_cores(2, cores) == "2,6"
    assert pool_cores(1, cores) == "", "the caller alone"
    assert pool_cores(0, cores) == "", "onnxruntime chooses"
    assert pool_cores(4, cores) == "", "more threads than cores take turns anyway"


def test_the_model_takes_the_core_its_pool_leaves_free_and_gives_it_up_beside_a_search() -> None:
    everywhere = os.sched_getaffinity(0)
    cores = [frozenset({cpu}) for cpu in sorted(everywhere)]
    if len(cores) < 2:
        pytest.skip("needs two CPUs")
    sharing = CoreSharing(threads=2, pool=2, cores=cores)
    found: list[set[int]] = []

    def model() -> None:
        for search_busy in (False, True, False):
            sharing.model_begins(search_busy)
            found.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=model)
    thread.start()
    thread.join()
    assert found == [cores[0], everywhere, cores[0]]
    assert os.sched_getaffinity(0) == everywhere, "no other thread is moved"


@pytest.mark.parametrize("pool", [1, 9])
def test_a_model_without_a_pinned_pool_stays_where_the_system_puts_it(pool: int) -> None:
    sharing = CoreSharing(threads=1, pool=pool, cores=[frozenset({0}), frozenset({1})])
    before = os.sched_getaffinity(0)
    sharing.model_begins(search_busy=False)
    assert os.sched_getaffinity(0) == before


def test_a_search_beside_the_model_and_one_of_a_small_bank_take_one_core() -> None:
    sharing = CoreSharing(threads=2, pool=1)
    told: list[int] = []
    sharing._limit = told.append
    for model_busy, rows in ((False, 100_000), (True, 100_000), (False, 2_000)):
        sharing.search_begins(model_busy, rows)
    assert told == [2, 1, 1]


def test_what_the_imports_made_is_no_longer_looked_through_and_what_comes_after_is_still_collected() -> None:
    class Ring:
        def __init__(self) -> None:
            self.me = self

    try:
        spare_collector()
        assert gc.get_freeze_count() > 10_000
        ring = Ring()
        gone = weakref.ref(ring)
        del ring
        gc.collect()
        assert gone() is None
    finally:
        gc.unfreeze()
