"""A stage writes the same bytes in any number of processes and after any kill; errors name stage and document."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from minillm.corpus import stage as stages
from minillm.corpus.document import Document, open_lines, read_documents
from minillm.corpus.stage import BEFORE, chunks, map_chunks, run_stage
from minillm.corpus.workers import WorkerDiedError, map_units
from minillm.errors import InputError, ParallelError
from tests.corpus.small_stages import Upper, write_corpus

ROOT = Path(__file__).parents[2]
pytest.importorskip("zstandard")


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(stages, "CHUNK_BYTES", 4000)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "in.jsonl.zst")
    return tmp_path / "in.jsonl.zst"


def run(corpus: Path, name: str, stage: Upper | None = None, processes: int = 1, suffix: str = ".zst") -> Path:
    out = corpus.parent / name / f"upper.jsonl{suffix}"
    run_stage(stage or Upper(), [corpus], out, processes, progress=False)
    return out


def program(corpus: Path, out: Path, processes: int, seconds: float) -> subprocess.Popen:
    words = [sys.executable, "-m", "tests.corpus.small_stages", str(corpus), str(out), str(processes), str(seconds)]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def record(out: Path) -> dict:
    return json.loads(out.with_name("upper.json").read_bytes())


def children(pid: int) -> list[int]:
    """The processes that another one has started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found.append(int(status.parent.name))
    return found


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists() and "Z" not in state(pid)]


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def wait_for(condition, seconds: float = 30) -> None:
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come")


# What is written


def test_a_stage_writes_every_document_in_order(corpus):
    before = list(read_documents(corpus))
    out = run(corpus, "one")
    after = list(read_documents(out))
    assert [document.id for document in after] == [document.id for document in before]
    assert [document.info for document in after] == [document.info for document in before]
    for old, new in zip(before, after, strict=True):
        if old.dropped:
            assert (new.text, new.dropped) == (old.text, old.dropped)
        else:
            assert new.text == old.text.upper()
            assert new.rule == ("odd" if len(new.text) % 2 else None)
    counts = run_stage(Upper(), [corpus], out, progress=False)
    odd = sum(document.rule == "odd" for document in after)
    assert 100 < odd < 300
    assert counts == {"odd": odd, "kept": 399 - odd, BEFORE: 1}


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_the_bytes_are_the_same_for_any_number_of_processes(corpus, suffix):
    one = run(corpus, "one", suffix=suffix)
    two = run(corpus, "two", Upper(seconds=0.002), 2, suffix)
    three = run(corpus, "three", None, 3, suffix) if suffix == ".zst" else two
    assert record(one)["chunks"] > 20
    assert one.read_bytes() == two.read_bytes() == three.read_bytes()
    assert len(list(read_documents(three))) == 400


def test_the_record_counts_documents_and_bytes(corpus):
    out = run(corpus, "one")
    said, after = record(out), [document for document in read_documents(out) if document.rule != "earlier"]
    sizes = {"read": sum(len(document.text.encode()) for document in read_documents(corpus) if not document.dropped)}
    sizes["kept"] = sum(len(document.text.encode()) for document in after if not document.dropped)
    assert said["text_bytes"]["kept"] == sizes["kept"]
    assert said["text_bytes"]["read"] == sizes["read"]
    assert said["stage"] == "upper"
    assert said["settings"] == {"factor": 1}
    assert said["inputs"][0]["file"] == "in.jsonl.zst"
    assert said["done"] is True
    assert said["bytes"] == [out.stat().st_size]


def test_a_document_larger_than_a_chunk_is_one_chunk(tmp_path):
    path = tmp_path / "in.jsonl"
    documents = [Document("x" * 50_000, "a:0"), Document("y", "a:1"), Document("z" * 9_001, "a:2")]
    path.write_bytes(b"".join(document.to_line() for document in documents))
    found = list(chunks([path]))
    assert [chunk.line for chunk in found] == [1, 2]
    assert b"".join(chunk.data for chunk in found) == path.read_bytes()
    assert found[-1].read == path.stat().st_size
    assert [d.text for d in read_documents(run(path, "one"))] == [d.text.upper() for d in documents]


def test_several_inputs_are_read_one_after_the_other(tmp_path):
    for number in (0, 1):
        write_corpus(tmp_path / f"{number}.jsonl.gz", 30, seed=number)
    found = map_chunks(ids_of, [tmp_path / "1.jsonl.gz", tmp_path / "0.jsonl.gz"])
    assert [id for ids in found for id in ids] == [f"a.txt:{number}" for number in range(30)] * 2


def ids_of(documents: list[Document]) -> list[str]:
    return [document.id for document in documents]


def test_map_chunks_begins_at_any_chunk(corpus):
    whole = list(map_chunks(ids_of, [corpus]))
    assert len(whole) > 20
    assert list(map_chunks(ids_of, [corpus], start=11)) == whole[11:]


def test_few_units_are_in_memory():
    given = []

    def units():
        for number in range(500):
            given.append(number)
            yield number

    done = 0
    for result in map_units(str, units(), 2):
        assert result == str(done)
        done += 1
        assert len(given) <= done + 8
    assert done == 500


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    write_corpus(tmp_path / "small.jsonl.zst", 300)
    write_corpus(tmp_path / "large.jsonl.zst", 6000)
    peaks = []
    for name in ("small", "small", "large"):  # the first run loads what is loaded once
        tracemalloc.start()
        run_stage(Upper(), [tmp_path / f"{name}.jsonl.zst"], tmp_path / f"{len(peaks)}.jsonl.zst", progress=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (tmp_path / "large.jsonl.zst").stat().st_size > 10 * (tmp_path / "small.jsonl.zst").stat().st_size
    assert peaks[2] < 1.2 * peaks[1] + 50_000


def test_a_terminal_shows_progress_with_the_time_left(corpus):
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    out = corpus.parent / "one" / "upper.jsonl.zst"
    words = [sys.executable, "-m", "tests.corpus.small_stages", str(corpus), str(out), "1", "0.01"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while more := os.read(ours, 1000):
                shown += more
    os.close(ours)
    assert process.returncode == 0
    assert b"upper" in shown
    assert re.search(rb"\d:\d\d:\d\d", shown)
    assert re.search(rb"\d/\d+\.\d .?kB|\d/\d+ bytes|\d+\.\d/\d+\.\d", shown), shown[-300:]


def test_without_a_terminal_nothing_is_shown(corpus, capfd):
    run_stage(Upper(), [corpus], corpus.parent / "out.jsonl.zst")
    assert capfd.readouterr() == ("", "")


# Runs that are killed


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(corpus):
    expected = run(corpus, "undisturbed")
    out = corpus.parent / "killed" / "upper.jsonl.zst"
    rng = random.Random(3)
    reached = []
    for kill in range(5):
        process = program(corpus, out, 1 + kill % 2, 0.02)
        before = reached[-1] if reached else 0
        wait_for(lambda before=before: out.with_name("upper.json").exists() and record(out)["chunks"] > before)
        workers = children(process.pid)
        time.sleep(rng.random() * 0.06)
        process.kill()
        process.communicate()
        reached.append(record(out)["chunks"])
        assert not out.exists()
        wait_for(lambda workers=workers: not alive(workers))
        with open(out.with_name("upper.jsonl.zst.part"), "ab") as part:  # a chunk that was half written
            part.write(b"half a chunk"[: rng.randrange(12)])
    assert reached == sorted(set(reached))
    assert reached[-1] < record(expected)["chunks"]
    process = program(corpus, out, 2, 0)
    printed, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert f"upper: goes on after {reached[-1]} chunks" in said
    assert out.read_bytes() == expected.read_bytes()
    assert {**record(out), "inputs": 0} == {**record(expected), "inputs": 0}
    assert not list(out.parent.glob("*.part"))
    assert "('kept', " in printed


def test_a_finished_stage_does_nothing_again(corpus):
    out = run(corpus, "one")
    before = out.stat().st_mtime_ns
    counts = run_stage(Upper(fails="a.txt:3"), [corpus], out, progress=False)
    assert counts["kept"] == record(out)["documents"]["kept"] > 0
    assert out.stat().st_mtime_ns == before


@pytest.mark.parametrize("change", ["settings", "input", "output"])
def test_a_stage_begins_again_if_anything_has_changed(corpus, capsys, change):
    out = run(corpus, "one")
    first = out.read_bytes()
    if change == "input":
        write_corpus(corpus, 300, seed=1)
    elif change == "output":
        out.write_bytes(first[:-1])
    stage = Upper(factor=3 if change == "settings" else 1)
    counts = run_stage(stage, [corpus], out)
    assert "begins again" in capsys.readouterr().err
    assert sum(counts.values()) == (300 if change == "input" else 400)
    assert (out.read_bytes() == first) == (change == "output")


@pytest.mark.parametrize("moment", ["before the record", "between chunk and record", "before the name", "after it"])
def test_a_kill_at_every_moment_is_safe(corpus, monkeypatch, moment):
    """The run ends where a real one may be killed: at the calls that change what is on disk."""
    expected = run(corpus, "undisturbed").read_bytes()
    out = corpus.parent / "killed" / "upper.jsonl.zst"
    calls = {"os.replace": 0}
    replace = os.replace

    def stopping(old, new):
        name = Path(new).name
        calls["os.replace"] += 1
        last = name == out.name
        if moment == "after it" and last:
            replace(old, new)
        if (
            (moment == "before the record" and calls["os.replace"] == 1)
            or (moment == "between chunk and record" and calls["os.replace"] == 9)
            or (moment in ("before the name", "after it") and last)
        ):
            raise KeyboardInterrupt
        replace(old, new)

    monkeypatch.setattr(os, "replace", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_stage(Upper(), [corpus], out, progress=False)
    monkeypatch.setattr(os, "replace", replace)
    run_stage(Upper(), [corpus], out, progress=False)
    assert out.read_bytes() == expected


def test_an_output_of_somebody_else_is_never_written_over(corpus):
    out = corpus.parent / "one" / "upper.jsonl.zst"
    out.parent.mkdir()
    out.write_bytes(b"precious")
    with pytest.raises(InputError, match=r"upper\.jsonl\.zst exists already.*choose another --out"):
        run_stage(Upper(), [corpus], out, progress=False)
    assert out.read_bytes() == b"precious"
    with pytest.raises(InputError, match="is the input and the output"):
        run_stage(Upper(), [corpus], corpus, progress=False)


def test_two_runs_never_write_one_output(corpus):
    expected = run(corpus, "undisturbed")
    out = corpus.parent / "one" / "upper.jsonl.zst"
    process = program(corpus, out, 1, 0.05)
    wait_for(lambda: out.with_name("upper.json").exists() and record(out)["chunks"] > 1)
    for factor in (1, 3):
        with pytest.raises(InputError, match=rf"process {process.pid} \(since .*\) is writing .* wait for its end"):
            run_stage(Upper(factor=factor), [corpus], out, progress=False)
    assert process.wait(timeout=60) == 0
    process.communicate()
    assert out.read_bytes() == expected.read_bytes()


# Broken inputs


def test_two_processes_never_write_the_same_output(corpus):
    """The second is refused while the first runs, and goes on after the first was killed, which leaves its lock."""
    out = corpus.with_name("upper.jsonl.zst")
    with program(corpus, out, 2, 0.5) as first:
        lock = out.with_name(".upper.json.lock")
        while not lock.exists() or not out.with_name(f"{out.name}.part").exists():
            assert first.poll() is None
            time.sleep(0.01)
        with pytest.raises(
            InputError, match=rf"upper: process {first.pid} \(since .*\) is writing {re.escape(str(out.parent))}"
        ):
            run_stage(Upper(), [corpus], out, progress=False)
        first.kill()
    assert lock.exists()
    run_stage(Upper(), [corpus], out, progress=False)
    assert not lock.exists()


def test_broken_lines_are_counted_and_named(tmp_path):
    path = tmp_path / "in.jsonl"
    good = [Document(f"text {number}", f"a:{number}").to_line() for number in range(3)]
    bad = [b'{"text": "no id"}\n', b"[1]\n", b"\xff\xfe\n", b'{"text": 3, "id": "x"}\n', b'{"id": "x", "te', b"null\n"]
    bad += [b'{"text": "a", "id": "b", "colour": "red"}\n', b'{"text": "a", "id": "b", "info": []}\n']
    path.write_bytes(
        good[0]
        + bad[0]
        + bad[1]
        + b"\n"
        + good[1]
        + b"".join(bad[2:4])
        + good[2]
        + bad[4]
        + b"\n"
        + bad[5]
        + bad[6]
        + bad[7]
    )
    out = run(path, "one")
    assert [document.id for document in read_documents(out)] == ["a:0", "a:1", "a:2"]
    problems = record(out)["problems"]
    assert problems["count"] == len(bad)
    for number, place in enumerate([2, 3, 6, 7, 9, 10, 11, 12]):
        assert problems["first"][number].startswith(f"line {place} of in.jsonl: this is no document"), problems


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_damaged_file_is_named_and_the_rest_is_read(tmp_path, suffix):
    path, other = tmp_path / f"in.jsonl{suffix}", tmp_path / "other.jsonl"
    write_corpus(path, 300)
    write_corpus(other, 3)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = b"\x00" * (len(data) // 2)
    path.write_bytes(data)
    out = tmp_path / "out.jsonl"
    run_stage(Upper(), [path, other], out, progress=False)
    problems = json.loads(out.with_name("out.json").read_bytes())["problems"]
    assert problems["count"] >= 1
    assert any("cannot be read from line" in problem for problem in problems["first"])
    assert sum(1 for _ in read_documents(out)) >= 3


def test_a_file_without_a_document_says_how_to_read_it(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "hello"}\n')
    with pytest.raises(InputError, match=r"has no document, but line 1 of in\.jsonl.*`minillm data extract` first"):
        run(path, "one")
    with pytest.raises(InputError, match="cannot be read"):
        run(tmp_path / "missing.jsonl", "two")
    with pytest.raises(InputError, match="another ending"):
        run(tmp_path / "notes.txt", "three")


def test_lone_surrogates_stay_what_they_are(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"text": "a\\ud800b", "id": "x"}\n')
    out = run(path, "one", suffix="")
    assert [document.text for document in read_documents(out)] == ["A\ud800B"]
    assert out.read_bytes().isascii()


def test_an_empty_input_gives_an_empty_output(tmp_path):
    path = tmp_path / "in.jsonl"
    path.touch()
    assert list(read_documents(run(path, "one"))) == []


# Errors


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_names_the_stage_and_the_document(corpus, processes):
    with pytest.raises(InputError, match=r"upper: document 'a.txt:123' of .*in.jsonl.zst fails with ZeroDivisionError"):
        run(corpus, "one", Upper(fails="a.txt:123"), processes)
    with pytest.raises(InputError, match=r"upper: document 'a.txt:123' .* other documents came out"):
        run(corpus, "two", Upper(loses="a.txt:123"))


def test_a_worker_that_dies_names_the_stage_and_the_document(corpus):
    with pytest.raises(ParallelError, match=r"upper: a worker process was ended by SIGKILL.*document 'a.txt:123' of"):
        run(corpus, "one", Upper(dies="a.txt:123"), 2)
    assert 0 < record(corpus.parent / "one" / "upper.jsonl.zst")["chunks"] < 20  # the chunks before it are done


def test_a_worker_that_cannot_start_is_an_error():
    with pytest.raises(WorkerDiedError, match="ended with exit status 1") as caught:
        list(map_units(Unloadable(), range(3), 2))
    assert caught.value.unit in (0, 1)


class Unloadable:
    """An object that pickles, and cannot be read again in a worker."""

    def __reduce__(self):
        return (exec, ("import sys; sys.stderr = open('/dev/null', 'w'); raise SystemExit(1)",))

    def __call__(self, unit):
        raise AssertionError


def test_ctrl_c_ends_all_workers(corpus):
    process = program(corpus, corpus.parent / "one" / "upper.jsonl.zst", 2, 0.5)
    wait_for(lambda: len(children(process.pid)) >= 3)  # two workers, and multiprocessing's own
    workers = children(process.pid)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    wait_for(lambda: not alive(workers))


def test_a_full_disk_is_a_sentence_and_the_run_goes_on_later(corpus):
    """A limit on the size of files stands in for a disk: the error comes from the same call."""
    expected = run(corpus, "undisturbed")
    out = corpus.parent / "full" / "upper.jsonl.zst"
    limit = expected.stat().st_size // 2
    code = f"""
import resource
from pathlib import Path
from minillm.corpus import stage
from minillm.errors import InputError
from tests.corpus.small_stages import Upper
stage.CHUNK_BYTES = 4000
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    stage.run_stage(Upper(), [Path({str(corpus)!r})], Path({str(out)!r}))
except InputError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "upper.jsonl.zst.part cannot be written" in result.stdout
    assert "make room, and give the same command again, which goes on from there" in result.stdout
    run_stage(Upper(), [corpus], out, progress=False)
    assert out.read_bytes() == expected.read_bytes()


def test_files_are_gzip_and_zstandard_that_other_programs_read(corpus):
    import zstandard

    plain = run(corpus, "plain", suffix="").read_bytes()
    assert gzip.decompress(run(corpus, "gz", suffix=".gz").read_bytes()) == plain
    frames = zstandard.ZstdDecompressor().stream_reader(run(corpus, "zst").read_bytes(), read_across_frames=True)
    assert frames.read() == plain
    with open_lines(corpus.parent / "gz" / "upper.jsonl.gz") as lines:
        assert np.sum([line.endswith(b"\n") for line in lines]) == 400
