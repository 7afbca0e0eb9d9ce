// Softmax over the last axis, its logarithm, and their backwards.
//
//   forward    y_i     = e^(x_i - m) / s             m = max_j x_j,  s = sum_j e^(x_j - m)
//   backward   dx_i    = y_i (dy_i - sum_j dy_j y_j)
//
//   forward    log_p_i = (x_i - m) - log s           no y is so small that its logarithm is lost
//   backward   dx_i    = dlog_p_i - e^(log_p_i) sum_j dlog_p_j
//
// The derivations are in minillm/ops/softmax.py, where y is p, and log_softmax.py. m and s are `largest` and `sum` in
// the code. Shapes: all arrays are (rows, columns), any number of each. Computed in float (double for double).
//
// Grid: one block for a row; with fewer blocks than rows, each takes every gridDim.x-th. Block: 32 to 512 threads,
// whole warps; columns / (16 / sizeof(T)), rounded up to a warp, gives every thread one 16-byte load.
//
// m and s are found in one pass: a thread that meets a larger x multiplies its sum so far by e^(old m - new m), and in
// the end each brings its sum to the block's m (Milakov and Gimelshein 2018, "Online normalizer calculation for
// softmax"). Starting m from the lowest finite number, a row with -inf in it (masked) needs no special case; a row of
// nothing else is 0/0 or inf - inf, NaN, as in the formula.
//
// Memory: the second pass reads what the first has just read, from L1 or L2, so that device memory sees each number
// once. Forward moves 2 rows columns sizeof(T) bytes, backward 3. At 4.3 TB/s (H200), 98304 rows of 1024 bfloat16 (the
// scores of 8 x 12 heads at T = 1024) take at least 94 us forward and 141 us backward, and so do their logarithms.
// Arithmetic: softmax takes two exponentials for each number forward, none backward; log_softmax one and one.
//
// A faster version would keep the row in registers between the passes (its length known at compile time), give short
// rows to one warp each, several rows to a block, and peel the ends of rows that are not aligned to 16 bytes, which
// here go one number at a time.
#include "common.cuh"

template <typename A>
struct Summary {
    A largest, sum;  // m and s
};

// The first pass over a row; every thread of the block gets the same.
template <int COUNT, typename T>
__device__ Summary<Accumulator<T>> summarise(const T* __restrict__ x, int columns) {
    using A = Accumulator<T>;
    A largest = lowest<A>();
    LongSum<A> sum;
    for (int i = threadIdx.x * COUNT; i < columns; i += blockDim.x * COUNT) {
        const Vector<T, COUNT> v = load<COUNT>(x + i);
        A before = largest;
#pragma unroll
        for (int k = 0; k < COUNT; k++) largest = max(largest, A(v[k]));
        sum *= exp(before - largest);
        A piece = 0;
#pragma unroll
        for (int k = 0; k < COUNT; k++) piece += exp(A(v[k]) - largest);
        sum += piece;
    }
    const A row_largest = block_max(largest);
    return {row_largest, block_sum(sum * exp(largest - row_largest))};
}

template <typename T, int COUNT>
__device__ void softmax_forward_row(const T* __restrict__ x, T* __restrict__ y, int columns) {
    using A = Accumulator<T>;
    const Summary<A> row = summarise<COUNT>(x, columns);
    const A scale = A(1) / row.sum;
    for (int i = threadIdx.x * COUNT; i < columns; i += blockDim.x * COUNT) {
        Vector<T, COUNT> v = load<COUNT>(x + i);
#pragma unroll
        for (int k = 0; k < COUNT; k++) v[k] = T(exp(A(v[k]) - row.largest) * scale);
        store(y + i, v);
    }
}

template <typename T>
__global__ void __launch_bounds__(512) softmax_forward(const T* x, T* y, long long rows, int columns) {
    const bool aligned = rows_are_aligned(x, columns) && rows_are_aligned(y, columns);
    for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
        const long long first = row * columns;
        if (aligned)
            softmax_forward_row<T, VECTOR<T>>(x + first, y + first, columns);
        else
            softmax_forward_row<T, 1>(x + first, y + first, columns);
    }
}

template <typename T, int COUNT>
__device__ void softmax_backward_row(const T* __restrict__ dy, const T* __restrict__ y, T* __restrict__ dx,
                                     int columns) {
    using A = Accumulator<T>;
    LongSum<A> of_thread;
    for (int i = threadIdx.x * COUNT; i < columns; i += blockDim.x * COUNT) {
        const Vector<T, COUNT> dy_i = load<COUNT>(dy + i), y_i = load<COUNT>(y + i);
        A piece = 0;
#pragma unroll
        for (int k = 0; k < COUNT; k++) piece += A(dy_i[k]) * A(y_i[k]);
        of_thread += piece;
    }
    const A dot = block_sum(A(of_thread));
    for (int i = threadIdx.x * COUNT; i < columns; i += blockDim.x * COUNT) {
        const Vector<T, COUNT> dy_i = load<COUNT>(dy + i), y_i = load<COUNT>(y + i);
        Vector<T, COUNT> dx_i;
#pragma unroll
        for (int k = 0; k < COUNT; k++) dx_i[k] = T(A(y_i[k]) * (A(dy_i[k]) - dot));
        store(dx + i, dx_i);
    }
}

template <typename T>
__global__ void __launch_bounds__(512) softmax_backward(const T* dy, const T* y, T* dx, long long rows, int columns) {
    const bool aligned = rows_are_aligned(dy, columns) && rows_are_aligned(y, columns) && rows_are_aligned(dx, columns);
    for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
        const long long first = row * columns;
        if (aligned)
            softmax_backward_row<T, VECTOR<T>>(dy + first, y + first, dx + first, columns);
        else
            softmax_backward_row<T, 1>(dy + first, y + first, dx + first, columns);
    }
}

template <typename T, int COUNT>
__device__ void log_softmax_forward_row(const T* __restrict__ x, T* __restrict__ log_p, int columns) {
    using A = Accumulator<T>;
    const Summary<A> row = summarise<COUNT>(x, columns);
    const A log_sum = log(row.sum);
    for (int i = threadIdx.x * COUNT; i < columns; i += blockDim.x * COUNT) {
        Vector<T, COUNT> v = load<COUNT>(x + i);
#pragma unroll
        for (int k = 0; k < COUNT; k++) v[k] = T(A(v[k]) - row.largest - log_sum);
        store(log_p + i, v);
    }
}

template <typename T>
__global__ void __launch_bounds__(512) log_softmax_forward(const T* x, T* log_p, long long rows, int columns) {
    const bool aligned = rows_are_aligned(x, columns) && rows_are_aligned(log_p, columns);
    for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
        const long long first = row * columns;
        if (aligned)
            log_softmax_forward_row<T, VECTOR<T>>(x + first, log_p + first, columns);
        else
            log_softmax_forward_row<T, 1>(x + first, log_p + first, columns);
    }
}

template <typename T, int COUNT>
__device__ void log_softmax_backward_row(const T* __restrict__ dlog_p, const T* __restrict__ log_p, T* __restrict__ dx,
                                         int columns) {
    using A = Accumulator<T>;
    LongSum<A> of_thread;
    for (int i = threadIdx.x * COUNT; i < columns; i += blockDim.x * COUNT) {
        const Vector<T, COUNT> v = load<COUNT>(dlog_p + i);
        A piece = 0;
#pragma unroll
        for (int k = 0; k < COUNT; k++) piece += A(v[k]);
        of_thread += piece;
    }
    const A sum = block_sum(A(of_thread));
    for (int i = threadIdx.x * COUNT; i < columns; i += blockDim.x * COUNT) {
        Vector<T, COUNT> v = load<COUNT>(dlog_p + i);
        const Vector<T, COUNT> log_p_i = load<COUNT>(log_p + i);
#pragma unroll
        for (int k = 0; k < COUNT; k++) v[k] = T(A(v[k]) - exp(A(log_p_i[k])) * sum);
        store(dx + i, v);
    }
}

// With two blocks or more on a multiprocessor each thread can have 64 registers, which exp in double needs.
template <typename T>
__global__ void __launch_bounds__(512, 2)
    log_softmax_backward(const T* dlog_p, const T* log_p, T* dx, long long rows, int columns) {
    const bool aligned =
        rows_are_aligned(dlog_p, columns) && rows_are_aligned(log_p, columns) && rows_are_aligned(dx, columns);
    for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
        const long long first = row * columns;
        if (aligned)
            log_softmax_backward_row<T, VECTOR<T>>(dlog_p + first, log_p + first, dx + first, columns);
        else
            log_softmax_backward_row<T, 1>(dlog_p + first, log_p + first, dx + first, columns);
    }
}

// instances: softmax_forward<float> softmax_backward<float>
// instances: softmax_forward<double> softmax_backward<double>
// instances: softmax_forward<__nv_bfloat16> softmax_backward<__nv_bfloat16>
// instances: log_softmax_forward<float> log_softmax_backward<float>
// instances: log_softmax_forward<double> log_softmax_backward<double>
// instances: log_softmax_forward<__nv_bfloat16> log_softmax_backward<__nv_bfloat16>
