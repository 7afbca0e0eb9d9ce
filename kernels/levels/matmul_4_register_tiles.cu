// Matrix product, level 4: a thread has 8 x 8 numbers of C, so that it uses each number that it loads 8 times.
//
//   C_ij = sum_k A_ik B_kj          k in steps of 8: C tile += (A tile) (B tile), each thread 8 x 8 of it
//
// For one k a thread loads 8 numbers of A and 8 of B from shared memory, and multiplies each with each. 256 threads
// have 128 x 128 numbers of C. Thread (y, x) of 16 x 16 has rows y, y + 16, ... and columns x, x + 16, ...: so threads
// beside each other read, and in the end write, numbers beside each other. (With 8 neighbouring columns each, the
// 16 threads would be 8 apart: four at a time in one of the 32 banks of shared memory, which serves one by one.)
//
// Shapes: A (M, K), B (K, N), C (M, N), row by row; beyond their edges the tiles have zeros. Grid: (N / 128, M / 128),
// rounded up, of blocks of 256 threads.
//
// What it costs, for M = N = K = 4096 (6.9e10 multiply-adds, at least 2.05 ms on an H200):
// - From shared memory: 16 loads for 64 multiply-adds, an eighth of level 3's. At one load and four multiply-adds in a
//   clock (for a warp), the loads now take as long as the arithmetic, 2.05 ms.
// - Instructions: those loads are started in the place of multiply-adds: 80 instructions for 64 of them, 2.6 ms.
// - From outside: tiles of 128 instead of 32 bring 4.3 GB instead of 17 GB.
// - Registers: 64 sums and 16 factors, so that a multiprocessor holds 2 blocks, 512 threads. They wait for each other
//   less often: a thread's 64 multiply-adds do not depend on one another.
#include "common.cuh"

constexpr int TILE = 128, DEPTH = 8, SIDE = 16, EACH = TILE / SIDE, THREADS = SIDE * SIDE;

__global__ void __launch_bounds__(256)
    matmul_4_register_tiles(const float* a, const float* b, float* c, int M, int N, int K) {
    __shared__ float a_tile[TILE][DEPTH];
    __shared__ float b_tile[DEPTH][TILE];
    const int y = threadIdx.x / SIDE, x = threadIdx.x % SIDE;
    const int first_row = blockIdx.y * TILE, first_column = blockIdx.x * TILE;
    float sums[EACH][EACH] = {};
    for (int first = 0; first < K; first += DEPTH) {
#pragma unroll
        for (int i = threadIdx.x; i < TILE * DEPTH; i += THREADS) {
            const int row = first_row + i / DEPTH, k = first + i % DEPTH;
            a_tile[i / DEPTH][i % DEPTH] = row < M && k < K ? a[row * K + k] : 0;
        }
#pragma unroll
        for (int i = threadIdx.x; i < DEPTH * TILE; i += THREADS) {
            const int k = first + i / TILE, column = first_column + i % TILE;
            b_tile[i / TILE][i % TILE] = k < K && column < N ? b[k * N + column] : 0;
        }
        __syncthreads();  // the tiles are there
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            float a_part[EACH], b_part[EACH];
#pragma unroll
            for (int i = 0; i < EACH; i++) a_part[i] = a_tile[y + SIDE * i][k];
#pragma unroll
            for (int j = 0; j < EACH; j++) b_part[j] = b_tile[k][x + SIDE * j];
#pragma unroll
            for (int i = 0; i < EACH; i++)
#pragma unroll
                for (int j = 0; j < EACH; j++) sums[i][j] += a_part[i] * b_part[j];
        }
        __syncthreads();  // all have used them
    }
#pragma unroll
    for (int i = 0; i < EACH; i++)
#pragma unroll
        for (int j = 0; j < EACH; j++) {
            const int row = first_row + y + SIDE * i, column = first_column + x + SIDE * j;
            if (row < M && column < N) c[row * N + column] = sums[i][j];
        }
}

// instances: matmul_4_register_tiles
