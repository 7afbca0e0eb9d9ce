"""Kernel: what is checked before a launch, where a launch goes, how text is compiled; and the policies."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from minillm import cuda, kernels
from minillm.cuda import Kernel, KernelError, emulate, source
from minillm.engine import current_engine, engine, uses_kernel
from minillm.errors import DeviceError, DtypeError, InputError, MinillmError, ShapeError

int32, int64 = np.int32, np.int64
X, Y = np.ones((4, 8), np.float32), np.zeros((4, 8), np.float32)
GOOD = (X, Y, int64(4), int32(8))


@pytest.fixture
def softmax(load) -> Kernel:
    return load("softmax.cu", "softmax_forward<float>")


# ---- arguments -------------------------------------------------------------------------------------------------------

READ_ONLY = Y.copy()
READ_ONLY.flags.writeable = False
STRIDED = np.ones((4, 16), np.float32)[:, ::2]

REFUSED = {
    "too few": (GOOD[:3], InputError, r"3 arguments .* for 4: const float\* x, float\* y, long long rows, int columns"),
    "too many": ((*GOOD, int32(1)), InputError, "5 arguments are given for 4"),
    "float64 array": ((X.astype(float), *GOOD[1:]), DtypeError, r"const float\* x .* of float64; pass one of float32"),
    "strided": ((STRIDED, *GOOD[1:]), ShapeError, r"shape \(4, 8\) and strides \(64, 8\), .* pass ascontiguousarray"),
    "transposed": ((X, np.zeros((8, 4), np.float32).T, *GOOD[2:]), ShapeError, "not C-contiguous"),
    "read-only output": ((X, READ_ONLY, *GOOD[2:]), InputError, r"y is given a read-only array, .* pass a copy"),
    "list": (([1.0], *GOOD[1:]), DtypeError, r"x is given \[1.0\], of type list; pass an array of float32"),
    "scalar for an array": ((np.float32(1), *GOOD[1:]), DtypeError, "pass an array of float32"),
    "Python int": ((*GOOD[:3], 8), DtypeError, r"int columns is given 8, of type int; pass np.int32\(columns\)"),
    "Python float for an int": ((*GOOD[:3], 8.0), DtypeError, r"given 8.0, of type float; pass np.int32\(columns\)"),
    "bool": ((*GOOD[:3], True), DtypeError, r"given True, of type bool; pass np.int32\(columns\)"),
    "int64 for an int": ((*GOOD[:3], int64(8)), DtypeError, r"given np.int64\(8\), of type int64; pass np.int32\("),
    "int32 for a long long": ((X, Y, int32(4), int32(8)), DtypeError, r"long long rows .* pass np.int64\(rows\)"),
    "array for an int": ((*GOOD[:3], np.array(8, int32)), DtypeError, "of type ndarray; pass np.int32"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_an_argument_that_cuda_would_take_for_other_bits_is_refused(softmax, case):
    arguments, error, message = REFUSED[case]
    before = cuda.launch_counts()
    with pytest.raises(error, match=message) as raised:
        softmax(4, 32, arguments)
    assert isinstance(raised.value, MinillmError)
    assert str(raised.value).startswith("softmax_forward<float>: ")
    assert not Y.any(), "nothing ran"
    assert cuda.launch_counts() == before


GEOMETRY = {
    "no blocks": (0, 32, 0, "grid is 0"),
    "four numbers": ((1, 1, 1, 1), 32, 0, "grid is"),
    "too many in y": ((1, 65536), 32, 0, r"grid is \(1, 65536\); .* from 1 to \(2147483647, 65535, 65535\)"),
    "too deep": (1, (1, 1, 65), 0, "block is"),
    "above launch bounds": (1, 544, 0, "has 544 threads; give it at most 512"),
    "above in three dimensions": (1, (32, 8, 4), 0, r"block \(32, 8, 4\) has 1024 threads"),
    "shared memory": (1, 32, 228 * 1024, "smem is 233472 bytes; a block can have 0 to 232448"),
    "negative shared memory": (1, 32, -1, "smem is -1 bytes"),
}


@pytest.mark.parametrize("case", GEOMETRY)
def test_a_launch_that_no_gpu_takes_is_refused(softmax, case):
    grid, block, smem, message = GEOMETRY[case]
    with pytest.raises(InputError, match=message):
        softmax(grid, block, GOOD, smem)
    assert not Y.any()


def test_an_array_beyond_int_needs_a_kernel_that_indexes_beyond_int(tmp_path):
    text = "__global__ void {name}({size} n, unsigned char* x) {{}}\n// instances: {name}\n"
    for name, size in (("small", "int"), ("large", "long long")):
        (tmp_path / f"{name}.cu").write_text('#include "common.cuh"\n' + text.format(name=name, size=size))
    x = np.empty(2**31, np.uint8)  # address space only: nothing touches it
    small, large = Kernel(tmp_path / "small.cu", "small"), Kernel(tmp_path / "large.cu", "large")
    with pytest.raises(InputError, match="2147483648 elements, but the kernel indexes with int; launch it on parts"):
        small(1, 1, (int32(1), x))
    assert large._checked_device((int64(1), x)) is None
    assert small._checked_device((int32(1), x[1:])) is None


def test_launches_are_counted_by_instance(softmax, load):
    before = cuda.launch_counts()
    for _ in range(3):
        softmax(4, 32, (X, Y.copy(), *GOOD[2:]))
    counted = cuda.launch_counts() - before
    assert counted == {"softmax_forward<float>": 3}
    counted.clear()
    assert (cuda.launch_counts() - before).total() == 3, "a caller gets a copy"


def test_get_kernel_names_an_instance_by_dtypes_and_numbers(bfloat16):
    kernel = cuda.get_kernel("softmax.cu", "softmax_forward", np.dtype(np.float64))
    assert kernel.instance == "softmax_forward<double>"
    assert cuda.get_kernel("softmax.cu", "softmax_forward", np.dtype(np.float64)) is kernel
    assert cuda.get_kernel("softmax.cu", "softmax_backward", bfloat16).instance == "softmax_backward<__nv_bfloat16>"


def test_without_ml_dtypes_a_bfloat16_kernel_says_what_to_install(monkeypatch):
    kernel = Kernel("softmax.cu", "softmax_forward<__nv_bfloat16>")
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(DtypeError, match="bfloat16 from ml_dtypes, which is missing; pip install ml_dtypes"):
        kernel(4, 32, GOOD)


# ---- text ------------------------------------------------------------------------------------------------------------

KERNEL = """#include "common.cuh"
#include "part.cuh"
template <typename T, int N>
__global__ void /* a comment (with brackets) */
shift(const T* __restrict__ x, T* y,   // another, with a comma
      Accumulator<T>* wide, unsigned int n, const Accumulator<T> by) {
    for (unsigned i = 0; i < n; i++) y[i] = T(Accumulator<T>(x[i]) + by + N + PART), wide[i] = by;
}
// instances: shift<float,  2> shift<float, 3>
// instances: shift<double, 2>
"""


@pytest.fixture
def shift(tmp_path, monkeypatch, load):
    """A kernel with an included file, and a cache folder of its own: returns (write the two files and load, folder)."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def write(part: str = "#define PART 10", text: str = KERNEL, instance: str = "shift<float, 2>") -> Kernel:
        (tmp_path / "part.cuh").write_text(f"#pragma once\n{part}\n")
        (tmp_path / "shift.cu").write_text(text)
        return Kernel(tmp_path / "shift.cu", instance)

    return write, tmp_path / "cache" / "minillm" / "kernels"


def launch_shift(kernel: Kernel) -> float:
    x, y, wide = np.ones(1, np.float32), np.zeros(1, np.float32), np.zeros(1, np.float32)
    kernel(1, 1, (x, y, wide, np.uint32(1), np.float32(0.5)))
    return float(y[0])


def test_parameters_come_from_the_signature(shift):
    write, _ = shift
    parameters = [str(p) for p in write().parameters]
    assert parameters == ["const float* x", "float* y", "float* wide", "unsigned n", "const float by"]
    parameters = [str(p) for p in write(instance="shift<double,2>").parameters]
    assert parameters == ["const double* x", "double* y", "double* wide", "unsigned n", "const double by"]


def test_strides_are_one_argument_by_value(load):
    """Those of two arrays, one of them transposed; another number of arrays, or of numbers, is refused."""
    kernel = Kernel("attention.cu", "attention_delta<float>")
    assert str(kernel.parameters[-1]) == "Strides<2> strides"
    rng = np.random.default_rng(0)
    dout, out = rng.random((1, 2, 5, 7), np.float32), rng.random((1, 5, 2, 7), np.float32).swapaxes(1, 2)
    delta = np.full((1, 2, 5), np.nan, np.float32)
    flat = out.swapaxes(1, 2).reshape(-1)
    sizes = np.int32(5), np.int32(7)
    kernel((2, 2, 1), 128, (dout, flat, delta, *sizes, cuda.strides_of(dout, out)))
    np.testing.assert_allclose(delta, (dout * out).sum(-1), rtol=1e-6)
    for wrong in (cuda.strides_of(dout), np.zeros((2, 3), np.int64), np.int64(6)):
        with pytest.raises(DtypeError, match=r"(?s)Strides<2> strides is given .*; pass strides_of\(2 arrays\)"):
            kernel((2, 2, 1), 128, (dout, flat, delta, *sizes, wrong))


def test_an_included_file_that_changes_is_compiled_again(shift, monkeypatch):
    write, cache = shift
    assert launch_shift(write()) == 13.5
    assert launch_shift(write(instance="shift<float,3>")) == 14.5
    assert len(list(cache.glob("*.so"))) == 1, "the instances of one line are compiled together"
    assert launch_shift(write("#define PART 20")) == 23.5
    assert len(list(cache.glob("*.so"))) == 2
    monkeypatch.setenv("MINILLM_EMULATE_FLAGS", "-O1")
    assert launch_shift(write("#define PART 20")) == 23.5
    assert len(list(cache.glob("*.so"))) == 3, "flags are part of the key"
    assert sorted(p.name for p in cache.iterdir()) == sorted(p.name for p in cache.glob("*-shift.so")), "no rests"
    monkeypatch.delenv("MINILLM_EMULATE_FLAGS")
    emulate.emulated_library.cache_clear()
    monkeypatch.setattr(subprocess, "run", None)  # what is in the cache needs no compiler
    assert launch_shift(write()) == 13.5


def test_an_emulator_that_changes_is_compiled_again(shift, tmp_path, monkeypatch):
    write, _ = shift
    shutil.copytree(source.FOLDER / "emulator", tmp_path / "emulator")
    monkeypatch.setattr(emulate, "FOLDER", tmp_path)
    assert launch_shift(write()) == 13.5
    with (tmp_path / "emulator" / "fiber.h").open("a") as header:
        header.write("static_assert(false);\n")
    emulate.emulated_library.cache_clear()
    with pytest.raises(KernelError, match=r"fiber.h:.* error: static assertion failed"):
        launch_shift(write())
    emulate.emulated_library.cache_clear()


def test_a_gpu_is_given_nothing_of_the_emulator():
    for file in source.kernel_files():
        text = source.read_source(file).text
        assert "emulator/cuda_on_cpu.h" in text, "the line that g++ reads"
        assert "struct Settings" not in text


def test_a_failed_compile_names_the_file_and_the_line(shift):
    write, cache = shift
    with pytest.raises(KernelError, match=r"shift.cu: does not compile: .*part.cuh:3:\d+: error: .*nonsense") as raised:
        launch_shift(write("#define PART 10\nnonsense here;"))
    assert "nonsense here;" in raised.value.__notes__[0], "the compiler's whole message is attached"
    wrong = KERNEL.replace("y[i] = T", "z[i] = T")
    with pytest.raises(KernelError, match=r"shift.cu:7:\d+: error: .z. was not declared"):
        launch_shift(write(text=wrong))
    assert not list(cache.glob("*"))


TEXTS = {
    "no instances": ("__global__ void f(int n) {}", "f", InputError, "f.cu lists no kernels; end it with a line"),
    "not listed": ("// instances: gain<float>", "gian<float>", InputError, "list gian<float>; did you mean .gain<"),
    "no kernel": ("// instances: f<float>", "f<float>", KernelError, "f<float> does not name a kernel of the form"),
    "template": ("template <typename T> __global__ void f(T* x) {}\n// instances: f", "f", KernelError, "f does not"),
    "type": ("__global__ void f(std::string x) {}\n// instances: f", "f", KernelError, ".std::string x. is none"),
    "reference": ("__global__ void f(int& x) {}\n// instances: f", "f", KernelError, "parameter 'int& x' is none of"),
    "include": ('#include "gone.cuh"\n// instances: f', "f", KernelError, "f.cu:1: gone.cuh is neither beside this"),
}  # fmt: skip


@pytest.mark.parametrize("case", TEXTS)
def test_text_that_is_no_kernel(tmp_path, case):
    text, instance, error, message = TEXTS[case]
    (tmp_path / "f.cu").write_text(text)
    with pytest.raises(error, match=message):
        Kernel(tmp_path / "f.cu", instance)


def test_a_missing_file():
    with pytest.raises(InputError, match=r"Kernel: there is no file .*sotfmax.cu"):
        Kernel("sotfmax.cu", "softmax_forward<float>")


def test_a_signature_that_is_misread_does_not_compile(shift, monkeypatch):
    write, _ = shift
    kernel = write()
    real = source._parameter
    monkeypatch.setattr(source, "_parameter", lambda *a: real(*a)._replace(c_type="int"))
    with pytest.raises(KernelError, match=r"static assertion failed: source.py has misread the signature"):
        emulate.emulated_library(kernel.source, kernel.group.names, "")


def test_every_kernel_file_can_be_read_and_parsed():
    assert "softmax.cu" in source.kernel_files()
    for file in source.kernel_files():
        assert all(Kernel(file, instance).parameters for instance in source.instances(file))


def test_without_a_compiler(shift, monkeypatch):
    write, _ = shift
    emulate._compiler.cache_clear()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(KernelError, match=r"g\+\+, which compiles kernels for NumPy arrays, is missing; install g\+\+"):
        launch_shift(write())


def test_emulation_settings_are_checked_and_restored():
    for wrong in ({"order": "backward"}, {"copies": "lazy"}):
        with pytest.raises(InputError, match="choose from"), cuda.emulation(**wrong):
            pass
    with pytest.raises(ValueError, match="inside"), cuda.emulation(order="reverse"):
        raise ValueError("inside")
    assert emulate._emulation == (0, 0, 0)


# ---- policies --------------------------------------------------------------------------------------------------------


def test_engines_choose_between_kernel_and_formula(bfloat16):
    x = X.astype(bfloat16)
    for mode, expected in {"plain": False, "auto": False, "fast": False, "emulate": True, "require": True}.items():
        with engine(mode):
            assert current_engine() == mode
            assert uses_kernel("softmax", X) is expected
            assert uses_kernel("softmax", x) is expected
    with engine("emulate"), engine("fast"):
        assert not uses_kernel("softmax", X)


def test_require_turns_a_fallback_into_an_error():
    half = X.astype(np.float16)
    with engine("emulate"):
        assert not uses_kernel("softmax", half)
        assert not uses_kernel("softmax", X, refused="axis 0")
        assert not uses_kernel("no_such_op", X)
    with engine("require"):
        known = "bfloat16, float32, float64"
        with pytest.raises(KernelError, match=rf"softmax: no kernel for float16 \(there are kernels for: {known}\)"):
            uses_kernel("softmax", half)
        with pytest.raises(KernelError, match="softmax: no kernel for axis 0"):
            uses_kernel("softmax", X, refused="axis 0")
        with pytest.raises(KernelError, match=r"no_such_op: no kernel for float32 \(there are kernels for: nothing\)"):
            uses_kernel("no_such_op", X)


def test_the_engine_comes_back_after_an_error():
    with pytest.raises(ZeroDivisionError), engine("fast"):
        raise ZeroDivisionError
    assert current_engine() == os.environ.get("MINILLM_ENGINE", "auto")


def test_an_unknown_engine():
    with (
        pytest.raises(InputError, match="engine: 'requires' is not an engine; did you mean 'require'"),
        engine("requires"),
    ):
        pass


@pytest.mark.parametrize(
    ("value", "output"), [("emulate", "emulate\n"), ("on", "MINILLM_ENGINE is 'on', which is not an engine")]
)
def test_the_environment_sets_the_policy(value, output):
    program = "from minillm.engine import current_engine; print(current_engine())"
    environment = {**os.environ, "MINILLM_ENGINE": value, "PYTHONPATH": str(Path(cuda.__file__).parents[2])}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert output in result.stdout + result.stderr


def test_names_from_before_the_engines_work_and_say_what_to_write():
    program = "from minillm.engine import current_engine; print(current_engine())"
    environment = {**os.environ, "MINILLM_KERNELS": "off", "PYTHONPATH": str(Path(cuda.__file__).parents[2])}
    environment.pop("MINILLM_ENGINE", None)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert result.stdout == "fast\n"
    assert "FutureWarning: MINILLM_KERNELS is now MINILLM_ENGINE; set MINILLM_ENGINE=fast" in result.stderr
    with (
        pytest.warns(FutureWarning, match=r'use_kernels\("off"\) is now minillm.engine\("fast"\)'),
        kernels.use_kernels("off"),
    ):
        assert current_engine() == "fast"
    with pytest.warns(FutureWarning, match=r"minillm.kernels.get_kernel is now minillm.cuda.get_kernel"):
        assert kernels.get_kernel is cuda.get_kernel


# ---- on a GPU, as far as that goes without one: what CuPy is asked for -----------------------------------------------


class DeviceArray:
    """Looks to Kernel like a cupy.ndarray."""

    def __init__(self, array: np.ndarray, device: int = 0):
        self.dtype, self.size, self.shape, self.strides = array.dtype, array.size, array.shape, array.strides
        self.flags = array.flags
        self.data = types.SimpleNamespace(device_id=device)


@pytest.fixture
def cupy(monkeypatch):
    """A stand-in for CuPy that records what it is asked to do; `current` is the current device."""
    fake = types.ModuleType("cupy")
    fake.ndarray = DeviceArray
    fake.current, fake.asked = 0, []

    class Function:
        def __init__(self, name):
            fake.asked.append(("function", name, fake.current))

        def __setattr__(self, name, value):
            fake.asked.append((name, value))

        def __call__(self, grid, block, args, *, shared_mem):
            fake.asked.append(("launch", grid, block, len(args), shared_mem))

    class RawModule:
        def __init__(self, *, code, options, name_expressions):
            fake.asked.append(("module", name_expressions))
            if "nonsense" in code:
                self.get_function = self.fail
            assert code.startswith("#line 1 ")
            assert "--std=c++17" in options

        def get_function(self, name):
            return Function(name)

        def fail(self, name):
            raise fake.cuda.compiler.CompileException("part.cuh(3): error: nonsense")

    attributes = {"MaxSharedMemoryPerBlockOptin": 101376}
    fake.RawModule = RawModule
    fake.cuda = types.SimpleNamespace(
        Device=lambda device: types.SimpleNamespace(attributes=attributes),
        runtime=types.SimpleNamespace(getDevice=lambda: fake.current),
        compiler=types.SimpleNamespace(CompileException=type("CompileException", (Exception,), {})),
    )
    monkeypatch.setitem(sys.modules, "cupy", fake)
    cuda.kernel._gpu_module.cache_clear()
    yield fake
    cuda.kernel._gpu_module.cache_clear()


def test_a_launch_on_a_gpu(cupy):
    kernel = Kernel("softmax.cu", "softmax_forward<float>")
    x, y = DeviceArray(X), DeviceArray(Y)
    before = cuda.launch_counts()
    kernel((4, 2), 32, (x, y, *GOOD[2:]))
    names = ("softmax_forward<float>", "softmax_backward<float>")
    module, function = ("module", names), ("function", "softmax_forward<float>", 0)
    assert cupy.asked == [module, function, ("launch", (4, 2, 1), (32, 1, 1), 4, 0)]
    cupy.asked.clear()
    kernel(4, 32, (x, y, *GOOD[2:]), 48 * 1024)
    assert cupy.asked == [("launch", (4, 1, 1), (32, 1, 1), 4, 49152)], "compiled once; 48 KB need no permission"
    cupy.asked.clear()
    for smem in (50000, 50000, 49999, 101376):
        kernel(4, 32, (x, y, *GOOD[2:]), smem)
    permissions = [asked for asked in cupy.asked if asked[0] == "max_dynamic_shared_size_bytes"]
    assert permissions == [("max_dynamic_shared_size_bytes", 50000), ("max_dynamic_shared_size_bytes", 101376)]
    cupy.asked.clear()
    cupy.current = 1  # another GPU: its own function, and its own permission
    kernel(4, 32, (DeviceArray(X, 1), DeviceArray(Y, 1), *GOOD[2:]), 50000)
    assert [asked[0] for asked in cupy.asked] == ["function", "max_dynamic_shared_size_bytes", "launch"]
    assert (cuda.launch_counts() - before).total() == 7


def test_arrays_on_two_devices(cupy):
    kernel = Kernel("softmax.cu", "softmax_forward<float>")
    with pytest.raises(DeviceError, match="x is a NumPy array, but y is on GPU 0; move them to one device"):
        kernel(4, 32, (X, DeviceArray(Y), *GOOD[2:]))
    with pytest.raises(DeviceError, match="x is on GPU 0, but y is on GPU 1"):
        kernel(4, 32, (DeviceArray(X), DeviceArray(Y, 1), *GOOD[2:]))
    with pytest.raises(
        DeviceError, match=r"on GPU 1, but GPU 0 is the current one; launch it inside 'with cupy.cuda.Dev"
    ):
        kernel(4, 32, (DeviceArray(X, 1), DeviceArray(Y, 1), *GOOD[2:]))
    assert cupy.asked == []


def test_device_arrays_are_checked_as_others_are(cupy):
    kernel = Kernel("softmax.cu", "softmax_forward<float>")
    with pytest.raises(DtypeError, match="array of float64; pass one of float32"):
        kernel(4, 32, (DeviceArray(X.astype(float)), DeviceArray(Y), *GOOD[2:]))
    with pytest.raises(ShapeError, match="not C-contiguous"):
        kernel(4, 32, (DeviceArray(STRIDED), DeviceArray(Y), *GOOD[2:]))
    with pytest.raises(InputError, match="smem is 101377 bytes, but a block on GPU 0 can have 101376"):
        kernel(4, 32, (DeviceArray(X), DeviceArray(Y), *GOOD[2:]), 101377)
    with engine("auto"):
        assert uses_kernel("softmax", DeviceArray(X))
        assert not uses_kernel("softmax", DeviceArray(X.astype(np.float16)))
    with engine("fast"):
        assert not uses_kernel("softmax", DeviceArray(X))


def test_a_failed_compile_on_a_gpu(cupy, shift):
    write, _ = shift
    x = DeviceArray(np.ones(1, np.float32))
    with pytest.raises(KernelError, match=r"shift.cu: does not compile: part.cuh\(3\): error: nonsense"):
        write("nonsense")(1, 1, (x, x, x, np.uint32(1), np.float32(0.5)))
