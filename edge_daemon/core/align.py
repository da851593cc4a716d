"""Where the part lies in the frame: found by its golden picture, so that it is always judged in the same place.

The pose is a rotation and a shift (the camera looks straight down at a fixed distance). First every rotation in range
is tried on a small picture by normalised cross-correlation (Lewis, Fast Normalized Cross-Correlation, 1995), then the
best is refined by maximising the enhanced correlation coefficient (Evangelidis and Psarakis, Parametric Image
Alignment Using Enhanced Correlation Coefficient Maximization, PAMI 2008). Both ignore brightness and contrast.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_daemon.core.geometry import Box, Region

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

# Longest side of the template where rotations are tried, and where the best one is refined.
_COARSE_SIDE_PX, _FINE_SIDE_PX = 48, 192
# Half of this step off, a template of 48 px is a pixel off at its rim: still the highest of the correlations.
_COARSE_STEP_DEG = 4.0
_REFINEMENTS, _REFINED_ENOUGH = 60, 1e-5
_FINE_MARGIN_PX = 16  # around the template, for what the rough pose is off
_SMOOTHING = 5  # Gaussian kernel of the refinement, pixels of the fine picture
# A pose is rounded to these, so that the last bits of two machines do not move a picture: the golden one, which
# lies where it lies, comes out as no motion at all.
_ANGLE_STEP_DEG, _SHIFT_STEP_PX = 1 / 64, 1 / 16
_UNSEEN_PX = 1.0  # of what is judged may lie beyond the frame's border


@dataclass(frozen=True, slots=True)
class Pose:
    """How the part lies, compared with the golden picture.

    angle_deg: counter-clockwise on the screen, about `centre`; shift_px: x, y, after the rotation, full-frame pixels.
    centre: x, y of the template's middle in the golden frame. correlation: -1 to 1, after alignment.
    """

    angle_deg: float
    shift_px: tuple[float, float]
    centre: tuple[float, float]
    correlation: float

    def matrix(self) -> NDArray[np.float64]:
        """(2, 3) float64: from pixels of the golden frame to pixels of this frame."""
        cos, sin = math.cos(math.radians(self.angle_deg)), math.sin(math.radians(self.angle_deg))
        rotation = np.array([[cos, sin], [-sin, cos]])
        centre = np.array(self.centre)
        return np.column_stack([rotation, centre + self.shift_px - rotation @ centre])

    @property
    def moved(self) -> bool:
        """False when the part lies exactly as in the golden picture."""
        return bool(self.angle_deg) or any(self.shift_px)


@dataclass(frozen=True, slots=True)
class Search:
    """How far parts may lie from the golden one.

    shift_px: in x and in y, full-frame pixels; rotation_deg: either way, 180 for any; correlation: what is less alike
    is not the part.
    """

    shift_px: int
    rotation_deg: float
    correlation: float = 0.7


class Locator:
    """Finds one part by its golden picture. Immutable after construction; may be used from any thread."""

    def __init__(self, golden: Bytes, template: Region, search: Search) -> None:
        """golden: full frame, (H, W) or (H, W, 3) uint8; template: what of it is the part, in pixels, 16 or more
        each way. Raises ValueError when the template lies outside the frame, is too small, or shows nothing."""
        height, width = golden.shape[:2]
        if min(template.w, template.h) < 16:
            raise ValueError("a template needs 16 pixels each way")
        if template.x < 0 or template.y < 0 or template.x + template.w > width or template.y + template.h > height:
            raise ValueError(f"the template lies outside the frame of {width}x{height} px")
        self.search = search
        self.template = template
        self.centre = (template.x + (template.w - 1) / 2, template.y + (template.h - 1) / 2)
        grey = _grey(golden)
        self._frame_size = (width, height)
        self._coarse_scale = min(1.0, _COARSE_SIDE_PX / max(template.w, template.h))
        self._fine_scale = min(1.0, _FINE_SIDE_PX / max(template.w, template.h))
        self._coarse = _cut(grey, template, self._coarse_scale)
        self._fine = _cut(grey, template, self._fine_scale)
        if float(self._coarse.std()) < 1.0:
            raise ValueError("the template shows nothing but an even surface; choose one with edges")

    def locate(self, pixels: Bytes) -> Pose | None:
        """The pose of the part in a frame of the golden one's size; None when it is not there, lies beyond the search
        range, or is too unlike. Raises ValueError for another size."""
        if (pixels.shape[1], pixels.shape[0]) != self._frame_size:
            raise ValueError(f"the frame has {pixels.shape[1]}x{pixels.shape[0]} px, the golden one {self._frame_size}")
        grey = _grey(pixels)
        found = self._refined(grey, *self._roughly(grey))
        if found is None:
            return None
        pose = _rounded(found)
        limit = self.search
        within = (
            abs(pose.angle_deg) <= limit.rotation_deg
            and max(abs(pose.shift_px[0]), abs(pose.shift_px[1])) <= limit.shift_px
            and pose.correlation >= limit.correlation  # NaN fails
        )
        return pose if within else None

    def _roughly(self, grey: Bytes) -> tuple[float, tuple[float, float]]:
        """The best of all rotations: (degrees, shift in full-frame pixels)."""
        scale, limit = self._coarse_scale, self.search
        height, width = self._coarse.shape
        margin = math.ceil(limit.shift_px * scale) + 1
        out = (width + 2 * margin, height + 2 * margin)
        small = _shrunk(grey, scale)
        best = (-math.inf, 0.0, (0.0, 0.0))
        for angle in _angles(limit.rotation_deg):
            # The window around the template, turned back by this angle.
            turned = Pose(angle, (0.0, 0.0), self.centre, 0.0).matrix()
            window = _window(turned, scale, self.template, margin)
            view = cv2.warpAffine(
                small, window, out, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
            )
            match = cv2.matchTemplate(view, self._coarse, cv2.TM_CCOEFF_NORMED)
            _, value, _, at = cv2.minMaxLoc(np.nan_to_num(match, nan=-1.0, posinf=-1.0, neginf=-1.0))
            if value > best[0]:
                offset = np.array([at[0] - margin, at[1] - margin]) / scale
                shift = turned[:, :2] @ offset
                best = (value, angle, (float(shift[0]), float(shift[1])))
        return best[1], best[2]

    def _refined(self, grey: Bytes, angle_deg: float, shift_px: tuple[float, float]) -> Pose | None:
        """From a rough pose, a few degrees and pixels off, to the exact one; None where nothing alike is."""
        scale, (height, width) = self._fine_scale, self._fine.shape
        # The refinement takes the angle by its arc sine: the frame is turned back roughly first, whatever the angle.
        start = Pose(angle_deg, shift_px, self.centre, 0.0).matrix()
        window = _window(start, scale, self.template, _FINE_MARGIN_PX)
        out = (width + 2 * _FINE_MARGIN_PX, height + 2 * _FINE_MARGIN_PX)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        view = cv2.warpAffine(_shrunk(grey, scale), window, out, flags=flags, borderMode=cv2.BORDER_REPLICATE)
        margin = np.float32(_FINE_MARGIN_PX)
        warp = np.array([[1, 0, margin], [0, 1, margin]], np.float32)
        everywhere = np.full((out[1], out[0]), 255, np.uint8)
        criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, _REFINEMENTS, _REFINED_ENOUGH)
        try:
            correlation, found = cv2.findTransformECC(
                self._fine, view, warp, cv2.MOTION_EUCLIDEAN, criteria, everywhere, _SMOOTHING
            )
        except cv2.error:  # it does not converge: nothing alike is there
            return None
        total = np.vstack([window, [0, 0, 1]]) @ np.vstack([np.asarray(found, np.float64), [0, 0, 1]])
        # Where the template's middle has gone, in full-frame pixels.
        there = (total[:2] @ [(width - 1) / 2, (height - 1) / 2, 1.0] + 0.5) / scale - 0.5
        shift = (float(there[0] - self.centre[0]), float(there[1] - self.centre[1]))
        return Pose(math.degrees(math.atan2(total[0, 1], total[0, 0])), shift, self.centre, float(correlation))


def aligned(pixels: Bytes, pose: Pose) -> Bytes:
    """The frame as if its part lay as in the golden picture: same size and layout, uint8, bilinear; what lies
    outside the frame repeats its border. The very same array where the part has not moved."""
    if not pose.moved:
        return pixels
    size = (pixels.shape[1], pixels.shape[0])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    turned = cv2.warpAffine(pixels, pose.matrix(), size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(turned, np.uint8).reshape(pixels.shape)


def seen(area: Region, pose: Pose, frame_size: tuple[int, int]) -> bool:
    """Whether all of a rectangle of the aligned picture was in the frame, up to a pixel: beyond its border there is
    nothing but the border again, and a part that nobody saw must not be judged."""
    if not pose.moved:
        return True
    corners = np.array([[x, y, 1.0] for x in (area.x, area.x + area.w) for y in (area.y, area.y + area.h)])
    corners[:, :2] -= 0.5  # edges of pixels, not their centres
    there = corners @ pose.matrix().T + 0.5
    return bool((there >= -_UNSEEN_PX).all() and (there <= np.array(frame_size) + _UNSEEN_PX).all())


def box_in_frame(box: Box, pose: Pose, frame_size: tuple[int, int]) -> Box:
    """A box of the aligned picture as the smallest upright box around it in the frame itself, cut at its border."""
    if not pose.moved:
        return box
    corners = np.array([[x, y, 1.0] for x in (box.x, box.x + box.w) for y in (box.y, box.y + box.h)])
    corners[:, :2] -= 0.5  # edges of pixels, not their centres
    there = corners @ pose.matrix().T + 0.5
    low, high = np.floor(there.min(axis=0) + 1e-6), np.ceil(there.max(axis=0) - 1e-6)
    limit = np.array(frame_size)
    x, y = np.clip(low, 0, limit - 1).astype(int)
    right, bottom = np.clip(high, 1, limit).astype(int)
    return Box(int(x), int(y), max(1, int(right - x)), max(1, int(bottom - y)), box.peak, box.area_px)


def _grey(pixels: Bytes) -> Bytes:
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.uint8) if pixels.ndim == 3 else pixels


def _shrunk(grey: Bytes, scale: float) -> Floats:
    """The frame at `scale`, box-filtered."""
    if scale == 1.0:
        return grey.astype(np.float32)
    size = (max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale)))
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.float32)


def _cut(grey: Bytes, template: Region, scale: float) -> Floats:
    """The template at `scale`, sampled from the shrunk frame just as `locate` samples other frames."""
    still = Pose(0.0, (0.0, 0.0), (0.0, 0.0), 0.0).matrix()
    size = (max(8, round(template.w * scale)), max(8, round(template.h * scale)))
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    window = _window(still, scale, template, 0)
    cut = cv2.warpAffine(_shrunk(grey, scale), window, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(cut, np.float32)


def _window(matrix: NDArray[np.float64], scale: float, template: Region, margin: int) -> NDArray[np.float64]:
    """(2, 3): from pixels of the template at `scale`, `margin` pixels around it, to pixels of the shrunk frame.
    Pixel i covers i to i + 1, so that its centre lies at i + 0.5 in every scale."""
    corner = np.array([template.x, template.y], np.float64)
    linear, shift = matrix[:, :2], matrix[:, 2]
    # Small to full pixels: (i + 0.5 - margin) / scale + corner - 0.5; then the pose; then back to the shrunk frame.
    start = linear @ ((0.5 - margin) / scale + corner - 0.5) + shift
    return np.column_stack([linear, (start + 0.5) * scale - 0.5])


def _angles(limit_deg: float) -> list[float]:
    """Rotations to try, none first, so that the smallest wins a tie."""
    steps = min(math.ceil(limit_deg / _COARSE_STEP_DEG), math.ceil(180 / _COARSE_STEP_DEG))
    values = [0.0]
    for step in range(1, steps + 1):
        values += [step * _COARSE_STEP_DEG, -step * _COARSE_STEP_DEG]
    return [a for a in values if -180 < a <= 180]


def _rounded(pose: Pose) -> Pose:
    angle = round(pose.angle_deg / _ANGLE_STEP_DEG) * _ANGLE_STEP_DEG
    x, y = (round(v / _SHIFT_STEP_PX) * _SHIFT_STEP_PX for v in pose.shift_px)
    return Pose(angle, (x, y), pose.centre, pose.correlation)
