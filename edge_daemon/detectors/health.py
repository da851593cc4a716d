"""A recipe's health limits, from its manifest to what the core works with."""

import base64

import numpy as np

from edge_daemon.artefact.manifest import Manifest
from edge_daemon.core.geometry import Region
from edge_daemon.core.health import REDUCED_PX, HealthLimits, Limit, Measure, Reference


def health_limits(manifest: Manifest) -> HealthLimits | None:
    """What a recipe with feature `health/1` demands of a picture before it is judged; None without it."""
    health, region = manifest.health, manifest.view.region
    if health is None:
        return None
    picture = np.frombuffer(base64.b64decode(health.reference), np.uint8).reshape(REDUCED_PX, REDUCED_PX)
    limits = {Measure(name): Limit(x.lower, x.upper, x.centre, x.drift) for name, x in health.limits.items()}
    return HealthLimits(Region(*region) if region else None, Reference.of(picture), limits)
