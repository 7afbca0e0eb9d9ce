"""Operations that run on threads of their own, so that they go on while the caller computes."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable


class Work:
    """An operation of a lane. The lane's thread runs it, or the thread that waits for it, if that comes first."""

    def __init__(self, lane: Lane, run: Callable[[], None]):
        self.lane, self.run = lane, run
        self.ended = threading.Event()
        self.error: BaseException | None = None

    def wait(self) -> None:
        while not self.ended.is_set():
            if not self.lane.run_next():
                self.ended.wait(0.05)
        if self.error is not None:
            raise self.error


class Lane(threading.Thread):
    """A thread that runs operations one after another."""

    def __init__(self, name: str):
        super().__init__(name=name, daemon=True)
        self.works: collections.deque[Work] = collections.deque()
        self.count = threading.Semaphore(0)  # of the works that came, and one more at the end
        self.running = threading.Lock()
        self.error: BaseException | None = None  # what ended an operation ends all that follow
        self.stopped = False
        self.start()

    def add(self, run: Callable[[], None]) -> Work:
        """Add an operation that runs after all that were added before."""
        work = Work(self, run)
        self.works.append(work)
        self.count.release()
        return work

    def run_next(self) -> bool:
        """Run the next operation, unless one is running; returns whether there was one."""
        if not self.running.acquire(blocking=False):
            return False
        try:
            return self._run_one()
        finally:
            self.running.release()

    def _run_one(self) -> bool:
        if not self.works:
            return False
        work = self.works.popleft()
        try:
            if self.error is not None:
                raise self.error
            work.run()
        except BaseException as error:  # handed to whoever waits
            work.error = self.error = error
        work.run = _nothing  # it holds arrays
        work.ended.set()
        return True

    def run(self) -> None:
        ended = False
        while not ended:
            self.count.acquire()
            with self.running:
                ended = not self._run_one() and self.stopped

    def stop(self) -> None:
        """End the thread after the operations that were added."""
        self.stopped = True
        self.count.release()
        self.join(1.0)


def _nothing() -> None:
    return None
