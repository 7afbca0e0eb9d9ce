// Matrix product, level 6: bfloat16 on tensor cores, and copies that run while they work.
//
//   C_ij = sum_k A_ik B_kj          k in steps of 32: C tile += (A tile) (B tile), summed in float, rounded once
//
// One mma instruction multiplies 16 x 16 by 16 x 8 numbers for a whole warp: 2048 multiply-adds, 64 for each thread. A
// block of 8 warps has 128 x 128 numbers of C, each warp 64 x 32 of them: 4 x 4 products, whose sums stay in 64
// registers of each thread. ldmatrix hands the numbers of a tile to the threads in the order that mma wants.
//
// cp.async copies from device memory to shared memory past the registers, and the thread goes on. There are two of each
// tile: while one pair is multiplied, the next is on its way, in the one group of copies that no wait has asked for.
//
// Chunks of 16 bytes change places within their row of a tile (chunk_at): ldmatrix reads the same chunk of 8 rows at
// once, which would lie in the same few of the 32 banks, and so are spread over all.
//
// Shapes: A (M, K), B (K, N), C (M, N), row by row, K and N multiples of 8, all starting at multiples of 16 bytes;
// beyond their edges the tiles have zeros. Grid: (N / 128, M / 128), rounded up, of blocks of 256 threads.
//
// What it costs, for M = N = K = 4096, 6.9e10 multiply-adds:
// - Arithmetic: 3.4e7 mma instructions. At 989 TFLOP/s, dense bfloat16 on an H200, at least 0.14 ms; level 5, 2.05 ms.
// - From shared memory, for 16 of k: a warp loads 64 rows of A and 32 columns of B, 3 KB, in 6 ldmatrix for 16 mma. All
//   in all 6.4 GB; at 128 bytes a clock on 132 multiprocessors 0.19 ms. So this is the limit, and not the arithmetic.
// - From outside: 2.1 GB, half of level 5, as the numbers have half the bytes.
//
// A faster version would give each warp more of C (as wgmma does, whose operands are read from shared memory by the
// tensor core itself, once for four warps), use three or four pairs of tiles, and write C in pieces of 16 bytes.
#include "ptx.cuh"

using bf16 = __nv_bfloat16;
constexpr int TILE = 128, DEPTH = 32, THREADS = 256;
constexpr int WARP_ROWS = 64, WARP_COLUMNS = 32;  // of C, for each of 2 x 4 warps

// Chunk `chunk` (8 numbers) of row `row` of a tile. A row of 128 numbers covers all banks, twice: 8 rows begin at 8
// places. Two rows of 32 numbers cover them together: 4 pairs of rows begin at 4 places.
template <int COLUMNS>
__device__ __forceinline__ bf16* chunk_at(bf16* tile, int row, int chunk) {
    const int exchange = COLUMNS == 32 ? row / 2 % 4 : row % 8;
    return tile + row * COLUMNS + (chunk ^ exchange) * 8;
}

// Begin to copy a tile of ROWS x COLUMNS, from (first_row, first_column) of a matrix of `rows` x `columns`.
template <int ROWS, int COLUMNS>
__device__ __forceinline__ void copy_tile(bf16* tile, const bf16* matrix, int first_row, int first_column, int rows,
                                          int columns) {
#pragma unroll
    for (int i = threadIdx.x; i < ROWS * COLUMNS / 8; i += THREADS) {
        const int row = i / (COLUMNS / 8), chunk = i % (COLUMNS / 8);
        const bool valid = first_row + row < rows && first_column + chunk * 8 < columns;
        const bf16* from = matrix + (valid ? (first_row + row) * columns + first_column + chunk * 8 : 0);
        cp_async16(chunk_at<COLUMNS>(tile, row, chunk), from, valid);
    }
}

__global__ void __launch_bounds__(256)
    matmul_6_tensor_cores(const __nv_bfloat16* a, const __nv_bfloat16* b, __nv_bfloat16* c, int M, int N, int K) {
    __shared__ __align__(128) bf16 a_tiles[2][TILE * DEPTH];
    __shared__ __align__(128) bf16 b_tiles[2][DEPTH * TILE];
    const int warp = threadIdx.x / WARP_SIZE, lane = threadIdx.x % WARP_SIZE;
    const int warp_row = warp / 4 * WARP_ROWS, warp_column = warp % 4 * WARP_COLUMNS;
    const int first_row = blockIdx.y * TILE, first_column = blockIdx.x * TILE, steps = (K + DEPTH - 1) / DEPTH;
    auto copy_tiles = [&](int step) {
        copy_tile<TILE, DEPTH>(a_tiles[step % 2], a, first_row, step * DEPTH, M, K);
        copy_tile<DEPTH, TILE>(b_tiles[step % 2], b, step * DEPTH, first_column, K, N);
    };
    float sums[WARP_ROWS / 16][WARP_COLUMNS / 8][4] = {};
    copy_tiles(0);
    cp_async_commit();
    for (int step = 0; step < steps; step++) {
        if (step + 1 < steps) copy_tiles(step + 1);
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads();  // all threads' copies of this step are there
#pragma unroll
        for (int k = 0; k < DEPTH; k += 16) {
            unsigned rows[WARP_ROWS / 16][4], columns[WARP_COLUMNS / 16][4];
#pragma unroll
            for (int i = 0; i < WARP_ROWS / 16; i++) {
                const int row = warp_row + 16 * i + lane % 16;
                ldmatrix_x4(rows[i], chunk_at<DEPTH>(a_tiles[step % 2], row, k / 8 + lane / 16));
            }
#pragma unroll
            for (int j = 0; j < WARP_COLUMNS / 16; j++) {
                const int chunk = warp_column / 8 + 2 * j + lane / 16;
                ldmatrix_x4_trans(columns[j], chunk_at<TILE>(b_tiles[step % 2], k + lane % 16, chunk));
            }
#pragma unroll
            for (int i = 0; i < WARP_ROWS / 16; i++)
#pragma unroll
                for (int j = 0; j < WARP_COLUMNS / 8; j++) {
                    const unsigned column[2] = {columns[j / 2][j % 2 * 2], columns[j / 2][j % 2 * 2 + 1]};
                    mma_m16n8k16(sums[i][j], rows[i], column);
                }
        }
        __syncthreads();  // all have used them: the step after the next may overwrite them
    }
#pragma unroll
    for (int i = 0; i < WARP_ROWS / 16; i++)
#pragma unroll
        for (int j = 0; j < WARP_COLUMNS / 8; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = first_row + warp_row + 16 * i + 8 * half + lane / 4;
                const int column = first_column + warp_column + 8 * j + lane % 4 * 2;
                const unsigned pair = pack_bf16(sums[i][j][2 * half], sums[i][j][2 * half + 1]);
                if (row < M && column < N) *reinterpret_cast<unsigned*>(c + row * N + column) = pair;
            }
}

// instances sm_80: matmul_6_tensor_cores
