"""A recipe's health limits, from its manifest to what the core works with."""

import base64

import numpy as np

from edge_daemon.artefact.manifest import Manifest
from edge_daemon.core.geometry import Region
from edge_daemon.core.health import REDUCED_PX, HealthLimits, Limit, Measure, Reference


def health_limits(manifest: Manifest) -> HealthLimits | None:
    """What a recipe with feature `health/1` demands of a picture before it is judged; None without it."""
    health, region = manifest.health, health_region(manifest)
    if health is None:
        return None
    picture = np.frombuffer(base64.b64decode(health.reference), np.uint8).reshape(REDUCED_PX, REDUCED_PX)
    limits = {Measure(name): Limit(x.lower, x.upper, x.centre, x.drift) for name, x in health.limits.items()}
    return HealthLimits(region, Reference.of(picture), limits)


def health_region(manifest: Manifest) -> Region | None:
    """What of the frame health is measured in, None for all of it. Parts that are located may lie anywhere, and health
    is measured before they are: then it is the whole frame."""
    region = manifest.view.region
    return None if region is None or manifest.align is not None else Region(*region)
