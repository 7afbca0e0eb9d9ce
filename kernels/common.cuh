// What all kernels share: types, sums over a warp and a block, 16-byte loads and stores.
//
// A kernel is a template over the type it keeps its arrays in (float, double, __nv_bfloat16 or __half). It converts to
// Accumulator<T>, computes there, and rounds once when it stores.
#pragma once
#ifdef MINILLM_EMULATE
#include "emulator/cuda_on_cpu.h"
using emulate::check_aligned;
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define check_aligned(address, bytes, what)  // the hardware does
#endif

constexpr int WARP_SIZE = 32;
constexpr unsigned FULL_WARP = 0xffffffffu;
constexpr int MAX_WARPS = 32;  // of a block

// Sums of 16- and 32-bit numbers are made in float, those of doubles in double.
template <typename T>
struct AccumulatorOf {
    using type = float;
};
template <>
struct AccumulatorOf<double> {
    using type = double;
};
template <typename T>
using Accumulator = typename AccumulatorOf<T>::type;

// Where a maximum starts. Not minus infinity, which NVRTC does not name, and from which inf - inf would make a NaN.
template <typename A>
__device__ constexpr A lowest();
template <>
__device__ constexpr float lowest<float>() {
    return -3.402823466e+38f;
}
template <>
__device__ constexpr double lowest<double>() {
    return -1.7976931348623157e+308;
}

// ---- long sums ---------------------------------------------------------------------------------------------------

// A sum of any length in float. Added up plainly, 10^6 numbers that are alike are wrong by 10^-2, because each addition
// rounds the same way; this keeps apart what each has rounded off (Knuth, TAOCP 2, 4.2.2, theorem B). Six operations
// for one: so threads first add up the few numbers that they load together. In double, a plain sum is good enough.
template <typename A>
struct LongSum {
    A sum = 0, rest = 0;
    __device__ __forceinline__ LongSum& operator+=(A x) {
        const A total = sum + x, added = total - sum;
        rest += (sum - (total - added)) + (x - added);
        sum = total;
        return *this;
    }
    __device__ __forceinline__ LongSum& operator*=(A factor) {
        sum *= factor;
        rest *= factor;
        return *this;
    }
    __device__ __forceinline__ operator A() const {
        const A total = sum + rest;
        return total == total ? total : sum;  // of an infinite sum, the rest is NaN
    }
};
template <>
struct LongSum<double> {
    double sum = 0;
    __device__ __forceinline__ LongSum& operator+=(double x) {
        sum += x;
        return *this;
    }
    __device__ __forceinline__ LongSum& operator*=(double factor) {
        sum *= factor;
        return *this;
    }
    __device__ __forceinline__ operator double() const { return sum; }
};

// ---- over a warp, over a block -----------------------------------------------------------------------------------
// The butterfly: after step s every lane has the sum over its group of 2^s lanes, so all end with the same number.

struct Sum {
    template <typename A>
    __device__ A operator()(A a, A b) const {
        return a + b;
    }
};
struct Max {
    template <typename A>
    __device__ A operator()(A a, A b) const {
        return max(a, b);
    }
};

template <typename A, typename Combine>
__device__ __forceinline__ A warp_reduce(A value, Combine combine) {
#pragma unroll
    for (int distance = WARP_SIZE / 2; distance > 0; distance /= 2)
        value = combine(value, __shfl_xor_sync(FULL_WARP, value, distance));
    return value;
}

// All threads of a block of whole warps in one dimension; every thread gets the result, which does not depend on who
// comes first. `neutral` changes nothing it is combined with.
template <typename A, typename Combine>
__device__ __forceinline__ A block_reduce(A value, A neutral, Combine combine) {
    __shared__ A of_warp[MAX_WARPS];
    const int warp = threadIdx.x / WARP_SIZE, lane = threadIdx.x % WARP_SIZE, warps = blockDim.x / WARP_SIZE;
    value = warp_reduce(value, combine);
    if (warps == 1) return value;
    if (lane == 0) of_warp[warp] = value;
    __syncthreads();
    value = warp_reduce(lane < warps ? of_warp[lane] : neutral, combine);
    __syncthreads();  // all have read of_warp: the next call may write it
    return value;
}

template <typename A>
__device__ __forceinline__ A warp_sum(A value) {
    return warp_reduce(value, Sum());
}
template <typename A>
__device__ __forceinline__ A warp_max(A value) {
    return warp_reduce(value, Max());
}
template <typename A>
__device__ __forceinline__ A block_sum(A value) {
    return block_reduce(value, A(0), Sum());
}
template <typename A>
__device__ __forceinline__ A block_max(A value) {
    return block_reduce(value, lowest<A>(), Max());
}

template <typename T>
__device__ __forceinline__ T not_a_number() {
    return T(nanf(""));
}

// ---- 16 bytes at a time ------------------------------------------------------------------------------------------
// The widest access of a thread; a warp of them reads 512 bytes in one instruction.

template <typename T>
constexpr int VECTOR = 16 / sizeof(T);  // numbers in 16 bytes

template <typename T, int COUNT>
struct alignas(COUNT * sizeof(T)) Vector {
    T values[COUNT];
    __device__ T& operator[](int i) { return values[i]; }
    __device__ const T& operator[](int i) const { return values[i]; }
};

template <int COUNT, typename T>
__device__ __forceinline__ Vector<T, COUNT> load(const T* from) {
    check_aligned(from, sizeof(Vector<T, COUNT>), "loads a vector");
    return *reinterpret_cast<const Vector<T, COUNT>*>(from);
}
template <int COUNT, typename T>
__device__ __forceinline__ void store(T* to, const Vector<T, COUNT>& vector) {
    check_aligned(to, sizeof(Vector<T, COUNT>), "stores a vector");
    if constexpr (sizeof(vector) == 16)  // a plain assignment compiles to a store for each member
        __stwb(reinterpret_cast<uint4*>(to), *reinterpret_cast<const uint4*>(&vector));
    else
        *reinterpret_cast<Vector<T, COUNT>*>(to) = vector;
}

// Whether 16-byte accesses may walk along every row of an array with rows of `columns` numbers.
template <typename T>
__device__ __forceinline__ bool rows_are_aligned(const T* array, int columns) {
    return reinterpret_cast<unsigned long long>(array) % 16 == 0 && columns % VECTOR<T> == 0;
}

// Two floats as a pair of bfloat16 in one register, the first in the lower half.
__device__ __forceinline__ unsigned pack_bf16(float lower, float upper) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(lower, upper);
    return *reinterpret_cast<const unsigned*>(&pair);
}
