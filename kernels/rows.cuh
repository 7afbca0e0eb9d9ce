// What kernels that walk over arrays share: the threads of a grid, alignment, chunks of rows, sums by column.
#pragma once
#include "common.cuh"

struct Threads {  // of the whole grid, in one dimension
    long long number, count;
    __device__ Threads()
        : number(static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x),
          count(static_cast<long long>(gridDim.x) * blockDim.x) {}
};

template <typename T>
__device__ __forceinline__ bool is_aligned(const T* array) {  // for accesses of 16 bytes
    return reinterpret_cast<unsigned long long>(array) % 16 == 0;
}

// The rows of this block's chunk, one of gridDim.y: row `first` up to, not including, `last`.
struct Chunk {
    long long first, last;
    __device__ Chunk(long long rows, int chunk_rows)
        : first(static_cast<long long>(blockIdx.y) * chunk_rows), last(min(first + chunk_rows, rows)) {}
};

// Of a block that adds up many rows: it moves its sums on after so many, lest they lose the digits of what is added.
constexpr int ROWS_AT_A_TIME = 32;

// ---- sums by column ----------------------------------------------------------------------------------------------
// In a block of (32, up to 16), threads beside each other take columns that are, so that a warp reads whole lines of
// memory; those with the same threadIdx.x take the rows of one set of columns in turn, and meet here to add up what
// each has found. The order of every addition is given by the sizes alone, so results repeat to the last bit.

constexpr int MAX_BLOCK_ROWS = 16;  // threads of a block above each other

// Leave in the `values` of the threads with threadIdx.y = 0 the sums over all threadIdx.y.
template <int COUNT, typename A>
__device__ __forceinline__ void sum_over_block_rows(A (&values)[COUNT]) {
    __shared__ A of_row[COUNT][MAX_BLOCK_ROWS][WARP_SIZE];
#pragma unroll
    for (int k = 0; k < COUNT; k++) of_row[k][threadIdx.y][threadIdx.x] = values[k];
    __syncthreads();
    if (threadIdx.y == 0) {
#pragma unroll
        for (int k = 0; k < COUNT; k++)
            for (int y = 1; y < blockDim.y; y++) values[k] += of_row[k][y][threadIdx.x];
    }
    __syncthreads();  // all has been read: the next call may write
}
