"""Gives a process a directory and a port that no other uses, and an orderly end however it is asked to end."""

import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import fasteners

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class InUseError(Exception):
    """Another process uses what this one needs; nothing was changed."""


@contextmanager
def anew(directory: Path) -> Iterator[None]:
    """Empty `directory` and keep other processes from using it. Raises InUseError if another process is using it."""
    lock = directory.with_name(f"{directory.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = fasteners.InterProcessLock(lock)
    if not held.acquire(blocking=False):
        raise InUseError(f"{directory} is in use by another process of this project. Its data was not touched.")
    try:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        yield
    finally:
        held.release()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def end_in_good_order() -> None:
    """Make Ctrl-C, SIGTERM and a closed terminal raise KeyboardInterrupt once, so that nothing interrupts the end."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores it
            signal.signal(number, _interrupt)


def _interrupt(number: int, _: FrameType | None) -> None:
    for one in SIGNALS:
        signal.signal(one, signal.SIG_IGN)
    if number == signal.SIGHUP:  # the terminal is gone, so writing to it would fail
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
    raise KeyboardInterrupt
