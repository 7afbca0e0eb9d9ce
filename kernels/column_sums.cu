// Sums over the rows of a matrix: the gradient of a bias, and the second stage of every gradient of a parameter.
//
//   out[c, j] = sum over the rows i of chunk c of x[i, j]
//
// Shapes: x (rows, columns) of type From; out (chunks, columns) of type To. A chunk is chunk_rows rows, the last may be
// fewer; gridDim.y is the number of chunks. A first stage leaves the sums of many chunks as Accumulator<From>, the next
// adds up those, and the last, with one chunk, rounds to the type of the gradient.
//
// Grid: (columns / (32 * 16 / sizeof(From)), chunks); with fewer blocks in x, each takes every gridDim.x-th set of
// columns. Block: (32, up to 16).
//
// No atomics: with them, the order of the additions and so the last bits of the sum would change from run to run.
//
// Memory: rows columns sizeof(From) bytes, each number once: for 65536 rows of 768 bfloat16, 24 us at 4.3 TB/s (H200).
// Arithmetic: one addition for each.
//
// A faster version would let each thread ask for several rows before it adds the first.
#include "rows.cuh"

template <int COUNT, typename From, typename To>
__device__ void column_sums_of_chunk(const From* __restrict__ x, To* __restrict__ out, long long rows, int chunk_rows,
                                     int columns) {
    using A = Accumulator<From>;
    const Chunk chunk(rows, chunk_rows);
    for (int first = blockIdx.x * WARP_SIZE * COUNT; first < columns; first += gridDim.x * WARP_SIZE * COUNT) {
        const int column = first + threadIdx.x * COUNT;
        A sums[COUNT] = {};
        if (column < columns) {
#pragma unroll 1  // more would take registers from the blocks beside this one
            for (long long row = chunk.first + threadIdx.y; row < chunk.last; row += blockDim.y) {
                const Vector<From, COUNT> v = load<COUNT>(x + row * columns + column);
#pragma unroll
                for (int k = 0; k < COUNT; k++) sums[k] += A(v[k]);
            }
        }
        sum_over_block_rows(sums);
        if (column < columns && threadIdx.y == 0) {
#pragma unroll
            for (int k = 0; k < COUNT; k++)
                out[blockIdx.y * static_cast<long long>(columns) + column + k] = To(sums[k]);
        }
    }
}

template <typename From, typename To>
__global__ void __launch_bounds__(512)
    column_sums(const From* x, To* out, long long rows, int chunk_rows, int columns) {
    if (rows_are_aligned(x, columns))
        column_sums_of_chunk<VECTOR<From>>(x, out, rows, chunk_rows, columns);
    else
        column_sums_of_chunk<1>(x, out, rows, chunk_rows, columns);
}

// instances: column_sums<float, float> column_sums<double, double>
// instances: column_sums<__nv_bfloat16, float> column_sums<float, __nv_bfloat16>
