// Matrix product, level 3: a block brings tiles of A and B to shared memory, and uses each number 32 times there.
//
//   C_ij = sum_k A_ik B_kj          k in steps of 32: C tile += (A tile) (B tile)
//
// A block has 32 x 32 numbers of C, one for each thread. For each step each thread copies one number of A and one of B;
// the first barrier makes sure that all have arrived, the second that all have been used before the next arrive.
//
// Shapes: A (M, K), B (K, N), C (M, N), row by row; beyond their edges the tiles have zeros. Grid: (N / 32, M / 32),
// rounded up, of blocks of (32, 32) threads.
//
// What it costs, for M = N = K = 4096 (6.9e10 multiply-adds, at least 2.05 ms on an H200):
// - From outside the multiprocessor: each number of A and B once for each of the 128 blocks that need it, 17 GB instead
//   of 344 GB, in whole sectors. Most of it comes from L2.
// - From shared memory: still two loads for each multiply-add (one and a quarter, where the compiler reads four k of A
//   at once). A multiprocessor can do one load in a clock, for a warp, and four multiply-adds: so at most an eighth of
//   its arithmetic is used, 16 ms. The tiles have made the loads short, not few.
#include "common.cuh"

constexpr int TILE = 32;

__global__ void __launch_bounds__(1024)
    matmul_3_shared_tiles(const float* a, const float* b, float* c, int M, int N, int K) {
    __shared__ float a_tile[TILE][TILE];
    __shared__ float b_tile[TILE][TILE];
    const int x = threadIdx.x, y = threadIdx.y, row = blockIdx.y * TILE + y, column = blockIdx.x * TILE + x;
    float sum = 0;
    for (int first = 0; first < K; first += TILE) {
        a_tile[y][x] = row < M && first + x < K ? a[row * K + first + x] : 0;
        b_tile[y][x] = first + y < K && column < N ? b[(first + y) * N + column] : 0;
        __syncthreads();  // the tiles are there
        for (int k = 0; k < TILE; k++) sum += a_tile[y][k] * b_tile[k][x];
        __syncthreads();  // all have used them
    }
    if (row < M && column < N) c[row * N + column] = sum;
}

// instances: matmul_3_shared_tiles
