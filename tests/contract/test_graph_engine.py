"""The search on the session's provider, here the CPU's: the reference's answers to the bit, whatever is proposed."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_daemon.engines import graph
from edge_daemon.engines.device import DevicePatches
from edge_daemon.engines.graph import GraphEngine, padded_rows
from edge_daemon.engines.nearest import make_engine
from edge_daemon.engines.sessions import EngineOptions, Sessions
from edge_daemon.errors import EdgeError
from export.search_graphs import FOLDER, search_graphs
from tests.contract.test_engines import GRIDS, SHAPES, Array, _features

GRAPHS = Sessions(EngineOptions(intra_op_threads=1)).graphs()


def on_device(patches: Array) -> DevicePatches:
    return DevicePatches(GRAPHS.upload(patches), np.einsum("pd,pd->p", patches, patches), GRAPHS)


@settings(max_examples=60, deadline=None)
@given(
    make=st.sampled_from(SHAPES),
    kind=st.sampled_from(["same kind", "bank rows", "origin", "next float"]),
    rows=st.sampled_from([1, 2, 3, 17, 255, 256, 257, 300, 2500]),
    dim=st.sampled_from([1, 2, 3, 8, 33]),
    grid=st.sampled_from(GRIDS),
    block=st.sampled_from([256, 1 << 14]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_graph_engine_finds_what_the_reference_finds(
    make: Callable[..., Array], kind: str, rows: int, dim: int, grid: tuple[int, int], block: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    bank = make(rng, rows, dim).astype(np.float32)
    patches = _features(rng, make, kind, bank, grid[0] * grid[1])
    reference = make_engine("numpy", bank)
    expected = reference.maximum(patches, grid, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "_BLOCK_ROWS", block)
        engine = GraphEngine(bank, GRAPHS)
    for given_as in (patches, on_device(patches)):
        found = engine.maximum(given_as, grid, None)
        assert (found.patch, found.row, found.squared) == (expected.patch, expected.row, expected.squared)
        known = found.nearest
        assert (known.squared >= expected.nearest.squared).all()
        assert (known.squared[known.exact] == expected.nearest.squared[known.exact]).all()
        assert (known.rows[known.exact] == expected.nearest.rows[known.exact]).all()
    complete = engine.complete(patches)
    assert complete.exact.all()
    assert (complete.squared == expected.nearest.squared).all()
    assert (complete.rows == expected.nearest.rows).all()
    for row in {0, rows // 2, found.row}:
        assert engine.neighbours(row, 9).tolist() == reference.neighbours(row, 9).tolist()


def test_the_graphs_in_the_package_are_those_that_export_makes() -> None:
    files = {path.stem: path.read_bytes() for path in FOLDER.iterdir() if path.suffix == ".onnx"}
    assert files == dict(search_graphs())


def test_padding_is_never_a_neighbour_even_where_the_origin_is_asked_for() -> None:
    """Padded rows are zeros: without their infinite norm they would be the nearest of the centre."""
    rng = np.random.default_rng(1)
    bank = rng.choice([-9.0, 9.0], (300, 4)).astype(np.float32)
    engine = GraphEngine(bank, GRAPHS)
    found = engine.complete(np.repeat(bank.mean(axis=0)[None], 3, axis=0))
    assert (found.rows < 300).all()
    assert engine.neighbours(0, 300).tolist() == make_engine("numpy", bank).neighbours(0, 300).tolist()


@pytest.mark.parametrize(("rows", "padded"), [(1, 256), (256, 256), (257, 512), (5000, 5120), (16384, 16384)])
def test_banks_of_similar_size_are_padded_to_the_same_size(rows: int, padded: int) -> None:
    assert padded_rows(rows) == padded
    assert padded_rows(padded) == padded


@pytest.mark.parametrize("wrong", ["bank", "centre"])
def test_a_provider_that_computes_in_ten_bits_is_refused_when_the_engine_is_made(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What TF32 does to a product: factors cut to ten bits of mantissa."""
    upload = GRAPHS.upload

    def coarse(values: Array) -> object:
        shortened = (np.ascontiguousarray(values).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
        return upload(shortened if (values.ndim == 2) == (wrong == "bank") else values)

    monkeypatch.setattr(GRAPHS, "upload", coarse)
    bank = (np.random.default_rng(3).standard_normal((500, 64)) + 5).astype(np.float32)
    with pytest.raises(EdgeError, match="less exactly than in float32"):
        GraphEngine(bank, GRAPHS)


def test_a_search_that_fails_on_the_device_names_graph_and_provider() -> None:
    engine = GraphEngine(np.ones((10, 4), np.float32), GRAPHS)
    with pytest.raises(EdgeError, match="graph nearest failed on CPUExecutionProvider"):
        engine.complete(np.ones((2, 5), np.float32))
