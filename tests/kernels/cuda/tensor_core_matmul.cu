// c (M, N, float) = a (M, K, bfloat16) b (K, N, bfloat16), K and N multiples of 8: the tensor-core path in one kernel.
//
// A block of 4 warps computes 64 x 64 of c, a warp 16 rows of it. Tiles of 64 x 32 of a and 32 x 64 of b come by
// cp.async into two stages, one being filled while the other is multiplied; what lies outside the matrices is zero.
#include "common.cuh"
#include "ptx.cuh"

constexpr int TILE = 64, DEPTH = 32, THREADS = 128;

// A row of a tile is chunks of 16 bytes. Chunk c of row r lies at c ^ r, so that the 8 rows that ldmatrix reads
// together are in different banks.
template <int CHUNKS>
__device__ __nv_bfloat16* chunk(__nv_bfloat16* tile, int row, int c) {
    return tile + (row * CHUNKS + (c ^ row % CHUNKS)) * 8;
}

// Copy ROWS x 8 CHUNKS numbers from (row, column) of a matrix.
template <int ROWS, int CHUNKS>
__device__ void fetch(__nv_bfloat16* tile, const __nv_bfloat16* matrix, int row, int column, int rows, int columns) {
    for (int i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
        const int r = row + i / CHUNKS, c = column + i % CHUNKS * 8;
        const bool inside = r < rows && c < columns;
        cp_async16(chunk<CHUNKS>(tile, i / CHUNKS, i % CHUNKS), inside ? matrix + r * columns + c : matrix, inside);
    }
}

__global__ void __launch_bounds__(128)
tensor_core_matmul(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, int M, int N, int K) {
    extern __shared__ __align__(128) unsigned char memory[];
    __nv_bfloat16* a_tiles = reinterpret_cast<__nv_bfloat16*>(memory);
    __nv_bfloat16* b_tiles = a_tiles + 2 * TILE * DEPTH;
    const int row = blockIdx.y * TILE, column = blockIdx.x * TILE, steps = (K + DEPTH - 1) / DEPTH;
    const int warp = threadIdx.x / WARP_SIZE, lane = threadIdx.x % WARP_SIZE;
    auto fetch_step = [&](int step) {
        fetch<TILE, DEPTH / 8>(a_tiles + step % 2 * TILE * DEPTH, a, row, step * DEPTH, M, K);
        fetch<DEPTH, TILE / 8>(b_tiles + step % 2 * TILE * DEPTH, b, step * DEPTH, column, K, N);
    };
    float sums[TILE / 8][4] = {};
    fetch_step(0);
    cp_async_commit();
    for (int step = 0; step < steps; step++) {
        if (step + 1 < steps) fetch_step(step + 1);
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads();  // this step's tiles are there
        __nv_bfloat16 *a_tile = a_tiles + step % 2 * TILE * DEPTH, *b_tile = b_tiles + step % 2 * TILE * DEPTH;
#pragma unroll
        for (int k = 0; k < DEPTH; k += 16) {
            unsigned a_part[4];
            ldmatrix_x4(a_part, chunk<DEPTH / 8>(a_tile, warp * 16 + lane % 16, k / 8 + lane / 16));
#pragma unroll
            for (int j = 0; j < TILE / 8; j++) {
                unsigned b_part[2];
                ldmatrix_x2_trans(b_part, chunk<TILE / 8>(b_tile, k + lane % 16, j));
                mma_m16n8k16(sums[j], a_part, b_part);
            }
        }
        __syncthreads();  // all have read them: the next step but one may overwrite them
    }
    for (int j = 0; j < TILE / 8; j++) {
        for (int e = 0; e < 4; e++) {
            const int r = row + warp * 16 + lane / 4 + e / 2 * 8, n = column + j * 8 + lane % 4 * 2 + e % 2;
            if (r < M && n < N) c[r * N + n] = sums[j][e];
        }
    }
}

// The same fragments through the loads that the kernel above does not use: b is given transposed, (N, K).
__global__ void __launch_bounds__(32) one_tile(const __nv_bfloat16* a, const __nv_bfloat16* bt, float* c) {
    __shared__ __align__(16) __nv_bfloat16 rows[16 * 16 + 16 * 16];
    for (int i = threadIdx.x; i < 256; i += 32) {
        rows[i] = a[i % 16 * 16 + i / 16];  // transposed, for the load that transposes it back
        rows[256 + i] = bt[i];
    }
    __syncwarp();
    const int lane = threadIdx.x;
    unsigned a_part[4], b_both[4], b_one[2];
    ldmatrix_x4_trans(a_part, rows + (lane % 8 + lane / 16 * 8) * 16 + lane / 8 % 2 * 8);
    ldmatrix_x4(b_both, rows + 256 + (lane % 8 + lane / 16 * 8) * 16 + lane / 8 % 2 * 8);  // both halves of N
    ldmatrix_x2(b_one, rows + 256 + lane % 8 * 16 + lane / 8 % 2 * 8);
    float left[4] = {}, right[4] = {};
    const unsigned b_right[2] = {b_both[2], b_both[3]};
    mma_m16n8k16(left, a_part, b_one);
    mma_m16n8k16(right, a_part, b_right);
    for (int e = 0; e < 4; e++) {
        const int at = (lane / 4 + e / 2 * 8) * 16 + lane % 4 * 2 + e % 2;
        c[at] = b_both[0] == b_one[0] && b_both[1] == b_one[1] ? left[e] : -1.0f;
        c[at + 8] = right[e];
    }
}

// instances sm_80: tensor_core_matmul one_tile
