"""The judge against the oracle: scores, ties, maps and boxes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_daemon.core.decision import Thresholds
from edge_daemon.core.geometry import Region
from edge_daemon.core.maps import anomaly_map, boxes_above
from edge_daemon.core.patchcore import image_score, reweighting
from edge_daemon.detectors.patchcore import PatchCoreDetector, PatchCoreSettings
from edge_daemon.engines.nearest import make_engine
from tests import oracle

ENGINES = ("certified", "flat", "numpy")


class NoExtractor:
    """A detector in these tests judges features that were made by hand."""

    key = ("", 32, 32)
    provider = "none"

    def extract(self, batch: np.ndarray) -> np.ndarray:  # noqa: ARG002
        raise AssertionError("not to be called")


def settings(**changes: object) -> PatchCoreSettings:
    fields: dict[str, object] = {
        "frame_size": (64, 64),
        "region": None,
        "resize": "antialias",
        "resize_to": (64, 64),
        "size": (64, 64),
        "extent": (64, 64),
        "neighbours": 9,
        "metric": "euclidean",
        "upsampling": "nearest",
        "blur": "torch_reflect",
        "blur_sigma_px": 4.0,
    }
    return PatchCoreSettings(**{**fields, **changes})  # type: ignore[arg-type]


def detector(bank: np.ndarray, engine: str, pixel: float = 1.0, **changes: object) -> PatchCoreDetector:
    thresholds = Thresholds(1.0, 1.0, pixel)
    return PatchCoreDetector(settings(**changes), thresholds, NoExtractor(), bank, make_engine(engine, bank))


def embeddings(rows: int, dim: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, dim)) + 3 * rng.standard_normal(dim)).astype(np.float32)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("neighbours", [1, 2, 9])
@pytest.mark.parametrize("rows", [1, 2, 5, 200])
def test_score_and_map_equal_the_oracle(engine: str, neighbours: int, rows: int) -> None:
    bank, features = embeddings(rows, 24, 1), embeddings(64, 24, 2).reshape(8, 8, 24)
    judge = detector(bank, engine, pixel=0.0, neighbours=neighbours)
    evidence = judge.judge(features, judge.thresholds)
    flat, wide = features.reshape(-1, 24).astype(float), bank.astype(float)
    distance, row = oracle.nearest(flat, wide)
    assert evidence.max_distance == pytest.approx(distance.max(), rel=1e-6)
    assert evidence.score == pytest.approx(oracle.image_score(flat, wide, distance, row, neighbours), rel=1e-6)
    assert evidence.anomaly_map is not None
    expected = oracle.map_anomalib(distance.reshape(8, 8), (64, 64), (64, 64))
    np.testing.assert_allclose(evidence.anomaly_map(), expected, rtol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_paper_profile_takes_the_squared_maximum_without_reweighting(engine: str) -> None:
    bank, features = embeddings(50, 16, 3), embeddings(49, 16, 4).reshape(7, 7, 16)
    judge = detector(bank, engine, metric="squared_euclidean", upsampling="bilinear", blur="scipy_reflect")
    evidence = judge.judge(features, judge.thresholds)
    distance, _ = oracle.nearest(features.reshape(-1, 16).astype(float), bank.astype(float))
    assert evidence.score == evidence.max_distance == pytest.approx((distance**2).max(), rel=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 3e38])
def test_features_that_are_not_finite_never_give_a_score(engine: str, poison: float) -> None:
    bank, features = embeddings(20, 8, 5), embeddings(16, 8, 6).reshape(4, 4, 8)
    features[2, 1, 3] = poison
    judge = detector(bank, engine)
    assert not np.isfinite(judge.judge(features, judge.thresholds).score)


@given(
    st.integers(1, 6),
    st.integers(1, 40),
    st.integers(1, 12),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 2, 9]),
    st.sampled_from([1, 3, 1000]),
)
def test_engines_agree_on_adversarial_banks(
    dim: int, rows: int, patches: int, seed: int, neighbours: int, levels: int
) -> None:
    """Few levels make duplicates, clusters, equal distances and ties at the maximum."""
    rng = np.random.default_rng(seed)
    bank = rng.integers(0, levels, (rows, dim)).astype(np.float32)
    features = rng.integers(0, levels, (patches, dim)).astype(np.float32)
    found = []
    for name in ENGINES:
        engine = make_engine(name, bank)
        maximum = engine.maximum(features, (1, patches), None)
        found.append(image_score(features, maximum, bank, engine.neighbours, neighbours, "euclidean"))
    assert found[0] == found[1] == found[2]
    exact = ((features[:, None].astype(float) - bank[None]) ** 2).sum(-1)
    assert found[0].patch == int(exact.min(axis=1).argmax())
    assert found[0].row == int(exact[found[0].patch].argmin())


@pytest.mark.parametrize("engine", ENGINES)
def test_a_tie_goes_to_the_lowest_row_even_among_many_duplicates(engine: str) -> None:
    found = make_engine(engine, np.ones((3000, 4), np.float32)).complete(np.zeros((2, 4), np.float32))
    assert found.rows.tolist() == [0, 0]
    assert found.squared.tolist() == [4.0, 4.0]


def test_a_bank_of_one_row_does_not_weigh_every_score_down_to_nothing() -> None:
    bank = np.zeros((1, 3), np.float32)
    engine = make_engine("flat", bank)
    assert reweighting(np.full(3, 7, np.float32), 0, bank, engine.neighbours, 9) == 1.0


def test_boxes_cover_the_hot_pixels_in_full_frame_coordinates() -> None:
    anomaly = np.zeros((32, 32), np.float32)
    anomaly[4:8, 10:16] = 2.0
    anomaly[20, 20] = 5.0
    region = Region(100, 50, 64, 64)
    boxes = boxes_above(anomaly, 2.0, (400, 300), region, (32, 32))
    assert [(b.x, b.y, b.w, b.h) for b in boxes] == [(140, 90, 2, 2), (120, 58, 12, 8)]
    assert [b.peak for b in boxes] == [5.0, 2.0]
    assert [b.area_px for b in boxes] == [4.0, 96.0]


def test_boxes_of_a_centre_crop_are_shifted_by_it() -> None:
    anomaly = np.zeros((28, 28), np.float32)
    anomaly[0, 0] = 1.0
    (box,) = boxes_above(anomaly, 1.0, (64, 64), None, (32, 32))
    assert (box.x, box.y, box.w, box.h) == (4, 4, 2, 2)


def test_pixels_at_the_threshold_belong_to_the_box_and_those_below_do_not() -> None:
    anomaly = np.full((8, 8), np.float32(0.999), np.float32)
    assert boxes_above(anomaly, 1.0, (8, 8), None, (8, 8)) == ()
    anomaly[3, 3] = 1.0
    assert len(boxes_above(anomaly, 1.0, (8, 8), None, (8, 8))) == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_no_map_is_missed_by_the_short_cut_for_good_parts(engine: str) -> None:
    """Boxes are left out only when the largest distance lies below the pixel threshold."""
    bank, features = embeddings(30, 8, 7), embeddings(64, 8, 8).reshape(8, 8, 8)
    judge = detector(bank, engine)
    evidence = judge.judge(features, judge.thresholds)
    assert evidence.anomaly_map is not None
    hottest = float(evidence.anomaly_map().max())
    assert hottest <= evidence.max_distance * (1 + 1e-6)
    just_below = Thresholds(1.0, 1.0, hottest)
    just_above = Thresholds(1.0, 1.0, float(np.nextafter(np.float32(hottest), np.float32(np.inf))))
    assert judge.judge(features, just_below).boxes
    assert not judge.judge(features, just_above).boxes


def test_the_map_of_a_padded_grid_is_cut_to_the_picture() -> None:
    grid = np.arange(12, dtype=np.float32).reshape(3, 4)
    whole = anomaly_map(grid, (56, 42), (56, 42), "nearest", "torch_reflect", 0.0)
    cut = anomaly_map(grid, (50, 40), (56, 42), "nearest", "torch_reflect", 0.0)
    assert (cut == whole[:40, :50]).all()
