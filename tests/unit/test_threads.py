"""Pools that are sized while the program runs."""

import ctypes
from pathlib import Path

import faiss  # noqa: F401 - its OpenBLAS must not be taken for numpy's
import numpy as np
import pytest

from edge_daemon.threads import blas_limiter


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
