"""Single flight: joining, refusing, and results that nobody heard of."""

import asyncio

import pytest

from crishim.errors import AlreadyExistsError, InternalError
from crishim.pods.flight import Flights


class Reports(list[tuple[str, str]]):
    def __call__(self, key: str, error: BaseException) -> None:
        self.append((key, str(error)))


class Work:
    """Work that ends when told; counts how often it ran."""

    def __init__(self, error: Exception | None = None) -> None:
        self.gate = asyncio.Event()
        self.runs = 0
        self.error = error

    async def __call__(self) -> str:
        self.runs += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return f"result {self.runs}"


async def _cancelled(task: "asyncio.Task[str]") -> None:
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_equal_requests_join() -> None:
    reports = Reports()
    flights: Flights[str] = Flights(reports)
    work = Work()
    callers = [asyncio.create_task(flights.run("k", ("a", 1), work)) for _ in range(5)]
    await asyncio.sleep(0)
    assert len(flights) == 1
    work.gate.set()
    assert set(await asyncio.gather(*callers)) == {"result 1"}
    assert await flights.run("k", ("a", 1), work) == "result 2"  # done and delivered: this is a new call


async def test_different_request_is_refused() -> None:
    flights: Flights[str] = Flights(Reports())
    work = Work()
    caller = asyncio.create_task(flights.run("web_default", "a", work))
    await asyncio.sleep(0)
    with pytest.raises(AlreadyExistsError, match="web_default: another request"):
        await flights.run("web_default", "b", work)
    work.gate.set()
    assert await caller == "result 1"


async def test_retry_gets_the_result_that_its_caller_missed() -> None:
    flights: Flights[str] = Flights(Reports())
    work = Work()
    await _cancelled(asyncio.create_task(flights.run("k", "a", work)))
    joined = asyncio.create_task(flights.run("k", "a", work))
    await _cancelled(joined)
    work.gate.set()
    await flights.drain(10)
    assert await flights.run("k", "a", work) == "result 1"
    assert await flights.run("k", "a", work) == "result 2"


async def test_missed_result_is_not_for_another_request_nor_after_removal() -> None:
    flights: Flights[str] = Flights(Reports())
    work = Work()
    work.gate.set()
    caller = asyncio.create_task(flights.run("k", "a", work))
    await _cancelled(caller)
    await flights.drain(10)
    assert await flights.run("k", "b", work) == "result 2"
    flights.forget("k")
    assert await flights.run("k", "a", work) == "result 3"


async def test_idempotent_flights_keep_nothing() -> None:
    flights: Flights[str] = Flights(Reports(), keep=False)
    work = Work()
    work.gate.set()
    await _cancelled(asyncio.create_task(flights.run("k", None, work)))
    await flights.drain(10)
    assert await flights.run("k", None, work) == "result 2"


async def test_caller_that_is_cancelled_as_the_result_arrives() -> None:
    flights: Flights[str] = Flights(Reports())

    async def work() -> str:
        caller.cancel()
        return "made"

    caller = asyncio.create_task(flights.run("k", "a", work))
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert await flights.run("k", "a", Work()) == "made"


async def test_failures_reach_callers_or_the_report() -> None:
    reports = Reports()
    flights: Flights[str] = Flights(reports)
    work = Work(InternalError("broken"))
    callers = [asyncio.create_task(flights.run("k", "a", work)) for _ in range(2)]
    await asyncio.sleep(0)
    work.gate.set()
    for caller in callers:
        with pytest.raises(InternalError, match="broken"):
            await caller
    assert reports == []
    await _cancelled(asyncio.create_task(flights.run("k", "a", work)))
    await flights.drain(10)
    assert reports == [("k", "broken")]


async def test_drain_calls_off_what_takes_too_long() -> None:
    flights: Flights[str] = Flights(Reports())
    undone = []

    async def work() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            undone.append(True)
        return ""

    caller = asyncio.create_task(flights.run("k", "a", work))
    await asyncio.sleep(0)
    await flights.drain(0.01)
    assert undone == [True]
    assert len(flights) == 0
    with pytest.raises(asyncio.CancelledError):
        await caller
