"""Threads that share a policy take turns."""

import threading


class Turns:
    """`with turns:`, by one thread at a time; within it again by the same thread. A copy is another lock."""

    def __init__(self):
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple:
        return Turns, ()
