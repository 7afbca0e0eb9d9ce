// Matrix product, level 5: every load and store moves 16 bytes.
//
//   C_ij = sum_k A_ik B_kj          k in steps of 8: C tile += (A tile) (B tile), each thread 8 x 8 of it
//
// Tiles and threads are those of level 4, but a thread's rows and columns come four beside each other: 4 y to 4 y + 3,
// and the four 64 further on. Its factors for one k are then two pieces of 16 bytes of each tile, if the tile of A has
// the numbers of one k, for all rows, beside each other: it is transposed on its way to shared memory.
//
// Shapes: A (M, K), B (K, N), C (M, N), row by row, K and N multiples of 4, all starting at multiples of 16 bytes;
// beyond their edges the tiles have zeros. Grid: (N / 128, M / 128), rounded up, of blocks of 256 threads.
//
// What it costs, for M = N = K = 4096 (6.9e10 multiply-adds, at least 2.05 ms on an H200):
// - Instructions: 4 loads from shared memory instead of 16 for 64 multiply-adds: 68 in all, 2.2 ms. For a step a thread
//   needs one load of A and one of B from outside instead of four each, and for C 16 stores instead of 64.
// - Banks: a thread writes its 4 numbers of a row of A to 4 rows of the transposed tile. A warp has 16 rows of A, and
//   of each two such threads, whose numbers go 4 tile rows apart: with 128 numbers to a row always to one and the same
//   of 32 banks, with 128 + 4 to banks 16 apart, so that all 32 threads are served at once.
#include "common.cuh"

constexpr int TILE = 128, DEPTH = 8, SIDE = 16, HALF = TILE / 2;
using Four = Vector<float, 4>;

__global__ void __launch_bounds__(256)
    matmul_5_vectorised(const float* a, const float* b, float* c, int M, int N, int K) {
    __shared__ __align__(16) float a_tile[DEPTH][TILE + 4];  // transposed
    __shared__ __align__(16) float b_tile[DEPTH][TILE];
    const int y = threadIdx.x / SIDE, x = threadIdx.x % SIDE;
    const int first_row = blockIdx.y * TILE, first_column = blockIdx.x * TILE;
    // The piece of each tile that this thread copies: 128 rows of 2 pieces, 8 rows of 32.
    const int a_row = threadIdx.x / 2, a_k = threadIdx.x % 2 * 4;
    const int b_k = threadIdx.x / 32, b_column = threadIdx.x % 32 * 4;
    float sums[8][8] = {};
    for (int first = 0; first < K; first += DEPTH) {
        Four a_piece = {}, b_piece = {};
        if (first_row + a_row < M && first + a_k < K) a_piece = load<4>(a + (first_row + a_row) * K + first + a_k);
        if (first + b_k < K && first_column + b_column < N)
            b_piece = load<4>(b + (first + b_k) * N + first_column + b_column);
#pragma unroll
        for (int i = 0; i < 4; i++) a_tile[a_k + i][a_row] = a_piece[i];
        store(&b_tile[b_k][b_column], b_piece);
        __syncthreads();  // the tiles are there
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            const Four a_part[2] = {load<4>(&a_tile[k][4 * y]), load<4>(&a_tile[k][HALF + 4 * y])};
            const Four b_part[2] = {load<4>(&b_tile[k][4 * x]), load<4>(&b_tile[k][HALF + 4 * x])};
#pragma unroll
            for (int i = 0; i < 8; i++)
#pragma unroll
                for (int j = 0; j < 8; j++) sums[i][j] += a_part[i / 4][i % 4] * b_part[j / 4][j % 4];
        }
        __syncthreads();  // all have used them
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
        for (int j = 0; j < 8; j += 4) {
            const int row = first_row + i / 4 * HALF + 4 * y + i % 4, column = first_column + j / 4 * HALF + 4 * x;
            const Four piece = {sums[i][j], sums[i][j + 1], sums[i][j + 2], sums[i][j + 3]};
            if (row < M && column < N) store(c + row * N + column, piece);
        }
}

// instances: matmul_5_vectorised
