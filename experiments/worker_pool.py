"""Independent pieces of long work in several processes, each done as soon as a process is free."""

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from compress.errors import CompressError
from experiments.seeding import set_threads


def run_in_order(
    work: Callable[..., Any], pieces: Sequence[tuple[Any, ...]], workers: int,
    on_done: Callable[[int, int], None] | None = None,
) -> list[Any]:  # fmt: skip
    """What every piece came to, in the order of the pieces, see `run_pieces`; `on_done(done, all)` after each."""
    found: dict[int, Any] = {}
    for number, result in run_pieces(work, pieces, workers):
        found[number] = result
        if on_done is not None:
            on_done(len(found), len(pieces))
    return [found[number] for number in range(len(pieces))]


def run_pieces(work: Callable[..., Any], pieces: Sequence[tuple[Any, ...]], workers: int) -> Iterator[tuple[int, Any]]:
    """`(number of the piece, work(*piece))` of every piece, in the order in which they end.

    Processes are spawned (a fork after torch and LightGBM both ran deadlocks), with one torch thread each, so results
    do not depend on how many there are. With one worker everything happens in this process.

    Args:
        work: a function at the top level of a module.
        pieces: its arguments.
        workers: number of processes.

    Raises:
        CompressError: if a worker dies. Errors of `work` come through; pieces not yet begun are then left.
    """
    if workers < 1:
        raise CompressError(f"The 'workers' parameter must be at least 1. Got {workers}.")
    if workers == 1 or len(pieces) < 2:
        set_threads(1)
        yield from ((number, work(*piece)) for number, piece in enumerate(pieces))
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(pieces)), context, initializer=_begin)
    try:
        running = {pool.submit(work, *piece): number for number, piece in enumerate(pieces)}
        for future in as_completed(running):
            yield running[future], future.result()
    except BrokenProcessPool as error:
        raise CompressError(
            "A worker process ended in the middle of its work (memory may have run out). Start again with fewer "
            "workers; what is finished is kept."
        ) from error
    finally:
        # As a context manager the pool would shut down a second time and do what was cancelled all the same.
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    set_threads(1)
    # A worker waits for work on a pipe whose end it holds itself: it would outlive a parent that was killed.
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
