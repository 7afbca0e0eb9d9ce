// Matrix product, level 1: one thread for a number of C, written as the formula reads.
//
//   C_ij = sum_k A_ik B_kj
//
// Shapes: A (M, K), B (K, N), C (M, N), row by row. Grid: (M / 32, N / 8), rounded up, of blocks of (32, 8) threads.
//
// What it costs, for M = N = K = 4096: 6.9e10 multiply-adds, which the 132 x 128 units of an H200 at 1.98 GHz could do
// in 2.05 ms, on three matrices of 67 MB, which its memory could move in 0.05 ms. Arithmetic should be the limit, but:
// - Loads: two for each multiply-add.
// - Transactions: memory is moved in sectors of 32 bytes. The 32 threads of a warp have 32 rows and one column: for the
//   same k they touch 32 sectors of A (a row apart), one of B, and in the end 32 of C. That is 33 sectors, 1056 bytes,
//   for 32 multiply-adds, 2.3 TB in all, where a multiprocessor's L1 cache gives at most 128 bytes a clock: 68 ms.
#include "common.cuh"

__global__ void __launch_bounds__(256) matmul_1_naive(const float* a, const float* b, float* c, int M, int N, int K) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x, column = blockIdx.y * blockDim.y + threadIdx.y;
    if (row >= M || column >= N) return;
    float sum = 0;
    for (int k = 0; k < K; k++) sum += a[row * K + k] * b[k * N + column];
    c[row * N + column] = sum;
}

// instances: matmul_1_naive
