// Layer normalisation of the rows of x, alone and behind a residual addition, and the backward of both.
//
//   forward    out     = x + residual, or x alone
//              mean    = sum(out) / C       var  = sum((out - mean)^2) / C       rstd = 1 / sqrt(var + eps)
//              norm    = (out - mean) rstd  y    = norm weight + bias
//   backward   dnorm   = dy weight
//              dx      = rstd (dnorm - sum(dnorm) / C - norm sum(dnorm norm) / C) + dout
//              dweight = sum over the rows of dy norm       dbias = sum over the rows of dy
//
// The derivation is in minillm/ops/layernorm.py and add_layernorm.py, where `out` is called total. dout is the gradient
// that reaches `out` on its other way, the residual stream (0 where there is no residual); dx is then the gradient of x
// and of the residual. Shapes: x, residual, out, y and gradients (rows, columns), C columns; weight, bias
// (columns); mean and rstd (rows), in Accumulator<T>: float for bfloat16, as a rounded mean would shift the whole row.
//
// Grid: a block for a row; with fewer blocks than rows, each takes every gridDim.x-th. Block: whole warps, up to 512
// threads; columns / (16 / sizeof(T)), rounded up to a warp, gives every thread one 16-byte load.
//
// The variance is summed from out - mean, in a second pass: mean(out^2) - mean^2 would cancel. A row just read comes
// from L1 in the passes after the first, so that device memory sees each number once.
//
// dweight and dbias take two stages, with no atomics, so that results repeat to the last bit. A thread meets the same
// columns in every row of its block, and adds up their dweight and dbias in shared memory that it alone uses (so there
// is no barrier, and it is laid out for no two lanes to meet in a bank). Every 32 rows, and in the end, it adds them to
// its row of partial (gridDim.x, 2, columns), so that no long sum swallows the last digits of what is added; give a
// block 512 rows at most. column_sums.cu adds up the rows of partial. Dynamic shared memory of the backward, in bytes:
// 2 sizeof(Accumulator<T>) times the columns, rounded up to a multiple of blockDim.x 16 / sizeof(T).
//
// Memory, in numbers for each element: forward 2, with the residual 4; backward 3, with dout 4. For 65536 rows of 768
// bfloat16 at 4.3 TB/s (H200) at least 47, 94, 70 and 94 us. partial is 16 bytes more for each block and column,
// written and read: as much as 2.7 rows of a plain bfloat16 backward, so a block should take 30 rows or more.
//
// A faster version would give each row to a warp that keeps it in registers, its length known at compile time, so that
// no barrier is left and the next row's loads are under way while this one is summed.
#include "rows.cuh"

// ---- forward -----------------------------------------------------------------------------------------------------

// `x` may have been written by this same thread just before, so it is not __restrict__.
template <typename T, int COUNT>
__device__ void layernorm_forward_row(const T* x, const T* __restrict__ weight, const T* __restrict__ bias, T* y,
                                      Accumulator<T>* mean_of_row, Accumulator<T>* rstd_of_row, int columns,
                                      Accumulator<T> eps) {
    using A = Accumulator<T>;
    A sum = 0, squares = 0;
    for (int i = threadIdx.x * COUNT; i < columns; i += blockDim.x * COUNT) {
        const Vector<T, COUNT> x_i = load<COUNT>(x + i);
#pragma unroll
        for (int k = 0; k < COUNT; k++) sum += A(x_i[k]);
    }
    const A mean = block_sum(sum) / columns;
    for (int i = threadIdx.x * COUNT; i < columns; i += blockDim.x * COUNT) {
        const Vector<T, COUNT> x_i = load<COUNT>(x + i);
#pragma unroll
        for (int k = 0; k < COUNT; k++) squares += (A(x_i[k]) - mean) * (A(x_i[k]) - mean);
    }
    const A variance = block_sum(squares) / columns + eps;
    const A rstd = sqrt(variance) / variance;  // NaN where the variance is infinite, and not 0
    for (int i = threadIdx.x * COUNT; i < columns; i += blockDim.x * COUNT) {
        const Vector<T, COUNT> x_i = load<COUNT>(x + i), w = load<COUNT>(weight + i), b = load<COUNT>(bias + i);
        Vector<T, COUNT> y_i;
#pragma unroll
        for (int k = 0; k < COUNT; k++) y_i[k] = T((A(x_i[k]) - mean) * rstd * A(w[k]) + A(b[k]));
        store(y + i, y_i);
    }
    if (threadIdx.x == 0) {
        *mean_of_row = mean;
        *rstd_of_row = rstd;
    }
}

template <typename T>
__global__ void __launch_bounds__(512)
    layernorm_forward(const T* x, const T* weight, const T* bias, T* y, Accumulator<T>* mean, Accumulator<T>* rstd,
                      long long rows, int columns, Accumulator<T> eps) {
    const bool aligned =
        rows_are_aligned(x, columns) && rows_are_aligned(y, columns) && is_aligned(weight) && is_aligned(bias);
    for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
        const long long first = row * columns;
        if (aligned)
            layernorm_forward_row<T, VECTOR<T>>(x + first, weight, bias, y + first, mean + row, rstd + row, columns,
                                                eps);
        else
            layernorm_forward_row<T, 1>(x + first, weight, bias, y + first, mean + row, rstd + row, columns, eps);
    }
}

template <typename T, int COUNT>
__device__ void add_row(const T* x, const T* residual, T* out, int columns) {
    using A = Accumulator<T>;
    for (int i = threadIdx.x * COUNT; i < columns; i += blockDim.x * COUNT) {
        Vector<T, COUNT> v = load<COUNT>(x + i);
        const Vector<T, COUNT> r = load<COUNT>(residual + i);
#pragma unroll
        for (int k = 0; k < COUNT; k++) v[k] = T(A(v[k]) + A(r[k]));
        store(out + i, v);
    }
}

// A thread reads back only what it wrote itself, so no barrier lies between the addition and the normalisation. out may
// be x or the residual.
template <typename T>
__global__ void __launch_bounds__(512)
    residual_layernorm_forward(const T* x, const T* residual, const T* weight, const T* bias, T* out, T* y,
                               Accumulator<T>* mean, Accumulator<T>* rstd, long long rows, int columns,
                               Accumulator<T> eps) {
    const bool aligned = rows_are_aligned(x, columns) && rows_are_aligned(residual, columns) &&
                         rows_are_aligned(out, columns) && rows_are_aligned(y, columns) && is_aligned(weight) &&
                         is_aligned(bias);
    for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
        const long long first = row * columns;
        if (aligned) {
            add_row<T, VECTOR<T>>(x + first, residual + first, out + first, columns);
            layernorm_forward_row<T, VECTOR<T>>(out + first, weight, bias, y + first, mean + row, rstd + row, columns,
                                                eps);
        } else {
            add_row<T, 1>(x + first, residual + first, out + first, columns);
            layernorm_forward_row<T, 1>(out + first, weight, bias, y + first, mean + row, rstd + row, columns, eps);
        }
    }
}

// ---- backward ----------------------------------------------------------------------------------------------------

// All rows of this block. `dout` is null where there is no residual.
template <typename T, int COUNT>
__device__ void layernorm_backward_rows(const T* __restrict__ dy, const T* dout, const T* __restrict__ x,
                                        const T* __restrict__ weight, const Accumulator<T>* __restrict__ means,
                                        const Accumulator<T>* __restrict__ rstds, T* dx,
                                        Accumulator<T>* __restrict__ partial, long long rows, int columns) {
    using A = Accumulator<T>;
    // Number k of this thread's s-th vector of columns is kept at slot (s COUNT + k) blockDim.x + threadIdx.x.
    const int stride = blockDim.x * COUNT, slots = (columns + stride - 1) / stride * stride;
    extern __shared__ __align__(16) unsigned char dynamic_memory[];
    A* dweight = reinterpret_cast<A*>(dynamic_memory);
    A* dbias = dweight + slots;
    for (int slot = threadIdx.x; slot < slots; slot += blockDim.x) dweight[slot] = dbias[slot] = 0;

    A* of_block = partial + blockIdx.x * 2LL * columns;
    const auto move_to_partial = [&](bool first_time) {  // by the threads that made the sums: no barrier
        for (int i = threadIdx.x * COUNT, slot = threadIdx.x; i < columns; i += stride) {
#pragma unroll
            for (int k = 0; k < COUNT; k++, slot += blockDim.x) {
                of_block[i + k] = dweight[slot] + (first_time ? A(0) : of_block[i + k]);
                of_block[columns + i + k] = dbias[slot] + (first_time ? A(0) : of_block[columns + i + k]);
                dweight[slot] = dbias[slot] = 0;
            }
        }
    };

    long long taken = 0;
    for (long long row = blockIdx.x; row < rows; row += gridDim.x, taken++) {
        if (taken > 0 && taken % ROWS_AT_A_TIME == 0) move_to_partial(taken == ROWS_AT_A_TIME);
        const A mean = means[row], rstd = rstds[row];
        const long long first = row * columns;
        A sum = 0, dot = 0;
        for (int i = threadIdx.x * COUNT, slot = threadIdx.x; i < columns; i += stride) {
            const Vector<T, COUNT> dy_i = load<COUNT>(dy + first + i), x_i = load<COUNT>(x + first + i);
            const Vector<T, COUNT> w = load<COUNT>(weight + i);
#pragma unroll
            for (int k = 0; k < COUNT; k++, slot += blockDim.x) {
                const A norm = (A(x_i[k]) - mean) * rstd, dnorm = A(dy_i[k]) * A(w[k]);
                sum += dnorm;
                dot += dnorm * norm;
                dweight[slot] += A(dy_i[k]) * norm;
                dbias[slot] += A(dy_i[k]);
            }
        }
        const A mean_dnorm = block_sum(sum) / columns, mean_dot = block_sum(dot) / columns;
        for (int i = threadIdx.x * COUNT; i < columns; i += stride) {
            const Vector<T, COUNT> dy_i = load<COUNT>(dy + first + i), x_i = load<COUNT>(x + first + i);
            const Vector<T, COUNT> w = load<COUNT>(weight + i);
            Vector<T, COUNT> dout_i = {}, dx_i;
            if (dout) dout_i = load<COUNT>(dout + first + i);
#pragma unroll
            for (int k = 0; k < COUNT; k++) {
                const A norm = (A(x_i[k]) - mean) * rstd, dnorm = A(dy_i[k]) * A(w[k]);
                const A d = rstd * (dnorm - mean_dnorm - norm * mean_dot);
                dx_i[k] = T(dout ? d + A(dout_i[k]) : d);
            }
            store(dx + first + i, dx_i);
        }
    }
    move_to_partial(taken <= ROWS_AT_A_TIME);
}

template <typename T>
__global__ void __launch_bounds__(512, 1)
    layernorm_backward(const T* dy, const T* x, const T* weight, const Accumulator<T>* mean, const Accumulator<T>* rstd,
                       T* dx, Accumulator<T>* partial, long long rows, int columns) {
    const T* no_residual = nullptr;
    if (rows_are_aligned(dy, columns) && rows_are_aligned(x, columns) && rows_are_aligned(dx, columns) &&
        is_aligned(weight))
        layernorm_backward_rows<T, VECTOR<T>>(dy, no_residual, x, weight, mean, rstd, dx, partial, rows, columns);
    else
        layernorm_backward_rows<T, 1>(dy, no_residual, x, weight, mean, rstd, dx, partial, rows, columns);
}

// dx may be dout.
template <typename T>
__global__ void __launch_bounds__(512, 1)
    residual_layernorm_backward(const T* dy, const T* dout, const T* out, const T* weight, const Accumulator<T>* mean,
                                const Accumulator<T>* rstd, T* dx, Accumulator<T>* partial, long long rows,
                                int columns) {
    if (rows_are_aligned(dy, columns) && rows_are_aligned(dout, columns) && rows_are_aligned(out, columns) &&
        rows_are_aligned(dx, columns) && is_aligned(weight))
        layernorm_backward_rows<T, VECTOR<T>>(dy, dout, out, weight, mean, rstd, dx, partial, rows, columns);
    else
        layernorm_backward_rows<T, 1>(dy, dout, out, weight, mean, rstd, dx, partial, rows, columns);
}

// instances: layernorm_forward<float> layernorm_backward<float>
// instances: layernorm_forward<double> layernorm_backward<double>
// instances: layernorm_forward<__nv_bfloat16> layernorm_backward<__nv_bfloat16>
// instances: residual_layernorm_forward<float> residual_layernorm_backward<float>
// instances: residual_layernorm_forward<double> residual_layernorm_backward<double>
// instances: residual_layernorm_forward<__nv_bfloat16> residual_layernorm_backward<__nv_bfloat16>
