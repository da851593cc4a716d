"""A recipe whose arithmetic differs from provider to provider judges only on the one that it was calibrated on."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from edge_daemon.detectors.loading import check_calibrated_on, load_verified
from edge_daemon.engines.sessions import PROVIDERS, EngineOptions, Sessions
from edge_daemon.errors import RecipeEngineError
from tests import oracle, oracle_recipe

SIDE = 64
CPU, CUDA, TENSORRT = PROVIDERS["cpu"], PROVIDERS["cuda"], PROVIDERS["tensorrt"]
NOWHERE = None


def manifest(precision: str, provenance: dict[str, Any]) -> Any:
    return SimpleNamespace(name="bottle", backbone=SimpleNamespace(precision=precision), provenance=provenance)


def calibrated_on(provider: str | None) -> dict[str, Any]:
    return {} if provider is NOWHERE else {"software": {"provider": provider}}


@pytest.mark.parametrize(
    ("precision", "calibrated", "runs", "judges"),
    [
        ("fp32", CPU, CPU, True),
        ("fp32", CPU, CUDA, True),
        ("fp32", CUDA, CPU, True),
        ("fp32", NOWHERE, CPU, True),
        ("fp32", NOWHERE, CUDA, True),
        ("fp32", CPU, TENSORRT, False),
        ("fp32", TENSORRT, CPU, False),
        ("fp32", TENSORRT, CUDA, False),
        ("fp32", NOWHERE, TENSORRT, False),
        ("fp32", TENSORRT, TENSORRT, True),
        *[
            (precision, calibrated, runs, calibrated == runs)
            for precision in ("int8", "fp16")
            for calibrated in (CPU, CUDA, TENSORRT, NOWHERE)
            for runs in (CPU, CUDA, TENSORRT)
        ],
    ],
)
def test_what_rounds_in_its_own_way_judges_only_where_it_was_calibrated(
    precision: str, calibrated: str | None, runs: str, judges: bool
) -> None:
    content = manifest(precision, calibrated_on(calibrated))
    if judges:
        check_calibrated_on(content, runs)
        return
    with pytest.raises(RecipeEngineError, match=f"bottle judges in {precision} and was .* here {runs} runs"):
        check_calibrated_on(content, runs)


@pytest.mark.parametrize("provenance", [{"software": "by hand"}, {"software": {}}, {"software": {"provider": 3}}])
def test_a_provenance_that_names_no_provider_is_no_calibration(provenance: dict[str, Any]) -> None:
    with pytest.raises(RecipeEngineError, match="calibrated on a provider that it does not name"):
        check_calibrated_on(manifest("int8", provenance), CPU)


@pytest.fixture(scope="module")
def parts() -> tuple[Any, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    good = [draw.integers(60, 120, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(3)]
    network = oracle.SmallNetwork().double()
    bank = oracle_recipe.random_bank(network, good, "anomalib", rows=60)
    return oracle_recipe.fused_small(network, (SIDE, SIDE), "anomalib"), bank, good[0]


@pytest.mark.parametrize("fallback", [False, True])
def test_a_recipe_of_eight_bits_is_refused_by_name_where_another_provider_runs_also_as_the_fallback(
    tmp_path: Path, parts: tuple[Any, np.ndarray, np.ndarray], fallback: bool
) -> None:
    backbone, bank, golden = parts
    sessions = Sessions(EngineOptions("cuda", "cpu", 1) if fallback else EngineOptions(intra_op_threads=1))
    try:
        sessions.extractor(backbone.model_bytes, backbone.sha256)
    except Exception:  # where there is a card, and not its libraries
        pytest.skip("no session to be had here")
    if sessions.extractor(backbone.model_bytes, backbone.sha256).provider != CPU:
        pytest.skip("CUDA runs here: there is no fallback to be seen")
    for name, calibrated, judges in (("here", CPU, True), ("there", CUDA, False)):
        path = oracle_recipe.build(
            tmp_path / f"{name}.recipe",
            replace(backbone, precision="int8"),
            bank,
            golden,
            (100.0, 100.0, 100.0),
            provenance=calibrated_on(calibrated),
        )
        if judges:
            assert load_verified(path, sessions).provider == CPU
        else:
            with pytest.raises(RecipeEngineError, match="was calibrated on CUDAExecutionProvider"):
                load_verified(path, sessions)


def test_the_manifest_of_a_built_recipe_says_where_it_was_calibrated() -> None:
    from export.build import software

    assert cast(Any, software(CPU))["provider"] == CPU
