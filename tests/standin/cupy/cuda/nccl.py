"""NCCL of the stand-in: one rank of `ndev`, of which each brings what this one does. With one rank, that is NCCL.

As in CuPy, this is imported when it is asked for, and `available` says whether the library is there. An operation waits
on its stream, reads and writes the device's memory alone, and has cupy.cuda.nccl's parameters.
"""

from __future__ import annotations

import ctypes

import numpy as np

import cupy

available = True
NAMES = "int8 uint8 int32 uint32 int64 uint64 float16 float32 float64 bfloat16".split()
NCCL_SUM, NCCL_PROD, NCCL_MAX, NCCL_MIN, NCCL_AVG = range(5)
globals().update({f"NCCL_{name.upper()}": code for code, name in enumerate(NAMES)})


class NcclError(RuntimeError):
    status = 5  # ncclInvalidUsage


def get_version():
    return 22809


def get_unique_id():
    return bytes(128)


def _array(pointer, count, code):
    """Numbers of the device, which are read when the operation runs."""
    import ml_dtypes

    dtype = np.dtype(ml_dtypes.bfloat16 if NAMES[code] == "bfloat16" else NAMES[code])
    cupy.check_range(pointer, count * dtype.itemsize)
    return np.frombuffer((ctypes.c_char * (count * dtype.itemsize)).from_address(pointer), dtype)


class NcclCommunicator:
    def __init__(self, ndev, commId, rank, config=None):
        self.ndev, self.rank, self.aborted = ndev, rank, False

    def _enqueue(self, stream, action, *arrays):
        (one,) = (one for one in cupy.cuda._streams if one.ptr == stream)
        one.enqueue(lambda: action(*arrays))

    def _reduced(self, array, op):
        return array * array.dtype.type(self.ndev) if op == NCCL_SUM else array

    def commSplit(self, color, key, config=None):
        return NcclCommunicator(self.ndev, b"", key)

    def allReduce(self, sendbuf, recvbuf, count, datatype, op, stream):
        def run(source, target):
            target[...] = self._reduced(source, op)

        self._enqueue(stream, run, _array(sendbuf, count, datatype), _array(recvbuf, count, datatype))

    def reduce(self, sendbuf, recvbuf, count, datatype, op, root, stream):
        if root == self.rank:
            self.allReduce(sendbuf, recvbuf, count, datatype, op, stream)

    def reduceScatter(self, sendbuf, recvbuf, recvcount, datatype, op, stream):
        def run(source, target):
            target[...] = self._reduced(source[self.rank * recvcount : (self.rank + 1) * recvcount], op)

        source = _array(sendbuf, self.ndev * recvcount, datatype)
        self._enqueue(stream, run, source, _array(recvbuf, recvcount, datatype))

    def allGather(self, sendbuf, recvbuf, count, datatype, stream):
        def run(source, target):
            target.reshape(self.ndev, count)[...] = source.copy()

        self._enqueue(stream, run, _array(sendbuf, count, datatype), _array(recvbuf, self.ndev * count, datatype))

    def broadcast(self, sendbuff, recvbuff, count, datatype, root, stream):
        self._enqueue(stream, np.copyto, _array(recvbuff, count, datatype), _array(sendbuff, count, datatype))

    def send(self, sendbuf, count, datatype, peer, stream):
        self._enqueue(stream, lambda source: None, _array(sendbuf, count, datatype))

    def recv(self, recvbuf, count, datatype, peer, stream):
        """Fills it with 1, as bytes."""
        self._enqueue(stream, lambda target: target.fill(1), _array(recvbuf, count, datatype))

    def check_async_error(self):
        assert not self.aborted

    def abort(self):
        self.aborted = True

    destroy = abort
