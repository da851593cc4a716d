"""Reduced embeddings (`pca/1`): the projection travels with the bank and is refused when it does not fit."""

from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from test_patchcore import NoExtractor, embeddings, settings
from test_recipe import fields, parts

from edge_daemon.artefact.manifest import PCA_FEATURE
from edge_daemon.artefact.recipe import BANK, MANIFEST, bank_bytes, manifest_bytes, sha256, verify_files
from edge_daemon.core.decision import Thresholds
from edge_daemon.detectors.patchcore import PatchCoreDetector
from edge_daemon.engines.nearest import make_engine
from edge_daemon.errors import RecipeShapeError

PROJECTION = np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2)


def reduced_files(bank: bytes, features: tuple[str, ...] = ("patchcore/1", PCA_FEATURE)) -> dict[str, bytes]:
    files = {**parts(), BANK: bank}
    content: dict[str, Any] = fields(files)
    content["required_features"] = features
    content["bank"]["dim"] = 2
    content["bank"]["sha256"] = sha256(bank)
    return {**files, MANIFEST: manifest_bytes(content)}


def test_a_projection_travels_with_its_bank() -> None:
    bank = np.ones((3, 2), np.float32)
    recipe = verify_files(reduced_files(bank_bytes(bank, PROJECTION)), "here")
    assert recipe.projection is not None
    assert np.array_equal(recipe.projection, PROJECTION)
    assert not recipe.projection.flags.writeable


@pytest.mark.parametrize(
    "projection",
    [
        None,
        PROJECTION.T,
        PROJECTION.astype(np.float64),
        np.full((4, 2), np.nan, np.float32),
        np.full((4, 2), np.inf, np.float32),
        PROJECTION[:, :1],
    ],
    ids=["missing", "turned", "float64", "nan", "infinite", "narrow"],
)
def test_a_projection_that_does_not_fit_is_refused(projection: np.ndarray | None) -> None:
    tensors = {"bank": np.ones((3, 2), np.float32)}
    if projection is not None:
        tensors["projection"] = np.ascontiguousarray(projection)
    with pytest.raises(RecipeShapeError, match="projection"):
        verify_files(reduced_files(safetensors.numpy.save(tensors)), "here")


def test_a_projection_that_an_older_daemon_would_overlook_is_refused() -> None:
    files = reduced_files(bank_bytes(np.ones((3, 2), np.float32), PROJECTION), ("patchcore/1",))
    with pytest.raises(RecipeShapeError, match="does not require pca/1"):
        verify_files(files, "here")


def detector(bank: np.ndarray, projection: np.ndarray | None) -> PatchCoreDetector:
    limits = Thresholds(1.0, 1.0, 0.0)
    return PatchCoreDetector(settings(), limits, NoExtractor(), bank, make_engine("flat", bank), projection)


def test_a_frame_is_judged_in_the_dimensions_of_the_bank() -> None:
    rows, features = embeddings(40, 12, 1), embeddings(64, 12, 2).reshape(8, 8, 12)
    matrix = embeddings(12, 5, 3)
    reduced = detector(rows @ matrix, matrix)
    plain = detector(rows @ matrix, None)
    found = reduced.judge(features, reduced.thresholds)
    expected = plain.judge(features @ matrix, plain.thresholds)
    assert found.score == pytest.approx(expected.score, rel=1e-6)
    assert found.anomaly_map is not None
    assert expected.anomaly_map is not None
    np.testing.assert_allclose(found.anomaly_map(), expected.anomaly_map(), rtol=1e-5)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_stays_so_through_the_projection(poison: float) -> None:
    rows, features, matrix = embeddings(20, 8, 5), embeddings(16, 8, 6).reshape(4, 4, 8), embeddings(8, 3, 7)
    features[2, 1, 3] = poison
    judge = detector(rows @ matrix, matrix)
    assert not np.isfinite(judge.judge(features, judge.thresholds).score)


def test_a_projection_cannot_hide_infinity_behind_a_zero() -> None:
    features, matrix = np.ones((2, 2, 3), np.float32), np.eye(3, 2, dtype=np.float32)
    features[0, 0, 2] = np.inf  # the coordinate that the matrix leaves out
    judge = detector(np.ones((4, 2), np.float32), matrix)
    assert not np.isfinite(judge.judge(features, judge.thresholds).score)
