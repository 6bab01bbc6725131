"""Ctrl-C and SIGTERM as a request that a run answers when it is ready."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def kept_signals() -> Iterator[None]:
    """What SIGINT and SIGTERM do is the same after it, though a library sets handlers within, in C too.

    Example:
        >>> before = signal.getsignal(signal.SIGTERM)
        >>> with kept_signals():
        ...     _ = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        >>> signal.getsignal(signal.SIGTERM) == before
        True
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: set in C, before Python began
                signal.signal(number, handler)


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
    before = {number: signal.signal(number, lambda *_: ask()) for number in NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
