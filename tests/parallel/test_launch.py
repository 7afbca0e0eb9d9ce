"""Starting ranks: results come back, outputs do not mix, and however a launcher or rank ends, nothing stays behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from minillm import cli
from minillm.errors import InputError, ParallelError
from minillm.parallel import launch as module
from minillm.parallel import segments
from minillm.parallel.communicator import Alone
from minillm.parallel.launch import connect, ended, launch, own_gpu, run, threads_per_rank
from minillm.parallel.place import Place
from minillm.parallel.rendezvous import OTHER_FAILED

ROOT = Path(__file__).parents[2]


def gone(pid):
    """True if a process has ended, even if its parent has not yet asked for its status."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def settled(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"nothing happened within {seconds} s"
        time.sleep(0.02)


# --- launch(function) ----------------------------------------------------------------------------------------------


def total(communicator, x, *, scale=1.0):
    array = np.arange(5) * x * (communicator.rank + 1) * scale
    communicator.all_reduce(array).wait()
    return array, communicator.rank, os.environ["MINILLM_THREADS"], os.getpid()


def big(communicator):
    return np.full(1 << 20, communicator.rank)


def fails(communicator, how, folder):
    (folder / str(communicator.rank)).write_text(str(os.getpid()))
    communicator.barrier()
    if communicator.rank == 1:
        if how == "raises":
            raise ValueError("on purpose")
        if how == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "exits":
            os._exit(0)
        if how == "cannot be sent":
            return lambda: None
        if how == "interrupted":
            raise KeyboardInterrupt
    if how == "cannot be sent":
        return None
    communicator.barrier()


def test_launch_returns_what_each_rank_returns():
    found = launch(total, 3, 2.0)
    for rank, (array, number, threads, pid) in enumerate(found):
        assert array.tolist() == [0, 12, 24, 36, 48]
        assert number == rank
        assert threads == threads_per_rank(3)
        assert gone(pid)
    assert len({pid for *_, pid in found} | {os.getpid()}) == 4
    assert [array[-1] for array in launch(big, 2)] == [0, 1]  # more than a pipe holds
    array, *_ = launch(total, 1, 2.0)[0]
    assert array.tolist() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raises", "launch: rank 1 failed: ValueError: on purpose"),
        ("is killed", "launch: rank 1 was ended by SIGKILL, as the system does when memory runs out"),
        ("exits", "launch: rank 1 failed: it ended without a message"),
        ("cannot be sent", "launch: rank 1 failed: "),
        ("interrupted", "launch: rank 1 ended with exit status 130"),
    ],
)
def test_launch_names_the_rank_and_the_cause(how, message, tmp_path):
    with pytest.raises(ParallelError) as caught:
        launch(fails, 3, how, tmp_path)
    assert str(caught.value).startswith(message)
    if how == "raises":
        assert 'raise ValueError("on purpose")' in caught.value.__notes__[0]
    for rank in range(3):
        assert gone(int((tmp_path / str(rank)).read_text()))
    assert os.environ.get("MINILLM_THREADS") is None or threads_per_rank(100) == os.environ["MINILLM_THREADS"]


def test_numbers_of_ranks(monkeypatch):
    for start in (lambda n: launch(total, n, 1.0), lambda n: run(["train"], n)):
        with pytest.raises(InputError, match=r"0 ranks cannot be started; give --nproc 1 or more"):
            start(0)
    monkeypatch.delenv("MINILLM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    assert [threads_per_rank(n) for n in (1, 2, 1000)] == [str(cores), str(max(1, cores // 2)), "1"]
    monkeypatch.setenv("MINILLM_THREADS", "7")
    assert threads_per_rank(2) == "7"


def test_how_a_process_ended():
    assert [ended(status) for status in (0, 3, -15, -99)] == [
        "ended with exit status 0",
        "ended with exit status 3",
        "was ended by SIGTERM",
        "was ended by signal 99",
    ]


# --- connect -------------------------------------------------------------------------------------------------------


def connected(size, devices=None):
    """The outcome of connect on each of `size` ranks, which are threads."""
    listener = module._free_port()
    port, found = listener.getsockname()[1], {}

    def one(rank):
        place = Place(rank, size, rank, "127.0.0.1", port, "secret", 10.0)
        try:
            with connect(place, (devices or {}).get(rank, "cpu"), listener if rank == 0 else None) as communicator:
                array = np.ones(3)
                communicator.all_reduce(array).wait()
                found[rank] = array.tolist()
        except ParallelError as error:
            found[rank] = str(error)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return [found.get(rank) for rank in range(size)]


def test_connect():
    assert connected(3) == [[3.0, 3.0, 3.0]] * 3
    with connect(Place(0, 1)) as communicator:
        assert isinstance(communicator, Alone)


def test_ranks_on_two_machines_share_no_memory(monkeypatch):
    names = iter(["a 1", "a 1", "b 2"])
    monkeypatch.setattr(module, "_machine", lambda: next(names))
    texts = set(connected(3))
    assert len(texts) == 1
    assert re.search("machine b 2 on rank .*; but machine a 1 on ranks .* start all on one machine", texts.pop())


def test_ranks_on_two_kinds_of_device():
    texts = set(connected(2, {1: "cuda"}))
    assert texts == {
        "agree: the ranks differ: device cuda on rank 1; but device cpu on rank 0; start all ranks with the same"
    }


def test_each_rank_has_a_gpu_of_its_own(monkeypatch):
    for visible, number in ((None, 3), ("0,1,2,3", 3), ("GPU-5ad8", 0), ("3", 0), ("", 3)):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert own_gpu(Place(3, 4, 3)) == number


def test_ranks_that_see_other_processes(monkeypatch):
    """Two containers on one machine do not see each other's processes."""

    def no_such(name):
        raise FileNotFoundError(2, "No such file", name)

    monkeypatch.setattr(segments, "attach_segment", no_such)
    texts = connected(2)
    assert all("rank 1 cannot open the memory of rank 0" in text for text in texts)


# --- run: the command line -----------------------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
from minillm.errors import InputError
from minillm.parallel.launch import run_rank

folder, how = Path(sys.argv[2]), sys.argv[3]

def work(communicator):
    rank = communicator.rank
    signals = []
    if how == "counts signals":
        signal.signal(signal.SIGINT, lambda *_: signals.append("INT"))
        signal.signal(signal.SIGTERM, lambda *_: signals.append("TERM"))
    array = np.ones(10)
    communicator.all_reduce(array).wait()
    print(f"rank {rank} has {array[0]}")
    print(f"rank {rank} warns", file=sys.stderr)
    (folder / f"pid{rank}").write_text(str(os.getpid()))
    communicator.barrier()
    if rank == 1 and how == "raises":
        raise ValueError("on purpose")
    if rank == 1 and how == "raises ours":
        raise InputError("work: a wrong option")
    if rank == 1 and how == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 1 and how == "file":
        open("/no/such/file")
    if how == "fails at the end":
        if rank == 1:
            raise ValueError("on purpose")
        return
    communicator.barrier()
    if how == "counts signals":
        while len(signals) < 2 or communicator.max_of(len(signals))[0] < 2:
            time.sleep(0.01)
        time.sleep(0.5)
        (folder / f"signals{rank}").write_text(" ".join(signals))
    if how in ("waits", "ignores signals"):
        if how == "ignores signals":
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (folder / f"ready{rank}").touch()
        while True:
            communicator.all_reduce(array).wait()

try:
    run_rank(work)
except InputError as error:
    print(error, file=sys.stderr)
    raise SystemExit(2)
"""

LAUNCHER = """
import sys
from minillm.parallel.launch import run
raise SystemExit(run(["job", *sys.argv[2:]], 3, [sys.executable, sys.argv[1]]))
"""


@pytest.fixture
def launcher(tmp_path):
    """Starts a launcher of three ranks that do something, as a process of its own."""
    script, starter = tmp_path / "script.py", tmp_path / "launcher.py"
    script.write_text(SCRIPT)
    starter.write_text(LAUNCHER)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "MINILLM_THREADS": "1"}
    started = []

    def start(how):
        command = [sys.executable, str(starter), str(script), str(tmp_path), how]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
    pids = [int(file.read_text()) for file in tmp_path.glob("pid*")]
    try:
        assert len(pids) == 3
        settled(lambda: all(gone(pid) for pid in pids))
    finally:
        for pid in pids:
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)
        for process in started:
            process.communicate()


def test_run_prints_what_rank_0_prints(launcher):
    process = launcher("ends")
    assert process.communicate(timeout=60) == ("rank 0 has 3.0\n", "rank 0 warns\n")
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("how", "status", "first", "last"),
    [
        ("raises", 1, "rank 1: Traceback", "job: rank 1 ended with exit status 1"),
        ("raises ours", 2, "rank 1: work: a wrong option", "job: rank 1 ended with exit status 2"),
        ("file", 2, "rank 1: minillm train: [Errno 2] No such file", "job: rank 1 ended with exit status 2"),
        ("is killed", 137, None, "job: rank 1 was ended by SIGKILL, as the system does when memory runs out"),
    ],
)
def test_run_names_the_rank_that_failed(launcher, how, status, first, last):
    process = launcher(how)
    out, errors = process.communicate(timeout=60)
    assert out == "rank 0 has 3.0\n"
    assert process.returncode == status
    lines = [line for line in errors.splitlines() if line != "rank 0 warns"]
    assert lines[-1] == f"minillm {last}; all ranks have ended"
    assert first is None or any(line.startswith(first) for line in lines)
    assert sum(line.startswith("rank 1 failed: ") for line in lines) == 1  # rank 0
    assert not any(line.startswith("rank 2: ") for line in lines)  # rank 0 has told it for all
    assert all(line.startswith("rank 1") for line in lines[:-1] if not line.startswith("rank 2: "))


def test_rank_0_hears_of_a_failure_at_the_end(launcher):
    process = launcher("fails at the end")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "\nrank 1 failed: ValueError: on purpose" in f"\n{errors}"
    assert errors.count("Traceback") == 1  # that of rank 1


def test_signals_go_to_every_rank_once(launcher, tmp_path):
    process = launcher("counts signals")
    settled(lambda: len(list(tmp_path.glob("pid*"))) == 3, 60)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal's Ctrl-C
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert {(tmp_path / f"signals{rank}").read_text() for rank in range(3)} == {"INT TERM"}


def test_ctrl_c_ends_ranks_that_do_not_listen(launcher, tmp_path):
    process = launcher("ignores signals")
    settled(lambda: len(list(tmp_path.glob("ready*"))) == 3, 60)
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    process.communicate(timeout=30)
    assert process.returncode == 137


def test_ranks_end_with_their_launcher(launcher, tmp_path):
    process = launcher("waits")
    settled(lambda: len(list(tmp_path.glob("ready*"))) == 3, 60)
    process.kill()
    _, errors = process.communicate(timeout=30)  # and nobody holds the pipes
    assert "rank 1: the launcher has ended, and so does this rank" in errors
    settled(lambda: all(gone(int(file.read_text())) for file in tmp_path.glob("pid*")))


# --- minillm train -------------------------------------------------------------------------------------------------


def minillm(*arguments, **environment):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", "minillm", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "MINILLM_THREADS": "1", **environment},
    )


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("".join(f"{i} times {i} is {i * i}.\n" for i in range(2000)))
    return file


def options(corpus, out, *more):
    small = ("--preset", "nano", "--tokenizer", "char", "--steps", "6", "--sample-every", "0", "--eval-every", "6")
    return ("train", "--data", corpus, "--out", out, *small, *more)


def test_train_on_two_ranks_is_train_on_one(tmp_path, corpus):
    one = minillm(*options(corpus, tmp_path / "one"))
    two = minillm(*options(corpus, tmp_path / "two", "--nproc", "2"))
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MINILLM_TOKEN": "secret"}
    listener = module._free_port()
    environment["MASTER_PORT"] = str(listener.getsockname()[1])
    listener.close()
    by_hand = [minillm(*options(corpus, tmp_path / "hand"), RANK=str(rank), **environment) for rank in range(2)]
    outputs = [process.communicate(timeout=120) for process in (one, two, *by_hand)]
    assert [process.returncode for process in (one, two, *by_hand)] == [0] * 4, outputs
    assert outputs[3] == ("", "")  # rank 1
    expected = losses(tmp_path / "one")
    assert len(expected) == 6
    np.testing.assert_allclose(losses(tmp_path / "two"), expected, rtol=1e-5)
    assert losses(tmp_path / "two") == losses(tmp_path / "hand")


def test_train_tells_what_is_wrong_once(tmp_path, corpus, monkeypatch, capfd):
    process = minillm(*options(tmp_path / "no-such", tmp_path / "run", "--nproc", "2"))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    told, ended = errors.splitlines()
    assert told.startswith("train: ")
    assert "no-such" in told
    assert ended.startswith("minillm train: rank 0 ended with exit status 2")
    for arguments, message in (
        (("--nproc", "0"), "0 ranks cannot be started"),
        (("--timeout", "0"), "timeout is 0.0; give a number of seconds above 0"),
        (("--nproc", "two"), "invalid"),
        (("--nproc", "2", "--device", "cuda:1"), "cuda:1 is one GPU; give --device cuda, and each rank takes its own"),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main(["train", *arguments])
        assert caught.value.code == 2
        assert message in capfd.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "4")
    for arguments, message in (
        (("--nproc", "3"), "--nproc is 3, but a launcher has started 4 ranks; leave --nproc out"),
        ((), "RANK, MASTER_ADDR, MASTER_PORT are not set"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["train", *arguments])
        assert message in capfd.readouterr().err


def test_ranks_with_other_settings_or_text(tmp_path, corpus):
    """Started as Slurm's srun starts them."""
    other = tmp_path / "other.txt"
    other.write_text(corpus.read_text().replace("is 9.", "is 8."))
    for place, (data, more, what) in enumerate(((corpus, ("--lr", "0.5"), "rank 1"), (other, (), "rank 1"))):
        listener = module._free_port()
        port = str(listener.getsockname()[1])
        listener.close()
        environment = {"SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "localhost", "MINILLM_TOKEN": "secret"}
        environment["MASTER_PORT"] = port
        ranks = [
            minillm(*options(corpus, tmp_path / f"run{place}"), SLURM_PROCID="0", **environment),
            minillm(*options(data, tmp_path / f"run{place}", *more), SLURM_PROCID="1", **environment),
        ]
        for process in ranks:
            _, errors = process.communicate(timeout=60)
            assert process.returncode in (2, OTHER_FAILED)
            assert what in errors
            assert errors.count("\n") == 1


@pytest.mark.oracle
def test_torchrun_starts_ranks(tmp_path, corpus):
    torchrun = Path(sys.executable).with_name("torchrun")
    if not torchrun.exists():
        pytest.skip("no torchrun beside this Python; pip install torch")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [torchrun, "--no-python", "--nproc-per-node", "2", sys.executable, "-m", "minillm"]
    environment = {**os.environ, "PYTHONPATH": path, "MINILLM_THREADS": "1", "MINILLM_TOKEN": "secret"}
    command += map(str, options(corpus, tmp_path / "run"))
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert len(losses(tmp_path / "run")) == 6
    assert found.stdout.count("run directory") == 1


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_rank_of_a_training_is_killed(tmp_path, corpus):
    """At once, and in the middle of the steps: the launcher ends, and so does the other rank."""
    many = ("--steps", "100000", "--eval-every", "100000", "--nproc", "2")
    started = [minillm(*options(corpus, tmp_path / str(i), *many)) for i in range(2)]
    ranks = []
    for i, process in enumerate(started):
        settled(lambda process=process: len(children(process.pid)) == 2, 60)
        ranks.append(children(process.pid))
        if i:
            metrics = tmp_path / str(i) / "metrics.jsonl"
            settled(lambda metrics=metrics: metrics.exists() and metrics.stat().st_size > 1000, 60)
        os.kill(ranks[i][i], signal.SIGKILL)
    for i, process in enumerate(started):
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 137
        assert errors.splitlines()[-1] == f"minillm train: rank {i} {ended(-9)}; all ranks have ended"
        assert all(gone(pid) for pid in ranks[i])
    assert "rank 1 failed: it ended without a message" in errors


def test_ctrl_c_saves_and_another_number_of_ranks_goes_on(tmp_path, corpus):
    out = tmp_path / "run"
    process = minillm(
        *options(corpus, out, "--nproc", "2", "--steps", "100000", "--warmup", "1", "--eval-every", "100000")
    )
    settled(lambda: (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").stat().st_size > 1000, 60)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0
    done = len(losses(out))
    process = minillm("train", "--resume", out, "--steps", done + 3)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert len(losses(out)) == done + 3


def test_ranks_that_never_met_are_ended(tmp_path):
    """Nobody can tell them that one has failed, and one ignores SIGTERM."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, sys, time\n"
        "rank = int(os.environ['RANK'])\n"
        "if rank == 2: signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "open(f'{sys.argv[2]}/pid{rank}', 'w').write(str(os.getpid()))\n"
        "sys.exit(5) if rank == 1 else time.sleep(100)\n"
    )
    started = time.monotonic()
    assert run(["job", str(tmp_path)], 3, [sys.executable, str(script)]) == 5
    assert time.monotonic() - started < 60
    assert all(gone(int(file.read_text())) for file in tmp_path.glob("pid*"))
