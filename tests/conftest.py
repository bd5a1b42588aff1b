"""What all tests share."""

import signal


def pytest_configure() -> None:
    """Signals as a terminal gives them: a process started in the background or by nohup ignores some, and so
    would every run that the tests start and stop."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
