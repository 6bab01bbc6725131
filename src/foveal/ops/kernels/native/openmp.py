"""Run compiled kernels on the threads that PyTorch's own operators run on.

PyTorch's operators on a CPU share the threads of one OpenMP library. A kernel that enters a parallel region of that
same library runs on these very threads: as many as ``torch.set_num_threads`` says, none beside them, and with the same
answer for calls from several Python threads at once. A kernel is the address of a ``void (void *)`` function; every
thread of the region calls it with the same argument.
"""

import ctypes
import functools
import os
from collections.abc import Callable

import torch

SERIAL_BELOW = 2**15
"""Values of a map below which one thread does it all: waking others costs more."""

_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


# a child has the library's memory, but not its threads: it would wait for them for ever
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def _library() -> ctypes.CDLL | None:
    """PyTorch's library, through which the symbols of the OpenMP library it is linked with are found; or None."""
    try:
        library = ctypes.CDLL(torch._C.__file__)
        for name in ("GOMP_parallel", "GOMP_barrier", "omp_get_num_threads", "omp_get_thread_num"):
            getattr(library, name)
    except (AttributeError, OSError):
        return None
    library.GOMP_parallel.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
    library.GOMP_parallel.restype = None
    return library


@functools.cache
def addresses() -> tuple[int, int, int]:
    """Addresses of ``GOMP_barrier``, ``omp_get_num_threads`` and ``omp_get_thread_num``; zeros where they are not."""
    library = _library()
    if library is None:
        return 0, 0, 0
    names = "GOMP_barrier", "omp_get_num_threads", "omp_get_thread_num"
    barrier, threads, thread = (ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in names)
    assert barrier
    assert threads
    assert thread
    return barrier, threads, thread


def threads_for(values: int) -> int:
    """How many threads to use for a map of so many values: PyTorch's number, or one."""
    if values < SERIAL_BELOW or _forked or _library() is None:
        return 1
    return torch.get_num_threads()


def run(kernel: int, argument: int, threads: int) -> None:
    """Call ``kernel`` with the pointer ``argument``, from every thread of a parallel region, and wait for all."""
    library = _library()
    if threads == 1 or library is None:
        _function(kernel)(argument)
    else:
        library.GOMP_parallel(kernel, argument, threads, 0)


@functools.cache
def _function(kernel: int) -> Callable[[int], None]:
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(kernel)
