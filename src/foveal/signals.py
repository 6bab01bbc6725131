"""Ctrl-C and SIGTERM as a request that a run answers when it is ready."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_signals(ask: Callable[[], None]) -> Iterator[None]:
    """Within it, SIGINT and SIGTERM call ``ask`` instead of ending the process; then as before.

    Another thread than the main one receives no signals: nothing is changed there.

    Example:
        >>> import os, signal
        >>> asked = []
        >>> with stop_signals(lambda: asked.append("stop")):
        ...     os.kill(os.getpid(), signal.SIGTERM)
        >>> asked
        ['stop']
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: ask()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
