// Matrix product, level 2: neighbouring threads have neighbouring columns. Only x and y have changed places.
//
//   C_ij = sum_k A_ik B_kj
//
// Shapes: A (M, K), B (K, N), C (M, N), row by row. Grid: (N / 32, M / 8), rounded up, of blocks of (32, 8) threads.
//
// What it costs, for M = N = K = 4096 (6.9e10 multiply-adds, at least 2.05 ms on an H200):
// - Transactions: a warp has one row and 32 columns beside each other: for the same k one sector of A, which all 32
//   threads get at once, and 4 of B, 5 instead of level 1's 33; 344 GB in all, 10 ms at 128 bytes a clock from L1. C is
//   written 4 sectors at a time instead of 32.
// - Loads: still two for each multiply-add. That is now the limit: of 4 instructions that a multiprocessor can start in
//   a clock, one may be a load, so at most one multiply-add in two clocks instead of four in one: 16 ms.
#include "common.cuh"

__global__ void __launch_bounds__(256)
    matmul_2_coalesced(const float* a, const float* b, float* c, int M, int N, int K) {
    const int row = blockIdx.y * blockDim.y + threadIdx.y, column = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= M || column >= N) return;
    float sum = 0;
    for (int k = 0; k < K; k++) sum += a[row * K + k] * b[k * N + column];
    c[row * N + column] = sum;
}

// instances: matmul_2_coalesced
