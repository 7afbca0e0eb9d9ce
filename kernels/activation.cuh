// Kernels for any activation function f, element by element, alone or fused with the bias b of the linear layer before:
//
//   forward    y  = f(x)                     y  = f(x + b)
//   backward   dx = dy f'(x)                 dx = dy f'(x + b),   db = sum over rows of dx
//
// F is a struct with two static functions, value(x) for f and slope(x) for f'. Shapes: x, y, dy, dx are (rows, columns)
// or, without a bias, any `count` of numbers; b and db (columns). Computed in float (double for double). In the fused
// pair, x is the product of the linear layer before its bias is added, and is what the backward needs kept.
//
// Grid without a bias: any; thread after thread takes 16 bytes. With one: (columns / (32 * 16 / sizeof(T)), chunks of
// chunk_rows rows), so that a thread loads the bias of its columns once for all its rows. Block: (32, up to 16).
//
// db takes two stages, so that the order of additions never changes: the backward leaves the sums over each chunk of
// rows in partial (gridDim.y, columns), and column_sums.cu adds those up.
//
// Memory: the forward moves 2 numbers for each element, the backward 3. So does the fused pair, where separate steps
// would move 2 more to add the bias, and 1 more to sum dx.
#pragma once
#include "rows.cuh"

// How many numbers a thread takes at a time: 16 bytes, but one double, as exp and erf of two take too many registers.
template <typename T>
constexpr int TAKEN = sizeof(T) == 8 ? 1 : VECTOR<T>;

// Where an activation has reached its limit, x on one side and 0 on the other: the formulas would be infinity times 0.
constexpr int FAR = 1000;

// 1 / x: for float in two instructions without a branch, to about one unit in the last place; 0 for x above 2^126.
__device__ __forceinline__ float reciprocal(float x) { return __fdividef(1.0f, x); }
__device__ __forceinline__ double reciprocal(double x) { return 1.0 / x; }

// Elements from `first` up to `count`, which COUNT at a time must reach.
template <int COUNT, typename F, typename T>
__device__ void activation_forward_from(const T* __restrict__ x, T* __restrict__ y, long long first, long long count) {
    using A = Accumulator<T>;
    const Threads threads;
    for (long long i = first + threads.number * COUNT; i + COUNT <= count; i += threads.count * COUNT) {
        Vector<T, COUNT> v = load<COUNT>(x + i);
#pragma unroll
        for (int k = 0; k < COUNT; k++) v[k] = T(F::value(A(v[k])));
        store(y + i, v);
    }
}

template <typename T, typename F>
__global__ void __launch_bounds__(512) activation_forward(const T* x, T* y, long long count) {
    const long long in_vectors = is_aligned(x) && is_aligned(y) ? count / TAKEN<T> * TAKEN<T> : 0;
    activation_forward_from<TAKEN<T>, F>(x, y, 0, in_vectors);
    activation_forward_from<1, F>(x, y, in_vectors, count);
}

template <int COUNT, typename F, typename T>
__device__ void activation_backward_from(const T* __restrict__ dy, const T* __restrict__ x, T* __restrict__ dx,
                                         long long first, long long count) {
    using A = Accumulator<T>;
    const Threads threads;
    for (long long i = first + threads.number * COUNT; i + COUNT <= count; i += threads.count * COUNT) {
        const Vector<T, COUNT> dy_i = load<COUNT>(dy + i), x_i = load<COUNT>(x + i);
        Vector<T, COUNT> dx_i;
#pragma unroll
        for (int k = 0; k < COUNT; k++) dx_i[k] = T(A(dy_i[k]) * F::slope(A(x_i[k])));
        store(dx + i, dx_i);
    }
}

template <typename T, typename F>
__global__ void __launch_bounds__(512) activation_backward(const T* dy, const T* x, T* dx, long long count) {
    const bool aligned = is_aligned(dy) && is_aligned(x) && is_aligned(dx);
    const long long in_vectors = aligned ? count / TAKEN<T> * TAKEN<T> : 0;
    activation_backward_from<TAKEN<T>, F>(dy, x, dx, 0, in_vectors);
    activation_backward_from<1, F>(dy, x, dx, in_vectors, count);
}

// ---- fused with a bias -------------------------------------------------------------------------------------------

template <int COUNT, typename F, typename T>
__device__ void bias_activation_forward_of_chunk(const T* __restrict__ x, const T* __restrict__ bias, T* __restrict__ y,
                                                 long long rows, int chunk_rows, int columns) {
    using A = Accumulator<T>;
    const Chunk chunk(rows, chunk_rows);
    for (int column = (blockIdx.x * WARP_SIZE + threadIdx.x) * COUNT; column < columns;
         column += gridDim.x * WARP_SIZE * COUNT) {
        const Vector<T, COUNT> b = load<COUNT>(bias + column);
#pragma unroll 1
        for (long long row = chunk.first + threadIdx.y; row < chunk.last; row += blockDim.y) {
            const long long i = row * columns + column;
            Vector<T, COUNT> v = load<COUNT>(x + i);
#pragma unroll
            for (int k = 0; k < COUNT; k++) v[k] = T(F::value(A(v[k]) + A(b[k])));
            store(y + i, v);
        }
    }
}

template <typename T, typename F>
__global__ void __launch_bounds__(512)
    bias_activation_forward(const T* x, const T* bias, T* y, long long rows, int chunk_rows, int columns) {
    if (rows_are_aligned(x, columns) && rows_are_aligned(y, columns) && is_aligned(bias))
        bias_activation_forward_of_chunk<TAKEN<T>, F>(x, bias, y, rows, chunk_rows, columns);
    else
        bias_activation_forward_of_chunk<1, F>(x, bias, y, rows, chunk_rows, columns);
}

template <int COUNT, typename F, typename T>
__device__ void bias_activation_backward_of_chunk(const T* __restrict__ dy, const T* __restrict__ x,
                                                  const T* __restrict__ bias, T* __restrict__ dx,
                                                  Accumulator<T>* __restrict__ partial, long long rows, int chunk_rows,
                                                  int columns) {
    using A = Accumulator<T>;
    const Chunk chunk(rows, chunk_rows);
    for (int first = blockIdx.x * WARP_SIZE * COUNT; first < columns; first += gridDim.x * WARP_SIZE * COUNT) {
        const int column = first + threadIdx.x * COUNT;
        A dbias[COUNT] = {};
        if (column < columns) {
            const Vector<T, COUNT> b = load<COUNT>(bias + column);
#pragma unroll 1  // more would take registers from the blocks beside this one
            for (long long row = chunk.first + threadIdx.y; row < chunk.last; row += blockDim.y) {
                const long long i = row * columns + column;
                const Vector<T, COUNT> dy_i = load<COUNT>(dy + i), x_i = load<COUNT>(x + i);
                Vector<T, COUNT> dx_i;
#pragma unroll
                for (int k = 0; k < COUNT; k++) {
                    const A d = A(dy_i[k]) * F::slope(A(x_i[k]) + A(b[k]));
                    dx_i[k] = T(d);
                    dbias[k] += d;
                }
                store(dx + i, dx_i);
            }
        }
        sum_over_block_rows(dbias);  // a barrier, so threads beyond the last column come here too
        if (column < columns && threadIdx.y == 0) {
#pragma unroll
            for (int k = 0; k < COUNT; k++)
                partial[blockIdx.y * static_cast<long long>(columns) + column + k] = dbias[k];
        }
    }
}

template <typename T, typename F>
__global__ void __launch_bounds__(512)
    bias_activation_backward(const T* dy, const T* x, const T* bias, T* dx, Accumulator<T>* partial, long long rows,
                             int chunk_rows, int columns) {
    if (rows_are_aligned(dy, columns) && rows_are_aligned(x, columns) && rows_are_aligned(dx, columns) &&
        is_aligned(bias))
        bias_activation_backward_of_chunk<TAKEN<T>, F>(dy, x, bias, dx, partial, rows, chunk_rows, columns);
    else
        bias_activation_backward_of_chunk<1, F>(dy, x, bias, dx, partial, rows, chunk_rows, columns);
}
