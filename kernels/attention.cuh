// What the attention kernels share: which keys a query sees, which weights dropout keeps, and products of tiles of
// rows, in plain arithmetic and on tensor cores. The tiles lie in shared memory; all products have one of two forms,
//
//   S = A B^T      rows of A with rows of B     (queries with keys: S = Q K^T, dP = dO V^T, and their transposes)
//   O += P B       weights with rows of B       (O += P V, dV += P^T dO, dK += dS^T Q, dQ += dS K)
#pragma once
#include "philox.cuh"
#include "ptx.cuh"

// From one batch item, head and row of operand `i` of a kernel to the next, in elements; the numbers of a row follow each
// other. An array that arrives by value lies in constant memory beside the other arguments, so a stride costs no load.
template <int OPERANDS>
struct Strides {
    long long of[OPERANDS][3];
    __device__ long long head(int i, int batch, int head) const { return batch * of[i][0] + head * of[i][1]; }
    __device__ long long row(int i) const { return of[i][2]; }
};
enum Operand { Q, K, V, OUT, DOUT = 3, DQ = 4, DK = 4, DV = 5 };  // numbers of the operands, forward and backward

// Query i sees the keys j < end(i): those of its batch item that are not padding and, if causal, j <= i + offset.
struct Visible {
    int keys, offset;  // offset = Tk - Tq: the last query sees every key
    bool causal;
    __device__ int end(int query) const { return causal ? min(keys, query + offset + 1) : keys; }
    __device__ int first_query(int key) const { return causal ? max(0, key - offset) : 0; }
};

// Dropout keeps a weight of P if its number in the random stream (philox.cuh) is at least `threshold`. Row r of P,
// counted through all heads of all batch items as lse is, begins at block counter + r `blocks`; a block serves 8 keys.
struct Dropout {
    PhiloxKey key;
    unsigned long long counter;
    int blocks;  // of a row: Tk / 8, rounded up
    unsigned threshold;

    // Bit j: whether the weight of key 8 block + j is kept.
    __device__ __forceinline__ unsigned kept(long long row, int block) const {
        unsigned numbers[PHILOX_NUMBERS], bits = 0;
        philox_block(key, counter + row * blocks + block, numbers);
#pragma unroll
        for (int j = 0; j < PHILOX_NUMBERS; j++) bits |= (numbers[j] >= threshold) << j;
        return bits;
    }
};

// Where the largest score starts: far below any, but so far above lowest(), which stands for a key that is not seen,
// that e^(lowest - NO_SCORE) = 0. A row that sees no key then has the sum 0.
constexpr float NO_SCORE = -1e30f;

// ---- in plain arithmetic: 16 x 16 threads; thread (y, x) has rows y, y + 16, ... and columns x, x + 16, ... --------

constexpr int SIDE = 16;

// Rows first, first + 1, ... of an operand, as numbers to compute with; zeros beyond `end` and beyond the head size.
// A row of the tile has one number more, so that 16 threads that read 16 rows at the same column use 16 banks.
template <int ROWS, int D, typename T, typename A>
__device__ void load_tile(A (*tile)[D + 1], const T* from, long long stride, int first, int end, int head_size) {
    for (int i = threadIdx.x; i < ROWS * D; i += SIDE * SIDE) {
        const int row = i / D, d = i % D;
        tile[row][d] = first + row < end && d < head_size ? A(from[(first + row) * stride + d]) : A(0);
    }
}

// s = a b^T
template <int D, int M, int N, typename A>
__device__ void multiply_rows(A (&s)[M][N], const A (*a)[D + 1], const A (*b)[D + 1]) {
    const int y = threadIdx.x / SIDE, x = threadIdx.x % SIDE;
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) s[i][j] = 0;
#pragma unroll 4
    for (int d = 0; d < D; d++)
#pragma unroll
        for (int i = 0; i < M; i++)
#pragma unroll
            for (int j = 0; j < N; j++) s[i][j] += a[y + SIDE * i][d] * b[x + SIDE * j][d];
}

// o += p b, where p has INNER columns and b INNER rows
template <int INNER, int D, int M, int C, typename A>
__device__ void add_product(A (&o)[M][C], const A (*p)[INNER + 1], const A (*b)[D + 1]) {
    const int y = threadIdx.x / SIDE, x = threadIdx.x % SIDE;
#pragma unroll 4
    for (int n = 0; n < INNER; n++)
#pragma unroll
        for (int i = 0; i < M; i++)
#pragma unroll
            for (int j = 0; j < C; j++) o[i][j] += p[y + SIDE * i][n] * b[n][x + SIDE * j];
}

// The dropout mask, times its scale, of a tile of P from `row` of P and block `block` of that row on. In `mask` the
// next query and the next key are so many numbers further.
template <int QUERIES, int KEYS, typename A>
__device__ void draw_mask(A* mask, int next_query, int next_key, const Dropout& dropout, long long row, int block,
                          A scale) {
    constexpr int BLOCKS = KEYS / PHILOX_NUMBERS;
    for (int i = threadIdx.x; i < QUERIES * BLOCKS; i += SIDE * SIDE) {
        const unsigned kept = dropout.kept(row + i / BLOCKS, block + i % BLOCKS);
        for (int j = 0; j < PHILOX_NUMBERS; j++)
            mask[i / BLOCKS * next_query + (i % BLOCKS * PHILOX_NUMBERS + j) * next_key] = kept >> j & 1 ? scale : A(0);
    }
}

// Write o, times `scale`, as rows first, ... of an operand.
template <int M, int C, typename T, typename A>
__device__ void store_tile(T* to, long long stride, int first, int end, int head_size, const A (&o)[M][C], A scale) {
    const int y = threadIdx.x / SIDE, x = threadIdx.x % SIDE;
#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
        for (int j = 0; j < C; j++) {
            const int row = first + y + SIDE * i, d = x + SIDE * j;
            if (row < end && d < head_size) to[row * stride + d] = T(o[i][j] * scale);
        }
}

// ---- on tensor cores: 4 warps, each with 16 M rows of the result; fragments as in ptx.cuh --------------------------

using bf16 = __nv_bfloat16;
constexpr int WARPS = 4, THREADS = WARPS * WARP_SIZE;
constexpr float LOG2_E = 1.4426950408889634f;  // e^x = 2^(x log2 e), and 2^x is one instruction

// Chunk c (16 bytes) of a row of D numbers. ldmatrix reads one chunk of 8 neighbouring rows at once: exchanging chunks,
// by exclusive or with the row, puts those 8 in 8 different groups of 4 banks.
template <int D>
__device__ __forceinline__ bf16* chunk_at(bf16* tile, int row, int chunk) {
    const int exchange = D % 64 == 0 ? row % 8 : row / 2 % 4;
    return tile + row * D + (chunk ^ exchange) * 8;
}

// Begin to copy rows first, first + 1, ... of an operand; zeros beyond `end`.
template <int ROWS, int D>
__device__ __forceinline__ void copy_tile(bf16* tile, const bf16* from, long long stride, int first, int end) {
    constexpr int CHUNKS = D / 8;
#pragma unroll
    for (int i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
        const int row = i / CHUNKS, chunk = i % CHUNKS;
        const bool valid = first + row < end;
        cp_async16(chunk_at<D>(tile, row, chunk), from + (valid ? (first + row) * stride + chunk * 8 : 0), valid);
    }
}

// s = a b^T for the warp's 16 M rows of a, from a_row on, and the 8 N rows of b
template <int D, int M, int N>
__device__ __forceinline__ void multiply_rows(float (&s)[M][N][4], bf16* a, int a_row, bf16* b) {
    const int lane = threadIdx.x % WARP_SIZE;
#pragma unroll
    for (int i = 0; i < M * N * 4; i++) s[i / 4 / N][i / 4 % N][i % 4] = 0;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        unsigned rows[M][4], columns[4];
#pragma unroll
        for (int m = 0; m < M; m++) ldmatrix_x4(rows[m], chunk_at<D>(a, a_row + 16 * m + lane % 16, 2 * k + lane / 16));
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            ldmatrix_x4(columns, chunk_at<D>(b, 8 * n + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
            const unsigned left[2] = {columns[0], columns[1]}, right[2] = {columns[2], columns[3]};
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_m16n8k16(s[m][n], rows[m], left);
                mma_m16n8k16(s[m][n + 1], rows[m], right);
            }
        }
    }
}

// o += p b for p in registers, rounded to bfloat16, and the 8 N rows of b. The fragment of a result is, two by two, the
// fragment of an operand: p goes from one product to the next without leaving the registers.
template <int D, int M, int N>
__device__ __forceinline__ void add_product(float (&o)[M][D / 8][4], const float (&p)[M][N][4], bf16* b) {
    const int lane = threadIdx.x % WARP_SIZE;
#pragma unroll
    for (int k = 0; k < N; k += 2) {
        unsigned rows[M][4], columns[4];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float* pair = p[m][k + i / 2] + i % 2 * 2;
                rows[m][i] = pack_bf16(pair[0], pair[1]);
            }
#pragma unroll
        for (int c = 0; c < D / 8; c += 2) {
            ldmatrix_x4_trans(columns, chunk_at<D>(b, 8 * k + lane % 16, c + lane / 16));
            const unsigned left[2] = {columns[0], columns[1]}, right[2] = {columns[2], columns[3]};
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_m16n8k16(o[m][c], rows[m], left);
                mma_m16n8k16(o[m][c + 1], rows[m], right);
            }
        }
    }
}

// Which weights of a warp's 16 x 8 N fragment s dropout keeps: a bit for each that the lane holds.
__device__ __forceinline__ bool is_kept(unsigned kept, int n, int i) {
    return kept >> (i / 2 * 16 + 2 * n + i % 2) & 1;
}

// Those bits, of 16 queries from `row` on and 8 N keys. A block of the stream is 8 weights of a row, which the 4 lanes
// of a quad hold. None is drawn twice: of the N blocks of each of its two rows, g and g + 8, a lane draws every fourth,
// and the quad exchanges what it has drawn.
template <int N>
__device__ __forceinline__ unsigned kept_of_rows(const Dropout& dropout, long long row, int block) {
    const int lane = threadIdx.x % WARP_SIZE, g = lane / 4, t = lane % 4;
    unsigned drawn = 0, kept = 0;
#pragma unroll 1
    for (int i = 0; i < N / 2; i++)
        drawn |= dropout.kept(row + g + i % 2 * 8, block + i / 2 * 4 + t) << (i % 2 * 16 + i / 2 * 8);
#pragma unroll
    for (int n = 0; n < 4; n++) kept |= (__shfl_sync(FULL_WARP, drawn, n, 4) >> 2 * t & 0x03030303) << 2 * n;
    return kept;
}

// The same of the transpose, with 16 keys as rows. A block is then 8 weights of a column, which 8 lanes hold: a lane
// draws the two blocks of every 32nd column.
template <int N>
__device__ __forceinline__ unsigned kept_of_columns(const Dropout& dropout, long long row, int block) {
    const int lane = threadIdx.x % WARP_SIZE, g = lane / 4, t = lane % 4;
    unsigned drawn = 0, kept = 0;
#pragma unroll 1
    for (int i = 0; i < N / 2; i++)
        drawn |= dropout.kept(row + lane + i / 2 * 32, block + i % 2) << (i % 2 * 16 + i / 2 * 8);
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int e = 0; e < 2; e++)
            kept |= (__shfl_sync(FULL_WARP, drawn, 8 * n + 2 * t + e) >> g & 0x01010101) << (2 * n + e);
    return kept;
}

// Write the warp's rows of o as rows first, first + 1, ... of an operand, 16 bytes a thread, by way of 16 M rows of
// shared memory that only this warp uses.
template <int D, int M>
__device__ __forceinline__ void store_tile(bf16* to, long long stride, int first, int end,
                                           const float (&o)[M][D / 8][4], bf16* tile, int tile_row) {
    const int lane = threadIdx.x % WARP_SIZE, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int i = 0; i < D / 8 * 2; i++) {
            const unsigned pair = pack_bf16(o[m][i / 2][i % 2 * 2], o[m][i / 2][i % 2 * 2 + 1]);
            bf16* chunk = chunk_at<D>(tile, tile_row + 16 * m + g + i % 2 * 8, i / 2);
            *reinterpret_cast<unsigned*>(chunk + 2 * t) = pair;
        }
    __syncwarp();
#pragma unroll
    for (int i = lane; i < 16 * M * D / 8; i += WARP_SIZE) {
        const int row = i / (D / 8), chunk = i % (D / 8);
        if (first + row < end)
            store(to + (first + row) * stride + chunk * 8, load<8>(chunk_at<D>(tile, tile_row + row, chunk)));
    }
}
