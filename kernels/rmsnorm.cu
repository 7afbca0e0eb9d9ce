// Root-mean-square normalisation of the rows of x, and its backward: layernorm.cu without the mean and the bias.
//
//   forward    mean_square = sum(x^2) / C       rstd = 1 / sqrt(mean_square + eps)
//              norm        = x rstd             y    = norm weight
//   backward   dnorm       = dy weight
//              dx          = rstd (dnorm - norm sum(dnorm norm) / C)
//              dweight     = sum over the rows of dy norm
//
// The derivation is in minillm/ops/rmsnorm.py. Shapes: x, y, dy, dx (rows, columns), C columns; weight (columns); rstd
// (rows), in Accumulator<T>.
//
// Grid: a block for a row; with fewer blocks than rows, each takes every gridDim.x-th. Block: whole warps, up to 512
// threads; columns / (16 / sizeof(T)), rounded up to a warp, gives every thread one 16-byte load.
//
// dweight takes two stages, as in layernorm.cu: sums of each block's rows, kept by each thread for its own columns in
// shared memory and left in partial (gridDim.x, columns), then column_sums.cu. Dynamic shared memory of the backward,
// in bytes: sizeof(Accumulator<T>) times the columns, rounded up to a multiple of blockDim.x 16 / sizeof(T).
//
// Memory, in numbers for each element: forward 2, backward 3 (second passes read from L1). For 65536 rows of 2048
// bfloat16 at 4.3 TB/s (H200) at least 125 and 187 us. A faster version: as for layernorm.cu.
#include "rows.cuh"

template <typename T, int COUNT>
__device__ void rmsnorm_forward_row(const T* __restrict__ x, const T* __restrict__ weight, T* __restrict__ y,
                                    Accumulator<T>* rstd_of_row, int columns, Accumulator<T> eps) {
    using A = Accumulator<T>;
    A squares = 0;
    for (int i = threadIdx.x * COUNT; i < columns; i += blockDim.x * COUNT) {
        const Vector<T, COUNT> x_i = load<COUNT>(x + i);
#pragma unroll
        for (int k = 0; k < COUNT; k++) squares += A(x_i[k]) * A(x_i[k]);
    }
    const A rstd = 1 / sqrt(block_sum(squares) / columns + eps);
    for (int i = threadIdx.x * COUNT; i < columns; i += blockDim.x * COUNT) {
        const Vector<T, COUNT> x_i = load<COUNT>(x + i), w = load<COUNT>(weight + i);
        Vector<T, COUNT> y_i;
#pragma unroll
        for (int k = 0; k < COUNT; k++) y_i[k] = T(A(x_i[k]) * rstd * A(w[k]));
        store(y + i, y_i);
    }
    if (threadIdx.x == 0) *rstd_of_row = rstd;
}

template <typename T>
__global__ void __launch_bounds__(512) rmsnorm_forward(const T* x, const T* weight, T* y, Accumulator<T>* rstd,
                                                       long long rows, int columns, Accumulator<T> eps) {
    const bool aligned = rows_are_aligned(x, columns) && rows_are_aligned(y, columns) && is_aligned(weight);
    for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
        const long long first = row * columns;
        if (aligned)
            rmsnorm_forward_row<T, VECTOR<T>>(x + first, weight, y + first, rstd + row, columns, eps);
        else
            rmsnorm_forward_row<T, 1>(x + first, weight, y + first, rstd + row, columns, eps);
    }
}

template <typename T, int COUNT>
__device__ void rmsnorm_backward_rows(const T* __restrict__ dy, const T* __restrict__ x, const T* __restrict__ weight,
                                      const Accumulator<T>* __restrict__ rstds, T* __restrict__ dx,
                                      Accumulator<T>* __restrict__ partial, long long rows, int columns) {
    using A = Accumulator<T>;
    // Number k of this thread's s-th vector of columns is kept at slot (s COUNT + k) blockDim.x + threadIdx.x.
    const int stride = blockDim.x * COUNT, slots = (columns + stride - 1) / stride * stride;
    extern __shared__ __align__(16) unsigned char dynamic_memory[];
    A* dweight = reinterpret_cast<A*>(dynamic_memory);
    for (int slot = threadIdx.x; slot < slots; slot += blockDim.x) dweight[slot] = 0;

    A* of_block = partial + blockIdx.x * static_cast<long long>(columns);
    const auto move_to_partial = [&](bool first_time) {  // by the threads that made the sums: no barrier
        for (int i = threadIdx.x * COUNT, slot = threadIdx.x; i < columns; i += stride) {
#pragma unroll
            for (int k = 0; k < COUNT; k++, slot += blockDim.x) {
                of_block[i + k] = dweight[slot] + (first_time ? A(0) : of_block[i + k]);
                dweight[slot] = 0;
            }
        }
    };

    long long taken = 0;
    for (long long row = blockIdx.x; row < rows; row += gridDim.x, taken++) {
        if (taken > 0 && taken % ROWS_AT_A_TIME == 0) move_to_partial(taken == ROWS_AT_A_TIME);
        const A rstd = rstds[row];
        const long long first = row * columns;
        A dot = 0;
        for (int i = threadIdx.x * COUNT, slot = threadIdx.x; i < columns; i += stride) {
            const Vector<T, COUNT> dy_i = load<COUNT>(dy + first + i), x_i = load<COUNT>(x + first + i);
            const Vector<T, COUNT> w = load<COUNT>(weight + i);
#pragma unroll
            for (int k = 0; k < COUNT; k++, slot += blockDim.x) {
                const A norm = A(x_i[k]) * rstd;
                dot += A(dy_i[k]) * A(w[k]) * norm;
                dweight[slot] += A(dy_i[k]) * norm;
            }
        }
        const A mean_dot = block_sum(dot) / columns;
        for (int i = threadIdx.x * COUNT; i < columns; i += stride) {
            const Vector<T, COUNT> dy_i = load<COUNT>(dy + first + i), x_i = load<COUNT>(x + first + i);
            const Vector<T, COUNT> w = load<COUNT>(weight + i);
            Vector<T, COUNT> dx_i;
#pragma unroll
            for (int k = 0; k < COUNT; k++) dx_i[k] = T(rstd * (A(dy_i[k]) * A(w[k]) - A(x_i[k]) * rstd * mean_dot));
            store(dx + first + i, dx_i);
        }
    }
    move_to_partial(taken <= ROWS_AT_A_TIME);
}

template <typename T>
__global__ void __launch_bounds__(512, 1)
    rmsnorm_backward(const T* dy, const T* x, const T* weight, const Accumulator<T>* rstd, T* dx,
                     Accumulator<T>* partial, long long rows, int columns) {
    if (rows_are_aligned(dy, columns) && rows_are_aligned(x, columns) && rows_are_aligned(dx, columns) &&
        is_aligned(weight))
        rmsnorm_backward_rows<T, VECTOR<T>>(dy, x, weight, rstd, dx, partial, rows, columns);
    else
        rmsnorm_backward_rows<T, 1>(dy, x, weight, rstd, dx, partial, rows, columns);
}

// instances: rmsnorm_forward<float> rmsnorm_backward<float>
// instances: rmsnorm_forward<double> rmsnorm_backward<double>
// instances: rmsnorm_forward<__nv_bfloat16> rmsnorm_backward<__nv_bfloat16>
