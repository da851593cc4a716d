"""Memory of a build: pictures and embeddings lie in scratch files, so ten times the pictures need no more of it.

`make scale` proves the same on 10,000 pictures under a real limit.
"""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from test_build_recipe import put, quiet, request

import export.gather
from export.build import DEFAULT_LARGEST_BANK, build_recipe, coreset_ratio
from export.gather import large_array, releasing

EMBEDDING_BYTES = 8 * 8 * 384 * 4  # of one picture at 64 px, embedded backbone


def peak_bytes(folder, out, bank_rows, count):
    """The most that numpy and Python held at once during a build whose bank has always the same size."""
    ratio = bank_rows / (round(count * 0.7) * 64)
    tracemalloc.start()
    try:
        build_recipe(request(folder, out, coreset_ratio=ratio), quiet)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(export.gather, "IN_MEMORY_BYTES", 0)
    few, many = put(tmp_path / "few", range(40)), put(tmp_path / "many", range(200))
    peak_bytes(few, tmp_path / "warm", 150, 40)  # what is imported and cached once
    first, second = peak_bytes(few, tmp_path / "a", 150, 40), peak_bytes(many, tmp_path / "b", 150, 200)
    # A thumbnail, a name and some numbers a patch are kept of each; its embeddings would be 98 KB.
    assert (second - first) / 160 < 0.35 * EMBEDDING_BYTES


def resident_bytes(array):
    """Of a mapped file, from the system's account."""
    address = array.ctypes.data
    found = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head:
            begin, end = (int(part, 16) for part in head.split("-"))
            found = begin <= address < end
        elif found and head == "Rss:":
            return int(line.split()[1]) * 1024
    raise AssertionError("the array is not mapped")


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's account of mapped memory")
def test_pages_of_scratch_files_are_given_back_and_keep_what_is_in_them(tmp_path, monkeypatch):
    monkeypatch.setattr(export.gather, "IN_MEMORY_BYTES", 0)
    array = large_array((4096, 1024), np.float32, tmp_path)
    array[:] = np.arange(1024, dtype=np.float32)
    assert resident_bytes(array) == array.nbytes
    give_back = releasing(array, every=2)
    give_back()
    assert resident_bytes(array) == array.nbytes
    give_back()
    assert resident_bytes(array) == 0
    assert (array[::512] == np.arange(1024)).all()


def test_a_default_bank_stops_growing_where_it_would_take_hours(tmp_path):
    asked = request(tmp_path, tmp_path / "r")
    assert coreset_ratio(asked, 10_000) == 0.1
    assert coreset_ratio(asked, 7_000 * 1024) == DEFAULT_LARGEST_BANK / (7_000 * 1024)
    assert coreset_ratio(request(tmp_path, tmp_path / "r", coreset_ratio=0.3), 7_000 * 1024) == 0.3
