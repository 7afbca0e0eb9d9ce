"""Operations that run on threads of their own, so that they go on while the caller computes."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable


class Work:
    """An operation of a lane: run by the lane's thread, or by the one that waits for it if that is there first."""

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
    """Operations that run one after another, on a thread of their own."""

    def __init__(self, name: str):
        super().__init__(name=name, daemon=True)
        self.works: collections.deque[Work] = collections.deque()
        self.count = threading.Semaphore(0)  # of the works that came, and one more at the end
        self.running = threading.Lock()
        self.error: BaseException | None = None  # what ended an operation ends all that follow
        self.stopped = False
        self.start()

    def add(self, run: Callable[[], None]) -> Work:
        """Have this run after all that came before."""
        work = Work(self, run)
        self.works.append(work)
        self.count.release()
        return work

    def run_next(self) -> bool:
        """Run the operation that is next, unless one is running; whether there was one."""
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
        """End the thread, when what it runs has ended."""
        self.stopped = True
        self.count.release()
        self.join(1.0)


def _nothing() -> None:
    return None
