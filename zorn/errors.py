"""The errors that zorn raises for a user's mistake: all are `ValueError`s, and the command line turns them
into one line."""


class ZornError(ValueError):
    """A mistake in what the user gave: the message says what, got, expected and the fix."""


class ConfigError(ZornError):
    """A setting outside its range, or settings that contradict each other."""


class CheckpointError(ZornError):
    """A checkpoint that is missing, damaged, or of another model."""


class JournalError(ZornError):
    """A journal that is missing, damaged, of another run, or without the steps that are asked for."""


class UncoveredParameterError(ZornError):
    """A parameter that no perturbation rule covers."""


class NonFiniteLossError(ZornError):
    """More members than allowed came back with a loss that is NaN or infinite."""


class WorkerError(ZornError):
    """Another of the processes that train together failed, left, or did not answer in time."""


class PeerFailedError(WorkerError):
    """Another of the processes failed and said why; it tells its user itself."""


class DivergedReplicaError(ZornError):
    """The weights of a replica are no longer those of the others."""


class SlowerWayWarning(UserWarning):
    """The members of a model run a slower way than side by side; the message has the reason."""
