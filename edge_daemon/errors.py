"""Errors an operator may meet: each message says what happened, to what, and what to do."""


class EdgeError(Exception):
    """Base of all expected failures; anything else is a defect of the program."""


class PictureError(EdgeError):
    """A picture file or frame cannot be used: unreadable, empty, too large, wrong size."""


class NotLocatedError(EdgeError):
    """The part is not in the picture, lies beyond the recipe's search range, or is too unlike the golden one: the
    picture cannot be judged."""


class RecipeError(EdgeError):
    """A recipe is refused. The subclasses are the steps of the load order, in that order."""


class RecipeUnreadable(RecipeError):
    """Not a recipe: missing, truncated, not a zip or directory, broken JSON, a file missing or extra."""


class RecipeSchemaError(RecipeError):
    """Written for another schema version, or recipe.json does not fit the schema."""


class RecipeFeatureError(RecipeError):
    """Needs a feature that this daemon does not know."""


class RecipeDigestError(RecipeError):
    """A file is not the one the recipe was made with."""


class RecipeSignatureError(RecipeError):
    """The station requires a signature that is missing or wrong."""


class RecipeShapeError(RecipeError):
    """Arrays have the wrong shape or dtype, are empty, or hold NaN or infinity."""


class RecipeEngineError(RecipeError):
    """The backbone does not run here, or not on the provider that was asked for."""


class RecipeGoldenError(RecipeError):
    """A golden sample does not give the score it gave when the recipe was made."""


class ProviderError(EdgeError):
    """The execution provider that the configuration demands cannot be had."""


class ConfigError(EdgeError):
    """The configuration is wrong; `problems` lists everything that is, one sentence each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class CameraError(EdgeError):
    """A camera failed: gone, unreadable, or asked in the wrong state. The reader reconnects."""


class CameraSettingsError(EdgeError):
    """A camera, pictures and a recipe do not go together: exposure, gain, region or the like differ or are unknown."""


class JournalError(EdgeError):
    """A record could not be made durable."""


class WireError(EdgeError):
    """Bytes that are no message of a known schema."""


class StoreError(EdgeError):
    """The recipe store cannot do what was asked: unknown recipe, nothing active, damaged, disk full."""
