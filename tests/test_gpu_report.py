"""benchmarks/gpu_report.py without a GPU: the dry run, and that what is wrong, raises or hangs is reported as that."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("ml_dtypes", reason="bfloat16 arrays need ml_dtypes")
ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(BENCHMARKS)])}


@pytest.fixture
def load(monkeypatch):
    """Import a part of the report; none of them touches CuPy while it is imported."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def run(out: Path, *arguments: str, script: Path = BENCHMARKS / "gpu_report.py") -> tuple[int, dict, str]:
    """Run the report; its exit status, JSON and Markdown."""
    command = [sys.executable, str(script), "--out", str(out), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert out.with_suffix(".json").is_file(), result.stderr
    return result.returncode, json.loads(out.with_suffix(".json").read_text()), out.with_suffix(".md").read_text()


def planted(folder: Path, text: str) -> Path:
    """A script that changes the report, or what it checks, and then is the report, for its jobs too."""
    script = folder / "planted_report.py"
    body = """
        import sys
        import gpu_report
        from gpu_report import Section
        gpu_report.__file__ = __file__
    """
    end = 'if __name__ == "__main__":\n    sys.exit(gpu_report.main())\n'
    script.write_text(textwrap.dedent(body) + textwrap.dedent(text) + end)
    return script


def tables(report: dict) -> dict[str, dict]:
    return {table["title"]: table for section in report["sections"] for table in section["tables"]}


# ---- the dry run ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dry(tmp_path_factory, _compiler):
    out = tmp_path_factory.mktemp("dry") / "gpu"
    return run(out, "--dry", "--only", "machine", "parity", "agreement", "kernels:bfloat16", "levels", "nccl", "ranks")


@pytest.fixture(scope="module")
def _compiler() -> None:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed, and kernels on NumPy arrays are compiled by it")


def test_every_kernel_passes_in_every_dtype(dry):
    status, report, _ = dry
    assert status == 0, [section["problems"] for section in report["sections"]]
    outcomes = {section["section"]: section["outcome"] for section in report["sections"]}
    checks = dict.fromkeys(("parity", "agreement", "nccl", "ranks"), "pass")
    others = "machine", "kernels", "levels"
    assert outcomes == checks | dict.fromkeys(others, "done"), [s["problems"] for s in report["sections"]]
    rows = tables(report)["Kernels against NumPy in float64"]["rows"]
    assert {row[-1] for row in rows} == {"pass"}
    checked = {(row[0], row[1]) for row in rows}
    for kernel in ("softmax", "layernorm", "attention", "cross_entropy", "gemv", "adamw and its clipping"):
        assert {dtype for name, dtype in checked if name == kernel} == {"float64", "float32", "bfloat16"}
    assert all(row[2] > 0 and row[3] is not None for row in rows)


def test_every_kernel_instance_was_launched_and_every_operation_has_cases(dry):
    rows = {row[0]: row[1:] for row in tables(dry[1])["What was launched"]["rows"]}
    assert rows["instances"][0] > 200
    assert rows["not launched"] == [0, ""], "add a case to gpu_cases.py or gpu_parity.py"
    assert rows["operations without a case"] == [0, ""], "add cases to gpu_cases.py"


def test_instances_that_no_case_launches_are_listed(load):
    count, missing = load("gpu_parity").coverage({"softmax_forward<float>"})
    assert len(missing) == count - 1
    assert "softmax_backward<float>" in missing


def test_the_page_says_what_the_json_says(dry, load):
    _, report, page = dry
    sections = page.split("\n## ")
    assert sections[0].startswith("# DRY RUN")
    assert len(sections) == 1 + len(report["sections"])
    for section, text in zip(report["sections"], sections[1:], strict=True):
        lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("| ---")]
        rows = [re.split(r" ?(?<!\\)\| ?", line)[1:-1] for line in lines]
        expected = [row for table in section["tables"] for row in (table["columns"], *table["rows"])]
        assert len(rows) == len(expected)
        for shown, cells in zip(rows, expected, strict=True):
            for a, b in zip(shown, cells, strict=True):
                if isinstance(b, float):
                    assert float(a.replace(",", "")) == pytest.approx(b, rel=6e-3)
                else:
                    assert a.strip() == ("" if b is None else str(b).replace("|", "\\|"))


def test_one_rank_goes_through_every_operation_and_all_of_the_training(dry):
    found = tables(dry[1])
    by_dtype = {dtype: set() for dtype in ("float32", "float64", "bfloat16")}
    for name, dtype, *_ in found["One rank's operations"]["rows"]:
        by_dtype.get(dtype, set()).add(name.split(",")[0])
    reductions = {
        f"{name} {op}" for name in ("all_reduce", "reduce", "reduce_scatter") for op in ("sum", "mean", "max")
    }
    others = {"all_gather", "broadcast", "split", "in the order of streams"}
    assert by_dtype == dict.fromkeys(by_dtype, reductions | others) | {
        "float64": reductions | others | {"sum_of", "max_of"}
    }
    (steps,) = (table for title, table in found.items() if "on a mesh of one rank" in title)
    every = {
        (d, zero, recomputed) for d in ("float32", "bfloat16") for zero in range(4) for recomputed in (False, True)
    }
    assert {tuple(row[:3]) for row in steps["rows"]} == every
    (trainer,) = (table for title, table in found.items() if title.startswith("The whole trainer"))
    assert {row[2] for row in trainer["rows"]} == {"no", "on the rank", "without ranks"}
    (cost,) = (table for title, table in found.items() if title.endswith("gradients by NCCL"))
    assert cost["rows"] == [["dry"] * 4]


def test_no_time_of_a_dry_run_is_shown(dry):
    report = dry[1]
    rows = tables(report)["Kernels that memory bounds, at GPT-2's sizes"]["rows"]
    assert len(rows) > 25
    assert all(row[3:] == ["dry"] * 4 for row in rows)
    assert [row[1] for row in tables(report)["The machine"]["rows"] if "bandwidth" in row[0]] == ["dry"]
    assert not next(s for s in report["sections"] if s["section"] == "kernels")["notes"][:-1]  # all had their turn


# ---- what is wrong --------------------------------------------------------------------------------------------------

WRONG = {
    "one of many": lambda y: np.where(np.arange(y.size).reshape(y.shape) == 5000, -y, y),
    "sign": lambda y: -y,
    "a little too large": lambda y: y * (1 + 2.0**-20),
    "nothing written": lambda y: np.full_like(y, np.nan),
    "zeros": np.zeros_like,
    "one not a number": lambda y: np.where(np.arange(y.size).reshape(y.shape) == 5000, np.nan, y),
    "rows exchanged": lambda y: y[::-1],
    "transposed": lambda y: y.T,
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_array_is_not_passed(load, rng, fault):
    compare = load("gpu_parity").compare
    exact = rng.standard_normal((100, 200))
    right = exact.astype(np.float32)
    assert compare(right, exact, right, 2).of_allowed < 1
    wrong = WRONG[fault](right).astype(np.float32)
    assert compare(wrong, exact, right, 3).of_allowed > 1


def test_one_wrong_number_does_not_hide_among_many(load, rng):
    """In bfloat16 a tenth of the largest is nothing to the root mean square of 20,000."""
    bfloat16 = load("ml_dtypes").bfloat16
    exact = rng.uniform(1, 2, (100, 200))
    right = exact.astype(bfloat16)
    wrong = right.copy()
    wrong[50, 3] *= 1.2
    compare = load("gpu_parity").compare
    assert compare(right, exact, right, 2).of_allowed < 1
    assert compare(wrong, exact, right, 2).of_allowed > 1


def test_the_bound_follows_what_the_formula_loses(load, rng):
    """Errors of three roundings pass a factor of two where NumPy has two, and not where it has one."""
    compare = load("gpu_parity").compare
    exact = rng.uniform(1, 2, 10_000)
    noise = rng.standard_normal(10_000) * 2.0**-24
    kernel, careful, careless = (exact + n * noise for n in (3, 1, 2))
    assert compare(kernel.astype(np.float32), exact, careless, 2).of_allowed < 1
    assert compare(kernel.astype(np.float32), exact, careful, 2).of_allowed > 1
    infinite = np.where(np.arange(10_000) < 3, np.inf, exact)
    assert compare(infinite.astype(np.float32), infinite, infinite, 2).of_allowed < 1
    assert compare(infinite.astype(np.float32), exact, exact, 2).of_allowed == np.inf


@pytest.mark.usefixtures("_compiler")
def test_a_wrong_kernel_fails_the_report(tmp_path):
    """The formula of silu's backward is changed, so that the kernel differs from it."""
    script = planted(
        tmp_path,
        """
        from minillm import ops
        ops.SILU.pair("cuda")  # looked for while the operation is whole
        right = ops.SILU.backward
        ops.SILU.backward = lambda dout, saved: (right(dout, saved)[0] * 1.001,)
        """,
    )
    status, report, page = run(tmp_path / "gpu", "--dry", "--only", "parity:silu", "gradients:silu", script=script)
    assert status == 1
    assert report["sections"][0]["outcome"] == "FAIL"
    verdicts = {tuple(row[:2]): row[-1] for row in tables(report)["Kernels against NumPy in float64"]["rows"]}
    assert verdicts == {("silu", "float64"): "FAIL", ("silu", "float32"): "FAIL", ("silu", "bfloat16"): "pass"}
    wrong = tables(report)["Wrong results"]["rows"]
    assert {row[3] for row in wrong} == {1}  # the gradient of x, not the value
    assert "Wrong results" in page
    assert report["sections"][1]["outcome"] == "pass"  # the kernel's own backward is that of its forward


@pytest.mark.usefixtures("_compiler")
def test_a_wrong_backward_fails_the_gradient_checks(tmp_path):
    script = planted(
        tmp_path,
        """
        from minillm import ops
        from minillm.engine import Pair
        forward, backward, *_ = ops.SOFTMAX.pair("cuda")
        ops.SOFTMAX.pairs["cuda"] = Pair(forward, lambda dout, saved: (-backward(dout, saved)[0],), kernel="softmax")
        """,
    )
    names = "gradients:softmax", "gradients:log_softmax"
    status, report, _ = run(tmp_path / "gpu", "--dry", "--only", *names, script=script)
    assert status == 1
    title = "Gradients of the double kernels against differences of their values"
    assert {row[0]: row[-1] for row in tables(report)[title]["rows"]} == {"softmax": "FAIL", "log_softmax": "pass"}


BROKEN_RANKS = {
    "a sum that is twice as large": ("operations", "nccl.NcclCommunicator._reduced = lambda self, x, op: x * 2"),
    "an operation that does nothing": ("operations", "nccl.NcclCommunicator.allGather = lambda *_: None"),
    "gradients that are lost": (
        "steps",
        "data_parallel.Unit.complete_gradients = lambda unit: unit.grad.fill(0) or unit.grad",
    ),
    "moments that are not loaded": ("steps", "mesh._moment_names = lambda optimizer: ['exp_avg']"),
    "a step that is not published": ("trainer", "zero.ZeRO.sync_parameters = lambda self: None"),
    "gradients that are overwritten": (
        "trainer",
        "data_parallel.DataParallel.start_sum = lambda self, unit: unit.grad.fill(1)",
    ),
}


@pytest.mark.parametrize("fault", BROKEN_RANKS)
def test_what_is_wrong_with_ranks_fails_the_report(tmp_path, fault):
    part, change = BROKEN_RANKS[fault]
    script = planted(
        tmp_path,
        f"""
        import gpu_job
        sys.path.insert(0, str(gpu_job.STANDIN))
        from cupy.cuda import nccl
        from minillm.parallel import data_parallel, mesh, zero
        {change}
        """,
    )
    status, report, _ = run(tmp_path / "gpu", "--dry", "--only", f"ranks:{part}", script=script)
    assert status == 1
    assert report["sections"][0]["outcome"] == "FAIL"


def test_without_nccl_the_report_says_what_to_install(tmp_path):
    script = planted(
        tmp_path,
        """
        import gpu_job
        sys.path.insert(0, str(gpu_job.STANDIN))
        from cupy.cuda import nccl
        nccl.available = False
        """,
    )
    status, report, _ = run(tmp_path / "gpu", "--dry", "--only", "nccl", "ranks:operations", script=script)
    assert status == 0
    for section in report["sections"]:
        assert (section["outcome"], section["tables"]) == ("done", [])
        assert "pip install nvidia-nccl-cu13" in section["notes"][0]


def test_the_trainer_runs_where_little_is_installed(tmp_path):
    """The GPU machine has no rich, safetensors, threadpoolctl or matplotlib."""
    script = planted(
        tmp_path,
        """
        for name in ("rich", "tyro", "safetensors", "threadpoolctl", "matplotlib"):
            sys.modules[name] = None
        """,
    )
    status, report, _ = run(tmp_path / "gpu", "--dry", "--only", "ranks:trainer", "ranks:steps", script=script)
    assert status == 0, report["sections"]
    assert "without threadpoolctl and safetensors" in report["sections"][0]["notes"][-1]


def test_a_section_that_raises_or_hangs_is_reported_and_the_rest_goes_on(tmp_path):
    script = planted(
        tmp_path,
        """
        import time

        def raises(job):
            job.table("Half", "number").row(1.5)
            raise ValueError("planted")

        def hangs(job):
            job.table("Before", "number").row(2.5)
            time.sleep(1000)

        def dies(job):
            import os
            os._exit(3)

        def after(job):
            job.table("After", "number").row(3.5)

        gpu_report.LEAST = 1
        gpu_report.SECTIONS = {
            "raises": Section(raises, 100),
            "dies": Section(dies, 100, checks=True),
            "after": Section(after, 100),
            "hangs": Section(hangs, 4),
            "late": Section(after, 0.5),
        }
        """,
    )
    status, report, page = run(tmp_path / "gpu", script=script)
    sections = {section["section"]: section for section in report["sections"]}
    assert list(sections) == ["raises", "dies", "after", "hangs", "late"]
    assert sections["raises"]["outcome"] == "not all of it"
    assert sections["raises"]["problems"] == [{"job": "raises", "status": "failed", "error": "ValueError: planted"}]
    assert sections["dies"]["outcome"] == "FAIL"  # a check that did not come to its end has not passed
    assert status == 1
    assert sections["dies"]["problems"][0]["error"] == "exit status 3"
    assert sections["hangs"]["problems"][0]["status"] == "stopped"
    assert sections["late"]["outcome"] == "skipped"
    assert [tables(report)[title]["rows"] for title in ("Half", "Before", "After")] == [[[1.5]], [[2.5]], [[3.5]]]
    assert "raises failed: ValueError: planted" in page
    assert "Traceback" in (tmp_path / "gpu.log").read_text()


def test_what_is_stopped_takes_its_children_along(load, tmp_path):
    run_limited = load("gpu_report").run_limited
    child = f"import time; time.sleep(2.5); open({str(tmp_path / 'alive')!r}, 'w')"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    status, ended = run_limited([sys.executable, "-c", parent], 1.5, tmp_path / "output")
    assert not ended
    assert status != 0
    time.sleep(2.5)
    assert not (tmp_path / "alive").exists()


def test_only_what_exists_can_be_chosen(load):
    report = load("gpu_report")
    assert report.selected(["levels", "parity:softmax"]) == {"parity": ["parity:softmax"], "levels": ["levels"]}
    assert list(report.selected(None)) == list(report.SECTIONS)
    with pytest.raises(SystemExit, match="there is no section 'parity:soft'"):
        report.selected(["parity:soft"])


def test_without_a_gpu_the_report_says_so(tmp_path, load):
    job = load("gpu_job").Job(tmp_path / "job.json", 60)
    if importlib.util.find_spec("cupy"):
        pytest.skip("CuPy is installed, so what is missing is something else")
    with pytest.raises(load("minillm.errors").DeviceError, match="needs CuPy"):
        _ = job.cupy


# ---- what a dry run does not come through ---------------------------------------------------------------------------


class Gpu:
    """A GPU that works through its queue while the host goes on; both times in milliseconds."""

    def __init__(self):
        self.host = self.free = 0.0

    def launch(self, takes: float, queueing: float) -> None:
        self.host += queueing
        self.free = max(self.free, self.host) + takes

    def event(self):
        gpu = self

        class Event:
            def record(self):
                self.time = gpu.free = max(gpu.free, gpu.host)

            def synchronize(self):
                gpu.host = max(gpu.host, self.time)

            done = property(lambda self: gpu.host >= self.time)

        return Event()


@pytest.fixture
def clock(load, monkeypatch):
    """The report's clock on a simulated GPU, whose copies take a millisecond."""
    module, gpu, notes = load("gpu_clock"), Gpu(), []
    monkeypatch.setattr(module.time, "perf_counter", lambda: gpu.host / 1e3)
    runtime = SimpleNamespace(getDeviceProperties=lambda device: {"l2CacheSize": 60 << 20})
    elapsed = lambda start, end: end.time - start.time  # noqa: E731
    cuda = SimpleNamespace(Event=gpu.event, runtime=runtime, get_elapsed_time=elapsed)
    cupy = SimpleNamespace(cuda=cuda, copyto=lambda a, b: gpu.launch(1.0, 0.005))
    job = SimpleNamespace(
        cupy=cupy,
        dry=False,
        note=notes.append,
        size=lambda full, dry: full,
        random=lambda *a: SimpleNamespace(nbytes=1e9),
    )
    clock = module.Clock(job)
    clock.gpu, clock.notes = gpu, notes
    return clock


def test_the_clock_times_the_gpu_and_not_the_host(clock):
    assert clock.copy_ms == pytest.approx(1.0)
    assert clock.copy_rate == pytest.approx(2e12)
    short = [lambda: clock.gpu.launch(0.002, 0.06)] * 10  # the host needs thirty times as long as the kernel
    milliseconds, spread = clock.time(short, "a short kernel")
    assert milliseconds == pytest.approx(0.002)
    assert spread == pytest.approx(0, abs=1e-6)
    assert clock.notes == []
    clock.copy = lambda: None  # without work ahead of them, the launches are waited for: that is noticed
    assert clock.time(short, "a short kernel")[0] > 0.05
    assert clock.notes == ["a short kernel: the GPU waited for the host, and its time is too long"]


def test_the_clock_takes_the_median_and_enough_memory(clock):
    times = iter([5.0, 5.0] + [1.0, 3.0, 2.0, 2.0, 100.0] * 5)
    milliseconds, spread = clock.time([lambda: clock.gpu.launch(next(times), 0.01)], "a kernel", samples=25)
    assert milliseconds == 2.0
    assert spread == pytest.approx((3.0 - 2.0) / 2.0)
    assert clock.sets(25 << 20) * (25 << 20) >= 3 * clock.cache_bytes
    assert clock.sets(10 << 30) == 1


MEMCHECK = """========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at softmax_forward(float const*, float *)+0x110 in softmax.cu:40
=========     by thread (31,0,0) in block (0,0,0)
========= ERROR SUMMARY: 2 errors
"""
CLEAN = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"
RACECHECK = """========= Error: Race reported between Write access at softmax_forward+0x70 in softmax.cu:31
=========     and Read access at softmax_forward+0x90 in softmax.cu:33 [64 hazards]
========= RACECHECK SUMMARY: 3 hazards displayed (3 errors, 0 warnings)
"""


def test_what_compute_sanitizer_says(load):
    says = load("gpu_report").sanitizer_says
    assert says([CLEAN, CLEAN, "Error: no device"]) == (2, 0, "")
    assert says([CLEAN, MEMCHECK])[:2] == (2, 2)
    assert says([MEMCHECK])[2].startswith("Invalid __global__ write of size 4 bytes; at softmax_forward")
    processes, hazards, first = says([RACECHECK])
    assert (processes, hazards) == (1, 3)
    assert "softmax.cu:31; and Read access" in first


@pytest.mark.parametrize("log", [CLEAN, MEMCHECK, ""], ids=["clean", "wrong", "refused"])
def test_compute_sanitizer_is_run_over_the_parity_checks(load, monkeypatch, tmp_path, log):
    """By a program of that name that keeps its arguments and logs what it is told to."""
    report = load("gpu_report")
    program = tmp_path / "compute-sanitizer"
    program.write_text(
        f"#!{sys.executable}\nimport sys, pathlib\nprint('Device not supported')\n"
        f"pathlib.Path({str(tmp_path / 'arguments')!r}).open('a').write(' '.join(sys.argv[1:]) + '\\n')\n"
        f"pathlib.Path(sys.argv[sys.argv.index('--log-file') + 1].replace('%p', '7')).write_text({log!r})\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    job = load("gpu_job").Job(tmp_path / "job.json", 60)
    report.sanitizer(job)
    rows, notes = job.results["tables"][0]["rows"], job.results["notes"]
    tools = "memcheck", "racecheck"
    if log:
        verdict = "pass" if log == CLEAN else "FAIL"
        assert [(row[0], row[1], row[3]) for row in rows] == [(tool, 1, verdict) for tool in tools]
    else:
        assert rows == []
        assert notes == [f"{tool} came to no summary: Device not supported" for tool in tools]
    for line in (tmp_path / "arguments").read_text().splitlines():
        assert "--target-processes all" in line
        assert "gpu_report.py --only parity --small --plain-memory" in line


def test_nccl_calls_have_the_arguments_of_cupy(load, tmp_path):
    """With the parameters of cupy.cuda.nccl.NcclCommunicator, which copies, as one rank does; or does not, for once."""
    parity, calls = load("gpu_parity"), []
    memory: dict[int, np.ndarray] = {}

    class Communicator:
        faulty = False

        def __init__(self, ndev, commId, rank):
            assert (ndev, rank) == (1, 0)

        def allReduce(self, sendbuf, recvbuf, count, datatype, op, stream):
            calls.append(datatype)
            memory[recvbuf][:count] = 0 if self.faulty else memory[sendbuf][:count]

        def reduceScatter(self, sendbuf, recvbuf, recvcount, datatype, op, stream):
            memory[recvbuf][:recvcount] = memory[sendbuf][:recvcount]

        def allGather(self, sendbuf, recvbuf, count, datatype, stream):
            memory[recvbuf][:count] = memory[sendbuf][:count]

        def broadcast(self, sendbuff, recvbuff, count, datatype, root, stream):
            assert root == 0
            memory[recvbuff][:count] = memory[sendbuff][:count]

        def destroy(self):
            calls.append("destroyed")

    class Array(np.ndarray):
        @property
        def data(self):
            memory[self.ctypes.data] = self
            return SimpleNamespace(ptr=self.ctypes.data)

    codes = {"NCCL_FLOAT32": 7, "NCCL_BFLOAT16": 9, "NCCL_SUM": 0}
    nccl = SimpleNamespace(NcclCommunicator=Communicator, get_unique_id=bytes, get_version=lambda: 22809, **codes)
    cuda = SimpleNamespace(Stream=SimpleNamespace(null=SimpleNamespace(ptr=0)))
    job = load("gpu_job").Job(tmp_path / "job.json", 60)
    job.nccl = nccl
    job.cupy = SimpleNamespace(cuda=cuda, zeros=lambda shape, dtype: np.zeros(shape, dtype).view(Array))
    job.random = lambda shape, dtype: np.random.default_rng(0).standard_normal(shape).astype(dtype).view(Array)
    parity.nccl(job)
    (table,) = job.results["tables"]
    assert [row[2] for row in table["rows"]] == ["pass"] * 8
    assert calls == [7, 9, "destroyed"]
    Communicator.faulty = True
    parity.nccl(job)
    assert [row[2] for row in table["rows"][8:]] == ["FAIL", "pass", "pass", "pass"] * 2


def test_where_the_time_goes(load, tmp_path):
    training = load("gpu_training")
    job = load("gpu_job").Job(tmp_path / "job.json", 60)
    gemm = {"cat": "kernel", "name": "void cutlass::gemm<float>(Params)", "dur": 30.0}
    copy = {"cat": "gpu_memcpy", "name": "Memcpy DtoD", "dur": 10.0}
    launches = [{**gemm, "ts": 100.0 * i} for i in range(4)] + [{**copy, "ts": 50.0 + 200 * i} for i in range(2)]
    training.tabulate(job, [*launches, {"cat": "cpu_op", "name": "aten::mm", "dur": 1e9, "ts": 0.0}, {"ph": "M"}], 2)
    (table,) = job.results["tables"]
    assert table["rows"] == [["cutlass::gemm<float>", 2.0, 60.0, 120 / 140], ["Memcpy DtoD", 1.0, 10.0, 20 / 140]]
    assert job.results["notes"] == ["a step is 3 launches and 0.07 ms of work, 42.4% of the time it takes"]


def test_operations_of_a_token(load):
    """6 for each of the 123.6 million weights in products, and 57 million for attention."""
    config = load("minillm.models.gpt2").GPT2Config(vocab_size=50304)
    operations = load("gpu_training").operations_of_token(config)
    assert operations == 6 * (12 * 12 * 768**2 + 50304 * 768) + 6 * 12 * 1024 * 768
    assert operations == pytest.approx(798e6, rel=1e-2)


def test_nothing_but_numpy_is_needed_to_import_it():
    """The GPU machine has no tyro, rich, safetensors or matplotlib."""
    code = "import sys, gpu_report; print(*{m.partition('.')[0] for m in sys.modules} - set(sys.stdlib_module_names))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    foreign = {name for name in out.stdout.split() if not name.startswith(("gpu_", "_", "sitecustomize"))}
    assert foreign <= {"numpy", "minillm", "regex", "ml_dtypes"}
