"""Errors of the offline tools; each message says what happened and what to do."""


class ExportError(Exception):
    """Base of all expected failures of edge-export: printed as one message, exit status 2."""


class BackboneError(ExportError):
    """A backbone could not be loaded, exported or fused."""


class PicturesError(ExportError):
    """A folder of pictures cannot be used as it is."""


class CalibrationError(ExportError):
    """The good pictures do not support the threshold that was asked for."""


class SuspectPicturesError(ExportError):
    """Pictures that are to be added as good do not look like the good ones that the recipe knows."""
