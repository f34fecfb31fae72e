import multiprocessing
import os
import signal
import sys
import threading

import pytest
import torch

from freeprune.engine.workers.base import Placement
from freeprune.engine.workers.pool import check, pool
from freeprune.errors import FreePruneError


def results(function, items, count):
    with pool(function, Placement(count)) as given:
        return dict(given.each(items))


@pytest.mark.parametrize("count", [None, 1, 2])
def test_every_item_gets_its_result(count):
    offset = 10  # closures need no pickling
    with pool(lambda n: n + offset, Placement(count)) as given:
        for items in ([7, 8, 9], [], [1]):
            assert dict(given.each(items)) == {i: n + 10 for i, n in enumerate(items)}


def test_several_workers_are_other_processes_and_stay():
    with pool(lambda _: os.getpid(), Placement(2)) as given:
        first, second = (set(dict(given.each(range(4))).values()) for _ in range(2))
    assert os.getpid() not in first
    assert len(first | second) <= 2
    assert set(results(lambda _: os.getpid(), range(3), 1).values()) == {os.getpid()}


def test_a_worker_computes_with_one_thread():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for count, threads in ((None, 3), (1, 1), (2, 1)):
            assert results(lambda _: torch.get_num_threads(), [0], count) == {0: threads}
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_what_a_worker_died_of_is_repeated_on_a_new_one(tmp_path):
    def die_once(n):
        if n % 2 and not (tmp_path / str(n)).exists():
            (tmp_path / str(n)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return n

    assert results(die_once, range(5), 2) == {n: n for n in range(5)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]


def test_workers_that_died_while_they_were_idle_are_replaced():
    with pool(lambda _: os.getpid(), Placement(2)) as given:
        before = set(dict(given.each(range(4))).values())
        for process in before:
            os.kill(process, signal.SIGKILL)
        after = dict(given.each(range(4)))
    assert after.keys() == {0, 1, 2, 3}
    assert not before & set(after.values())


def test_an_item_that_workers_keep_dying_of_is_one_sentence(tmp_path):
    def die(n):
        with (tmp_path / "deaths").open("a") as file:
            file.write("x")
        os._exit(1)

    with pytest.raises(FreePruneError, match="a worker died 3 times at the same item"):
        results(die, [0], 2)
    assert (tmp_path / "deaths").read_text() == "xxx"


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_in_a_worker_comes_through(count):
    def refuse(n):
        if n == 1:
            raise FreePruneError("no")
        return n

    with pool(refuse, Placement(count)) as given:
        with pytest.raises(FreePruneError, match=r"^no$"):
            list(given.each(range(5)))
        assert dict(given.each([0, 2])) == {0: 0, 1: 2}  # nothing is left of the call before


def test_an_error_from_another_process_says_where_it_was_raised():
    def divide(n):
        return 1 / n

    with pytest.raises(ZeroDivisionError) as caught:
        results(divide, [0], 2)
    assert "in divide" in caught.value.__notes__[0]


class Awkward(Exception):
    """One that is pickled and never unpickled."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def test_an_error_that_cannot_be_pickled_keeps_its_text():
    def refuse(_):
        raise Awkward("of", "two")

    with pytest.raises(RuntimeError, match="Awkward: of two"):
        results(refuse, [0], 2)


def test_workers_end_with_the_pool():
    with pool(lambda _: os.getpid(), Placement(2)) as given:
        for _, process in given.each(range(2)):
            os.kill(process, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_workers_end_with_the_pool_in_the_middle_of_their_items():
    reader, writer = multiprocessing.Pipe(False)

    def stay(n):
        if n:
            writer.send(os.getpid())
            threading.Event().wait()
        return n

    with pool(stay, Placement(2)) as given:
        results = given.each(range(3))  # kept, as the traceback of an error in the loop over it keeps it
        assert next(results) == (0, 0)
        busy = reader.recv()
    with pytest.raises(ProcessLookupError):
        os.kill(busy, 0)


def test_ctrl_c_ends_workers_in_the_middle_of_their_items():
    main = os.getpid()
    reader, writer = multiprocessing.Pipe(False)

    def interrupt(n):
        writer.send(os.getpid())
        if n:
            os.kill(main, signal.SIGINT)
        threading.Event().wait()

    with pytest.raises(KeyboardInterrupt), pool(interrupt, Placement(2)) as given:
        list(given.each(range(2)))
    for process in (reader.recv(), reader.recv()):
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_ctrl_c_in_a_worker_is_left_to_the_main_process():
    assert results(lambda _: os.kill(os.getpid(), signal.SIGINT), range(2), 2) == {0: None, 1: None}


@pytest.mark.parametrize("busy", [False, True])
def test_workers_end_after_the_main_process_was_killed(busy, capfd):
    reader, writer = multiprocessing.Pipe(False)  # ends when all that inherited it have ended
    gate, key = multiprocessing.Pipe(False)  # where busy workers wait until the main process is gone

    def main():
        def stay(n):
            if n == 1 and busy:
                gate.recv()
            return n

        with pool(stay, Placement(2)) as given:
            results = given.each(range(2))
            assert next(results) == (0, 0) if busy else len(list(results)) == 2
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=main)
    process.start()
    writer.close()
    process.join()
    key.send(None)
    assert reader.poll(60)
    with pytest.raises(EOFError):
        reader.recv()
    assert capfd.readouterr() == ("", "")


def test_several_processes_on_a_gpu_in_use_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(FreePruneError, match=r"`workers=2` cannot share this process's GPU; .* `ray` with `ray_gpus`"):
        results(str, range(3), 2)
    assert results(str, range(2), 1) == {0: "0", 1: "1"}


def test_several_processes_on_a_gpu_are_refused_before_it_is_in_use():
    with pytest.raises(FreePruneError, match="`workers=2` cannot share this process's GPU"):
        check(Placement(2), torch.device("cuda"))
    check(Placement(2), torch.device("cpu"))
    check(Placement(1), torch.device("cuda"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"workers": 0}, "`workers` is 0; give 1 or more"),
        ({"gpus": -1, "ray": "auto"}, "`ray_gpus` is -1; give 0 or more"),
        ({"gpus": 1.5, "ray": "auto"}, "`ray_gpus` is 1.5; give a fraction of one GPU or a whole number"),
        ({"gpus": 0.5}, "`ray_gpus=0.5` was given without `ray`"),
    ],
)
def test_a_placement_that_makes_no_sense_is_one_sentence(options, sentence):
    with pytest.raises(FreePruneError, match=sentence):
        Placement(**options)


def test_without_ray_the_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(FreePruneError, match=r"`ray` needs Ray, .*; pip install 'freeprune\[ray\]'"):
        check(Placement(ray="auto"), torch.device("cpu"))
