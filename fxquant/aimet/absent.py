"""The error of what AIMET documents and is not here."""

from fxquant.errors import FxQuantError


class AbsentError(FxQuantError, ImportError):
    """Something that AIMET documents and that is not here; it says why and what to do instead."""
