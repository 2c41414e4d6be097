"""Pieces of work in several processes: everything is done once, errors come through, no worker outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from compress.errors import CompressError
from experiments.worker_pool import run_pieces


def describe(number, text):
    if text == "bad":
        raise CompressError(f"piece {number} is bad")
    return f"{number}{text}", torch.get_num_threads()


@pytest.mark.parametrize("workers", [1, 2])
def test_every_piece_is_done_on_one_thread(workers):
    threads = torch.get_num_threads()
    try:
        found = dict(run_pieces(describe, [(1, "a"), (2, "b"), (3, "c")], workers))
    finally:
        torch.set_num_threads(threads)
    assert found == {0: ("1a", 1), 1: ("2b", 1), 2: ("3c", 1)}


def test_an_error_comes_through():
    threads = torch.get_num_threads()
    try:
        with pytest.raises(CompressError, match="piece 2 is bad"):
            list(run_pieces(describe, [(1, "a"), (2, "bad")], 1))
    finally:
        torch.set_num_threads(threads)


def leave_a_mark(folder, number):
    if number == 0:
        raise CompressError("the first is bad")
    time.sleep(0.2)
    Path(folder, str(number)).touch()


def test_after_an_error_the_pieces_that_wait_are_left(tmp_path):
    with pytest.raises(CompressError, match="the first is bad"):
        list(run_pieces(leave_a_mark, [(tmp_path, number) for number in range(40)], 2))
    assert len(list(tmp_path.iterdir())) < 20


def test_a_wrong_number_of_workers_is_refused():
    with pytest.raises(CompressError, match="at least 1"):
        list(run_pieces(describe, [(1, "a")], 0))


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    (tmp_path / "piece.py").write_text(
        "import os, sys, time\nfrom pathlib import Path\n"
        "def sleep(folder, name):\n    Path(folder, name).write_text(str(os.getpid()))\n    time.sleep(60)\n"
        "if __name__ == '__main__':\n    from experiments.worker_pool import run_pieces\n    import piece\n"
        "    list(run_pieces(piece.sleep, [(sys.argv[1], 'a.pid'), (sys.argv[1], 'b.pid')], 2))\n"
    )
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, str(tmp_path)])}
    parent = subprocess.Popen([sys.executable, str(tmp_path / "piece.py"), str(tmp_path)], env=environment)
    files = [tmp_path / "a.pid", tmp_path / "b.pid"]
    _wait_for(lambda: all(file.exists() and file.read_text() for file in files))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _wait_for(lambda: not any(_is_alive(int(file.read_text())) for file in files))


def _wait_for(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("waited for a minute")


def _is_alive(pid):
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return status != "Z"
