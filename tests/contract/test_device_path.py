"""Embeddings that stay on the device, here ordinary memory: judged as on the host."""

from pathlib import Path

import numpy as np
import pytest

from edge_daemon.core.decision import Thresholds
from edge_daemon.detectors.base import on_host
from edge_daemon.detectors.loading import build_detector, load_verified
from edge_daemon.detectors.patchcore import PatchCoreDetector
from edge_daemon.engines.choice import Choices
from edge_daemon.engines.device import DeviceFeatures
from edge_daemon.engines.nearest import make_engine
from edge_daemon.engines.sessions import PROVIDERS, EngineOptions, Sessions
from edge_daemon.errors import EdgeError, ProviderError
from tests import oracle, oracle_recipe

Array = np.ndarray
SIDE = 64
LIMITS = (1e3, 1.1e3, 1e3)


def picture(seed: int) -> Array:
    rng = np.random.default_rng(seed)
    coarse = np.random.default_rng(0).integers(60, 190, (8, 8, 3)).repeat(8, axis=0).repeat(8, axis=1)
    return np.clip(coarse + rng.normal(0, 6, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)


def damaged(seed: int) -> Array:
    pixels = picture(seed)
    pixels[20:34, 30:40] = (255, 0, 255)
    return pixels


@pytest.fixture(scope="module", params=["anomalib", "paper"])
def recipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = oracle.SmallNetwork().double()
    good = [picture(seed) for seed in range(1, 9)]
    bank = oracle_recipe.random_bank(network, good, request.param, rows=700)
    backbone = oracle_recipe.fused_small(network, (SIDE, SIDE), request.param)
    path = tmp_path_factory.mktemp("recipe") / f"{request.param}.recipe"
    return oracle_recipe.build(path, backbone, bank, picture(50), LIMITS)


def sessions(embeddings: str = "auto") -> Sessions:
    return Sessions(EngineOptions(intra_op_threads=1, embeddings=embeddings))  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ["graph", "certified", "flat"])
def test_features_on_the_device_give_score_boxes_and_maps_of_the_host_path(recipe: Path, engine: str) -> None:
    """On the CPU provider to the bit. On a card the backbone's own rounding differs, within the golden tolerance."""
    host = load_verified(recipe, sessions("host"), "flat")
    device = load_verified(recipe, sessions("device"), engine)
    pixels = [picture(60), damaged(61), picture(62), damaged(63)]
    on_card = device.detector.extractor.extract(np.concatenate([device.detector.prepare(p).inputs for p in pixels]))
    in_memory = host.detector.extractor.extract(np.concatenate([host.detector.prepare(p).inputs for p in pixels]))
    assert all(isinstance(features, DeviceFeatures) for features in on_card)
    found_boxes = 0
    for there, here in zip(on_card, in_memory, strict=True):
        assert (on_host(there) == here).all()
        threshold = 0.7 * host.detector.judge(here, host.detector.thresholds).max_distance
        for limit in (threshold, 1e6):
            limits = Thresholds(1.0, 1.0, limit)
            expected, found = host.detector.judge(here, limits), device.detector.judge(there, limits)
            assert (found.score, found.max_distance) == (expected.score, expected.max_distance)
            assert found.boxes == expected.boxes
            assert found.anomaly_map is not None
            assert expected.anomaly_map is not None
            assert (found.anomaly_map() == expected.anomaly_map()).all()
            found_boxes += len(found.boxes)
    assert found_boxes


def test_few_patches_leave_the_device_for_a_good_part(recipe: Path) -> None:
    """Of a frame's patches only those come back that may be the farthest."""
    ready = load_verified(recipe, sessions("device"), "graph")
    features = ready.detector.extractor.extract(ready.detector.prepare(picture(70)).inputs)[0]
    evidence = ready.detector.judge(features, ready.detector.thresholds)
    cells = features.shape[0] * features.shape[1]
    assert evidence.exact_searches is not None
    assert 1 <= evidence.exact_searches <= max(32, cells // 4)


@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e20])
@pytest.mark.parametrize("engine", ["graph", "certified"])
def test_features_that_are_not_finite_on_the_device_never_give_a_score(
    recipe: Path, engine: str, poison: float
) -> None:
    live = sessions("device")
    detector = load_verified(recipe, live, engine).detector
    grid = np.array(on_host(detector.extractor.extract(detector.prepare(picture(1)).inputs)[0]))
    grid[1, 2, 0] = poison
    graphs = live.graphs()
    features = DeviceFeatures(graphs.upload(grid[None]), 0, graphs)
    assert np.isnan(detector.judge(features, detector.thresholds).score)


def test_a_projection_on_the_device_gives_the_scores_of_the_host(recipe: Path) -> None:
    """Two matrix products may round differently: 1e-5 relative, as for golden samples."""
    ready = load_verified(recipe, sessions("device"), "flat")
    features = ready.detector.extractor.extract(ready.detector.prepare(damaged(80)).inputs)[0]
    rng = np.random.default_rng(0)
    dims = ready.recipe.bank.shape[1]
    projection = np.linalg.qr(rng.standard_normal((dims, dims // 2)))[0].astype(np.float32)
    bank = ready.recipe.bank @ projection
    assert isinstance(ready.detector, PatchCoreDetector)
    scores = []
    for engine in ("graph", "flat"):
        detector = PatchCoreDetector(
            ready.detector.settings,
            Thresholds(1.0, 1.0, 1e6),
            ready.detector.extractor,
            bank,
            make_engine(engine, bank, sessions().graphs()),
            projection,
        )
        scores.append(detector.judge(features, detector.thresholds).score)
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_embeddings_stay_on_a_card_only_where_the_search_runs_there_too(recipe: Path) -> None:
    automatic = sessions()
    assert not automatic.keeps_on_device(PROVIDERS["cpu"], "graph")
    assert automatic.keeps_on_device(PROVIDERS["cuda"], "graph")
    assert automatic.keeps_on_device(PROVIDERS["tensorrt"], "graph")
    assert not automatic.keeps_on_device(PROVIDERS["cuda"], "certified")
    assert not sessions("host").keeps_on_device(PROVIDERS["cuda"], "graph")
    loaded = load_verified(recipe, automatic, "graph")
    assert isinstance(loaded.detector.extractor.extract(loaded.detector.prepare(picture(1)).inputs), np.ndarray)


def test_a_search_demanded_on_a_card_that_is_not_there_is_refused() -> None:
    with pytest.raises((ProviderError, EdgeError), match="CUDAExecutionProvider"):
        sessions().graphs(PROVIDERS["tensorrt"]).graph("nearest")


def test_a_recipe_is_measured_at_its_first_load_and_read_from_then_on(recipe: Path, tmp_path: Path) -> None:
    def loaded() -> object:
        choices = Choices(tmp_path / "engines.json")
        return load_verified(recipe, Sessions(EngineOptions(intra_op_threads=1), choices))

    first, second = loaded(), loaded()
    assert first.choice.why == "measured"  # type: ignore[attr-defined]
    assert set(first.choice.ms) == {"certified", "flat"}  # type: ignore[attr-defined]
    assert second.choice.why == "remembered"  # type: ignore[attr-defined]
    assert second.choice.engine == first.choice.engine  # type: ignore[attr-defined]
    forced = load_verified(recipe, Sessions(EngineOptions(), Choices(tmp_path / "other.json")), "numpy")
    assert (forced.choice.engine, forced.choice.why) == ("numpy", "forced")
    assert not (tmp_path / "other.json").exists()


def test_a_measurement_that_fails_is_no_reason_to_refuse_a_recipe(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise EdgeError("no memory left")

    monkeypatch.setattr("edge_daemon.detectors.choosing.in_turn", fails)
    ready = load_verified(recipe, Sessions(EngineOptions(), Choices(tmp_path / "engines.json")))
    assert (ready.choice.engine, ready.choice.why) == ("certified", "rule")
    assert "no memory left" in ready.choice.reason
    assert build_detector(ready.recipe, sessions()).thresholds == ready.detector.thresholds
