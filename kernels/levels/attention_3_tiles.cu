// Attention, level 3 of 4: tiles in shared memory, and more than one result a thread (Dao et al. 2022,
// "FlashAttention").
//
// A block keeps 64 queries. It loads 32 keys, makes a tile of 64 x 32 scores, takes the softmax one tile further (the
// largest score, the sum and the output of each query, as in level 2, but once a tile), loads the 32 values, and adds P
// V.
//
// Shapes: q, k, v, out (heads, T, 64), C-contiguous float, causal. 256 threads as 16 x 16: thread (y, x) has the scores
// of rows y + 16 i and columns x + 16 j, i < 4, j < 2, and the outputs of those rows, columns x + 16 j, j < 4. Grid: (T
// / 64 rounded up, heads).
//
// Counted: a number of K or V is loaded from memory once for 64 queries, T^2 / 64 / 2 x 512 bytes a head: 1/64 of level
// 2. From shared memory a thread reads 4 + 2 numbers for 8 multiplications to make S, and 4 + 4 for 16 to add P V: 0.58
// loads for each, against 1. Rows are 65 or 33 numbers apart, so that 16 threads reading 16 rows meet 16 banks.
//
// The reason to go on: 128 multiplications a cycle are all that the float units of a multiprocessor do, 67 TFLOP/s on
// an H200; its tensor cores do 989 in bfloat16.
#include "common.cuh"

constexpr int D = 64, QUERIES = 64, KEYS = 32, SIDE = 16;

template <int ROWS>
__device__ void load_tile(float (*tile)[D + 1], const float* from, int first, int tokens) {
    for (int i = threadIdx.x; i < ROWS * D; i += SIDE * SIDE)
        tile[i / D][i % D] = first + i / D < tokens ? from[(long long)first * D + i] : 0;
}

__global__ void __launch_bounds__(256, 1)
    attention_3_tiles(const float* q, const float* k, const float* v, float* out, int tokens, float scale) {
    __shared__ float q_tile[QUERIES][D + 1];
    __shared__ float kv_tile[KEYS][D + 1];  // K, then V
    __shared__ float p_tile[QUERIES][KEYS + 1];
    const int y = threadIdx.x / SIDE, x = threadIdx.x % SIDE;
    const int first = blockIdx.x * QUERIES;
    const long long head = (long long)blockIdx.y * tokens * D;
    load_tile<QUERIES>(q_tile, q + head, first, tokens);
    float o[4][4] = {}, largest[4], sum[4] = {};
    for (int i = 0; i < 4; i++) largest[i] = -1e30f;

    for (int key = 0; key < min(tokens, first + QUERIES); key += KEYS) {
        __syncthreads();  // all have used V and P of the tile before
        load_tile<KEYS>(kv_tile, k + head, key, tokens);
        __syncthreads();  // Q and K are there
        float s[4][2] = {};
        for (int d = 0; d < D; d++)
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 2; j++) s[i][j] += q_tile[y + SIDE * i][d] * kv_tile[x + SIDE * j][d];
        __syncthreads();  // all have used K: V takes its place
        load_tile<KEYS>(kv_tile, v + head, key, tokens);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = first + y + SIDE * i;
            float now = largest[i];
#pragma unroll
            for (int j = 0; j < 2; j++) {
                s[i][j] = key + x + SIDE * j <= row ? s[i][j] * scale : lowest<float>();
                now = max(now, s[i][j]);
            }
            for (int d = SIDE / 2; d > 0; d /= 2) now = max(now, __shfl_xor_sync(FULL_WARP, now, d));
            const float factor = exp(largest[i] - now);
            largest[i] = now;
            sum[i] *= factor;
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const float p = exp(s[i][j] - now);
                p_tile[y + SIDE * i][x + SIDE * j] = p;
                sum[i] += p;
            }
#pragma unroll
            for (int j = 0; j < 4; j++) o[i][j] *= factor;
        }
        __syncthreads();  // P and V are there
        for (int n = 0; n < KEYS; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) o[i][j] += p_tile[y + SIDE * i][n] * kv_tile[n][x + SIDE * j];
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        for (int d = SIDE / 2; d > 0; d /= 2) sum[i] += __shfl_xor_sync(FULL_WARP, sum[i], d);
        const int row = first + y + SIDE * i;
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (row < tokens) out[head + (long long)row * D + x + SIDE * j] = o[i][j] / sum[i];
    }
}

// instances: attention_3_tiles
