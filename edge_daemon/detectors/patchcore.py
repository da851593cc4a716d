"""PatchCore as a detector (Roth et al. 2022, arXiv 2106.08265)."""

import math
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from edge_daemon.artefact.manifest import Manifest
from edge_daemon.core.align import Locator, Pose, Search, aligned, box_in_frame, seen
from edge_daemon.core.decision import Evidence, Thresholds
from edge_daemon.core.distances import LARGEST_SQUARED_NORM, largest_squared_norm
from edge_daemon.core.geometry import Box, Region
from edge_daemon.core.maps import Blur, Upsampling, anomaly_map, boxes_above
from edge_daemon.core.mask import ignored_pixels, in_frame
from edge_daemon.core.patchcore import Metric, image_score, patch_distances
from edge_daemon.core.picture import map_region
from edge_daemon.core.proof import Maximum, Nearest, remember
from edge_daemon.core.resize import ResizeMethod, to_model_input
from edge_daemon.core.support import support
from edge_daemon.core.tiles import Tiling
from edge_daemon.detectors.base import Extractor, Features, Prepared, on_host
from edge_daemon.detectors.tiles import STRIP_PATCHES, maximum_by_strips
from edge_daemon.engines.device import DeviceFeatures, DevicePatches
from edge_daemon.engines.graph import GraphEngine
from edge_daemon.engines.nearest import NearestNeighbour
from edge_daemon.errors import NotLocatedError, RecipeShapeError


@dataclass(frozen=True, slots=True)
class PatchCoreSettings:
    """What of a manifest the detector needs; see `artefact.manifest` for the fields.

    locator: finds the part, None where parts are judged where they lie; tiling: how the picture is cut, None where it
    is not; ignored: (gh, gw) bool, cells that take no part; smallest_px: area from which a box counts, full-frame
    pixels.
    """

    frame_size: tuple[int, int]
    region: Region | None
    resize: ResizeMethod
    resize_to: tuple[int, int]
    size: tuple[int, int]
    extent: tuple[int, int]
    neighbours: int
    metric: Metric
    upsampling: Upsampling
    blur: Blur
    blur_sigma_px: float
    locator: Locator | None = field(default=None, compare=False)
    tiling: Tiling | None = None
    ignored: NDArray[np.bool_] | None = field(default=None, compare=False)
    smallest_px: float = 0.0

    @classmethod
    def of(cls, manifest: Manifest, template: NDArray[np.uint8] | None = None) -> "PatchCoreSettings":
        """The settings that a manifest states. template: `artefact.recipe.Recipe.template`. Raises RecipeShapeError
        for an alignment without a template that can be found again."""
        parameters = manifest.parameters
        return cls(
            frame_size=manifest.view.frame_size,
            region=Region(*manifest.view.region) if manifest.view.region else None,
            resize=manifest.preprocess.resize,
            resize_to=manifest.preprocess.resize_to,
            size=manifest.preprocess.size,
            extent=manifest.extent,
            neighbours=parameters.neighbours,
            metric=parameters.metric,
            upsampling=parameters.upsampling,
            blur=parameters.blur,
            blur_sigma_px=parameters.blur_sigma_px,
            locator=_locator(manifest, template),
            tiling=manifest.tiling,
            ignored=manifest.mask.ignored() if manifest.mask else None,
            smallest_px=manifest.view.min_defect_px,
        )

    def prepare(self, pixels: NDArray[np.uint8]) -> Prepared:
        """Full frame -> model inputs. Raises PictureError when the frame does not fit, NotLocatedError when its part
        is not found."""
        pose = None
        # A frame of another size or type is left to the resize to refuse.
        if self.locator is not None and pixels.dtype == np.uint8 and self._fits(pixels.shape):
            pose = self.locator.locate(pixels)
            if pose is None:
                raise NotLocatedError(_not_located(self.locator.search))
            if not seen(self._judged(), pose, self.frame_size):
                raise NotLocatedError(_BEYOND)
            pixels = aligned(pixels, pose)
        picture = to_model_input(pixels, self.frame_size, self.region, self.resize_to, self.size, self.resize)
        if self.tiling is None:
            return Prepared(picture[None], pose)
        cut = self.tiling.cut
        return Prepared(np.stack([cut(picture, tile) for tile in self.tiling.tiles()]), pose)

    def _judged(self) -> Region:
        """The rectangle of the aligned frame that holds all that is judged: not what the crop or the mask leave out."""
        covers = map_region(self.frame_size, self.region, self.resize_to, self.size)
        if self.ignored is None:
            return covers
        counts = in_frame(~ignored_pixels(self.ignored, self.size, self.extent), covers, self.frame_size)
        rows, columns = np.flatnonzero(counts.any(axis=1)), np.flatnonzero(counts.any(axis=0))
        x, y = int(columns[0]), int(rows[0])
        return Region(x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y)

    def _fits(self, shape: tuple[int, ...]) -> bool:
        return len(shape) in (2, 3) and shape[1::-1] == self.frame_size and shape[2:] in ((), (3,))


_BEYOND = (
    "the part is located, but what is to be judged of it reaches beyond the picture: it is not judged; look at the "
    "fixture and the trigger, or choose a smaller region (--roi)"
)


def _locator(manifest: Manifest, template: NDArray[np.uint8] | None) -> Locator | None:
    if manifest.align is None:
        return None
    if template is None:
        raise RecipeShapeError(f"{manifest.name} aligns parts, but the golden picture to align them with is missing")
    part = manifest.align
    search = Search(part.shift_px, part.rotation_deg, part.correlation)
    try:
        return Locator(template, Region(*part.template), search)
    except ValueError as error:
        raise RecipeShapeError(f"{manifest.name}: parts cannot be located: {error}") from error


def _not_located(search: Search) -> str:
    return (
        f"the part is not found within {search.shift_px} px and {search.rotation_deg:g} degrees of the golden one, or "
        f"is less alike than {search.correlation:g}: it is not judged; look at the fixture, the trigger and the camera"
    )


def project_patches(patches: NDArray[np.float32], projection: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """(P, backbone dim) float32 -> (P, bank dim): the recipe's `pca/1`, or the patches themselves without it.

    NaN and infinity come out as NaN or infinity.
    """
    if projection is None:
        return patches
    with np.errstate(invalid="ignore", over="ignore"):  # judged by the caller, who looks at the norms
        return patches @ projection


_Patches = NDArray[np.float32] | DevicePatches

# Relative; the filters round each sum the same way for bounds and distances, this is a margin on top.
_MAP_ROUNDING = 1e-5

_NOT_FINITE = Evidence(score=math.nan, max_distance=math.nan, boxes=(), map_kind="")

# Rows that each position remembers as nearest in other frames: two cameras that share a recipe take turns, and on good
# parts in the same place what was seen before is worth more than what the patches next door found.
_REMEMBERED_FRAMES = 6


class PatchCoreDetector:
    """Judges frames against a memory bank.

    Of the frames it has seen it keeps, per position, which rows were near: the next frame's search begins
    there. What it finds never depends on them, so frames of several cameras may come in any order. `judge` is
    called from one thread at a time; the maps of its evidence may be made in another.

    Features that lie on a device stay there where the engine is `graph`: projection and search run there, and
    of the patches only those are fetched on which score and boxes rest.
    """

    def __init__(
        self,
        settings: PatchCoreSettings,
        thresholds: Thresholds,
        extractor: Extractor,
        bank: NDArray[np.float32],
        engine: NearestNeighbour,
        projection: NDArray[np.float32] | None = None,
    ) -> None:
        self.settings = settings
        self.thresholds = thresholds
        self.extractor = extractor
        self.bank = bank
        self.engine = engine
        self.projection = projection
        self._hints: NDArray[np.int64] | None = None
        self._ignored_px = (
            None if settings.ignored is None else ignored_pixels(settings.ignored, settings.size, settings.extent)
        )
        self._projection_there = (
            engine.graphs.upload(projection) if isinstance(engine, GraphEngine) and projection is not None else None
        )

    def prepare(self, pixels: NDArray[np.uint8]) -> Prepared:
        """See `PatchCoreSettings.prepare`."""
        return self.settings.prepare(pixels)

    def judge(self, features: Features, thresholds: Thresholds, pose: Pose | None = None) -> Evidence:
        """Score and boxes of one frame from its (gh, gw, D) float32 features. Raises EdgeError when a device fails.

        Features that are not finite, or too large to be squared, give a score of NaN, which no threshold
        passes. The map is made only when it can reach the pixel threshold: a blur is an average and never
        exceeds the largest distance.
        """
        grid = (int(features.shape[0]), int(features.shape[1]))
        patches, maximum = self._search(features, grid)
        if maximum is None:
            return _NOT_FINITE
        nearest = maximum.nearest
        self._hints = remember(self._hints, nearest.rows, _REMEMBERED_FRAMES)
        found = image_score(
            patches[np.array([maximum.patch])],
            replace(maximum, patch=0),
            self.bank,
            self.engine.neighbours,
            self.settings.neighbours,
            self.settings.metric,
        )
        boxes: tuple[Box, ...] = ()
        small, searches = 0, maximum.searches
        if not found.max_distance < thresholds.pixel:
            every, more = self._boxes(patches, nearest, grid, thresholds.pixel)
            boxes, small = self._that_count(every, pose)
            searches += more
        return Evidence(
            found.score,
            found.max_distance,
            boxes,
            "exact" if nearest.exact.all() else "upper_bound",
            partial(self._exact_map, patches, nearest, grid),
            partial(self._map, nearest.squared, grid),
            searches,
            pose,
            small,
        )

    def _search(self, features: Features, grid: tuple[int, int]) -> tuple[_Patches, Maximum | None]:
        """The patches, and the farthest of them; None where any is not finite, or too large to be squared."""
        ignored = self.settings.ignored
        if isinstance(features, DeviceFeatures) and isinstance(self.engine, GraphEngine) and ignored is None:
            there = features.patches(self._projection_there)
            if not there.squared_norms.max(initial=0.0) <= LARGEST_SQUARED_NORM:
                return there, None
            return there, self.engine.maximum(there, grid, self._hints)
        cells = on_host(features)
        patches = project_patches(cells.reshape(-1, cells.shape[-1]), self.projection)
        with np.errstate(over="ignore", invalid="ignore"):
            largest = largest_squared_norm(patches)
        if not largest <= LARGEST_SQUARED_NORM:
            return patches, None
        if ignored is not None:
            # Not judged is what lies on a bank row: its distance is 0 to the bit, and no other patch moves.
            patches = patches.copy() if self.projection is None else patches
            patches[ignored.ravel()] = self.bank[0]
        if len(patches) > STRIP_PATCHES:
            return patches, maximum_by_strips(self.engine.maximum, patches, grid, self._known(len(patches)))
        return patches, self.engine.maximum(patches, grid, self._hints)

    def _known(self, patches: int) -> NDArray[np.int64] | None:
        """The hints, where they are of a frame of as many patches."""
        return self._hints if self._hints is not None and self._hints.shape[1] == patches else None

    def _that_count(self, boxes: tuple[Box, ...], pose: Pose | None) -> tuple[tuple[Box, ...], int]:
        """Boxes from the smallest that counts on, where they lie in the frame; and how many are smaller."""
        s = self.settings
        kept = [box for box in boxes if not box.area_px < s.smallest_px]
        there = kept if pose is None else [box_in_frame(box, pose, s.frame_size) for box in kept]
        return tuple(there), len(boxes) - len(kept)

    def _boxes(
        self, patches: _Patches, nearest: Nearest, grid: tuple[int, int], threshold: float
    ) -> tuple[tuple[Box, ...], int]:
        """Boxes of the exact map, and how many patches were searched for them; `nearest` becomes exact wherever the
        map of bounds reaches the threshold.

        Upsampling and blur are sums with weights that are not negative, so the map of bounds bounds the map:
        a pixel below the threshold there is below it in the map. Every patch that any other pixel is made of
        is searched, not only those above the threshold themselves.
        """
        s = self.settings
        anomaly = self._map(nearest.squared, grid)
        searches = 0
        if not nearest.exact.all():
            hot = anomaly >= threshold - _MAP_ROUNDING * abs(threshold)
            cells = support(hot, grid, s.extent, s.upsampling, s.blur, s.blur_sigma_px).ravel()
            which = np.flatnonzero(cells & ~nearest.exact)
            searches = len(which)
            if searches:
                nearest.take(which, self._completed(patches, which))
                anomaly = self._map(nearest.squared, grid)
        return boxes_above(anomaly, threshold, s.frame_size, s.region, s.resize_to), searches

    def _exact_map(self, patches: _Patches, nearest: Nearest, grid: tuple[int, int]) -> NDArray[np.float32]:
        """The map of the nearest rows of all patches; searches those that the judgement did not need."""
        which = np.flatnonzero(~nearest.exact)
        squared = nearest.squared
        if len(which):
            squared = squared.copy()
            squared[which] = self._completed(patches, which).squared
        return self._map(squared, grid)

    def _completed(self, patches: _Patches, which: NDArray[np.int64]) -> Nearest:
        """The nearest rows of these patches; of very many, some at a time, for they are copied."""
        if len(which) <= STRIP_PATCHES:
            return self.engine.complete(patches[which])
        found = Nearest.unknown(len(which))
        for first in range(0, len(which), STRIP_PATCHES):
            place = np.arange(first, min(first + STRIP_PATCHES, len(which)))
            found.take(place, self.engine.complete(patches[which[place]]))
        return found

    def _map(self, squared: NDArray[np.float64], grid: tuple[int, int]) -> NDArray[np.float32]:
        s = self.settings
        distances = patch_distances(squared, s.metric)
        found = anomaly_map(distances.reshape(grid), s.size, s.extent, s.upsampling, s.blur, s.blur_sigma_px)
        if self._ignored_px is not None:
            found[self._ignored_px] = 0  # what the blur carries over the mask's border
        return found
