"""Search of settings for a training budget in seconds."""

from zorn.search.halving import Trial, Tuned, tune

__all__ = ["Trial", "Tuned", "tune"]
