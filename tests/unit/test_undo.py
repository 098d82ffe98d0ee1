"""Undo: every step gets its turn, whatever the others do and whoever is cancelled."""

import asyncio

import pytest

from crishim.undo import Undo


async def failing(undo: Undo) -> None:
    async with undo:
        raise RuntimeError("failed")


async def test_success_undoes_nothing() -> None:
    done: list[str] = []
    async with Undo("thing") as undo:
        undo.push("a", lambda: done.append("a"))
    assert done == []


async def test_steps_run_backwards_and_a_bad_one_stops_no_other() -> None:
    done: list[str] = []

    async def slowly() -> None:
        await asyncio.sleep(0)
        done.append("slowly")

    def bad() -> None:
        raise ValueError("is busy")

    async def cancelled() -> None:
        raise asyncio.CancelledError

    undo = Undo("thing")
    undo.push("first", lambda: done.append("first"))
    undo.push("cancelled", cancelled)
    undo.push("bad", bad)
    undo.push("slowly", slowly)
    with pytest.raises(RuntimeError) as caught:
        await failing(undo)
    assert done == ["slowly", "first"]
    assert undo.failed == ["bad", "cancelled"]
    assert caught.value.__notes__ == ["undo of thing: bad: is busy", "undo of thing: cancelled: CancelledError"]


async def test_a_step_that_hangs_is_given_up() -> None:
    done: list[str] = []
    undo = Undo("thing")
    undo.push("first", lambda: done.append("first"))
    undo.push("hangs", asyncio.Event().wait, seconds=0.01)
    with pytest.raises(RuntimeError) as caught:
        await failing(undo)
    assert (done, undo.failed) == (["first"], ["hangs"])
    assert caught.value.__notes__ == ["undo of thing: hangs: did not end within 0.01 s"]


async def test_a_cancelled_caller_waits_for_its_undoing() -> None:
    begun, go_on, done = asyncio.Event(), asyncio.Event(), []

    async def step() -> None:
        begun.set()
        await go_on.wait()
        done.append("step")

    async def work() -> None:
        undo = Undo("thing")
        undo.push("last", lambda: done.append("last"))
        undo.push("step", step)
        await failing(undo)

    task = asyncio.get_running_loop().create_task(work())
    await begun.wait()
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert done == ["step", "last"]
    assert isinstance(caught.value.__cause__, RuntimeError)
