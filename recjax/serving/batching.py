"""Requests of many clients in one call of the program, with a bounded queue and deadlines.

While the worker thread computes, what arrives waits in groups (one a model and candidate bucket); as soon as it is
free it takes the group whose first request has waited longest. So an idle server answers at once and a busy one
fills its batches, and `wait_s` is for accelerators that prefer fuller ones still.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
import concurrent.futures
import contextlib
import dataclasses
import math
from typing import Any


class Overloaded(Exception):
    """The queue is full, or longer than the request can wait. `retry_after`: seconds."""

    def __init__(self, retry_after: int):
        super().__init__(f"too many requests are waiting; retry after {retry_after} s")
        self.retry_after = retry_after


class DeadlinePassed(Exception):
    """The answer would come too late."""


@dataclasses.dataclass(eq=False)
class _Job:
    request: Any
    arrived: float
    answer: asyncio.Future


def fit(waiting: int, sizes: Sequence[int]) -> int:
    """How many of the waiting requests to take, given the sizes the program is compiled for.

    All of them, unless more than half of the slots would be padding: then as many as fill a smaller size.
    """
    full = max((s for s in sizes if s <= waiting), default=0)
    padded = min((s for s in sizes if s >= waiting), default=full)
    return min(waiting, padded) if 2 * waiting > padded or not full else full


class Batcher:
    """Calls `run(group, requests) -> answers` in its own thread; an answer that is an exception is raised.

    Args:
      run: Never called twice at a time.
      sizes: Batch sizes the program is compiled for; the largest bounds a batch.
      queue: Requests that may wait.
      wait_s: How long the first request of a batch waits for others although the worker is free.

    Attributes:
      waiting: Requests in the queue.
      seconds_per_request: Moving average of the worker's time.
    """

    def __init__(
        self,
        run: Callable[[Any, list], list],
        *,
        sizes: Sequence[int],
        queue: int,
        wait_s: float = 0.0,
    ):
        self.waiting = 0
        self.seconds_per_request = 0.0
        self._run, self._sizes, self._queue, self._wait_s = run, sorted(sizes), queue, wait_s
        self._groups: dict[Hashable, deque[_Job]] = {}
        self._arrived = asyncio.Event()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "recjax-scorer")

    def admit(self, deadline: float) -> None:
        """Raises Overloaded when a request that comes now could not be answered in time."""
        expected = self.waiting * self.seconds_per_request
        left = deadline - asyncio.get_running_loop().time()
        # Half of the time left: the estimate is of the past, and reading and answering take time too.
        if self.waiting >= self._queue or (self.waiting and 2 * expected > left):
            raise Overloaded(max(1, math.ceil(expected)))

    async def submit(self, group: Hashable, request: Any, deadline: float) -> Any:
        """The answer to one request; `deadline` is on the clock of the event loop.

        Raises:
          Overloaded: At once; nothing was queued.
          DeadlinePassed: Whatever remains of its work is skipped.
        """
        self.admit(deadline)
        loop = asyncio.get_running_loop()
        job = _Job(request, loop.time(), loop.create_future())
        self._groups.setdefault(group, deque()).append(job)
        self.waiting += 1
        self._arrived.set()
        try:
            async with asyncio.timeout_at(deadline):
                return await job.answer
        except TimeoutError:
            raise DeadlinePassed from None

    @contextlib.asynccontextmanager
    async def running(self):
        """Serves while the block lasts."""
        task = asyncio.create_task(self._serve())
        try:
            yield self
        finally:
            task.cancel()
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _serve(self) -> None:
        while True:
            await self._arrived.wait()
            await self._let_others_join()
            group, jobs = self._take()
            if not self.waiting:
                self._arrived.clear()
            if jobs:
                await self._answer(group, jobs)

    def _oldest(self) -> Hashable:
        return min(self._groups, key=lambda g: self._groups[g][0].arrived)

    async def _let_others_join(self) -> None:
        jobs = self._groups[self._oldest()]
        rest = jobs[0].arrived + self._wait_s - asyncio.get_running_loop().time()
        if rest > 0 and len(jobs) < self._sizes[-1]:
            await asyncio.sleep(rest)

    def _take(self) -> tuple[Hashable, list[_Job]]:
        """The next batch; requests whose clients no longer wait are dropped on the way."""
        group = self._oldest()
        jobs = self._groups.pop(group)
        live = deque(j for j in jobs if not j.answer.done())
        taken = [live.popleft() for _ in range(fit(len(live), self._sizes))]
        if live:
            self._groups[group] = live
        self.waiting -= len(jobs) - len(live)
        return group, taken

    async def _answer(self, group: Hashable, jobs: list[_Job]) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            requests = [j.request for j in jobs]
            answers = await loop.run_in_executor(self._thread, self._run, group, requests)
        except Exception as e:  # of the program: these requests fail, the service goes on
            answers = [e] * len(jobs)
        each = (loop.time() - start) / len(jobs)
        self.seconds_per_request += 0.2 * (each - self.seconds_per_request)
        for job, answer in zip(jobs, answers, strict=True):
            if job.answer.done():
                continue
            if isinstance(answer, Exception):
                job.answer.set_exception(answer)
            else:
                job.answer.set_result(answer)
