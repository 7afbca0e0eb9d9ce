// Attention, level 4 of 4: both products on tensor cores.
//
// A warp has 16 queries. mma.m16n8k16 multiplies fragments of Q and K that ldmatrix has brought from shared memory; S
// comes out as a fragment of 16 x 8 floats, whose pairs are laid out exactly as the operand of the next product wants
// them: P is rounded to bfloat16 and goes into P V without leaving the registers.
//
// Shapes: q, k, v, out (heads, T, 64), C-contiguous bfloat16, addresses multiples of 16 bytes, causal. 4 warps a block.
// Grid: (T / 64 rounded up, heads). Products are added in float.
//
// Counted: a product of 4096 operations needs a fragment of K or V, 256 bytes of shared memory, and one instruction of
// a warp; level 3 needs 64 instructions of a warp for that, and 4.6 KB. A chunk (16 bytes) of row r is stored at place
// c ^ (r % 8): as rows are 128 bytes, ldmatrix would otherwise find the 8 chunks that it reads at once in the same 4
// banks, 8 times slower.
//
// What attention_bf16.cu adds: the next tile arrives through cp.async while this one is used; two fragments of rows a
// warp, so that a fragment of K serves twice; other head sizes, strides, padding, grouped heads; the backward.
#include "ptx.cuh"

using bf16 = __nv_bfloat16;
constexpr int D = 64, ROWS = 64;  // of a tile of queries or keys
constexpr float LOG2_E = 1.4426950408889634f;

__device__ bf16* chunk_at(bf16* tile, int row, int chunk) { return tile + row * D + (chunk ^ row % 8) * 8; }

__device__ void load_tile(bf16* tile, const bf16* from, int first, int tokens) {
    for (int i = threadIdx.x; i < ROWS * D / 8; i += 128) {
        const int row = i / (D / 8), chunk = i % (D / 8);
        const bool valid = first + row < tokens;
        cp_async16(chunk_at(tile, row, chunk), from + (valid ? (long long)(first + row) * D + chunk * 8 : 0), valid);
    }
}

__global__ void __launch_bounds__(128, 1) attention_4_tensor_cores(
    const __nv_bfloat16* q, const __nv_bfloat16* k, const __nv_bfloat16* v, __nv_bfloat16* out, int tokens,
    float scale) {
    __shared__ __align__(128) __nv_bfloat16 q_tile[ROWS * D];
    __shared__ __align__(128) __nv_bfloat16 k_tile[ROWS * D];
    __shared__ __align__(128) __nv_bfloat16 v_tile[ROWS * D];
    const int warp = threadIdx.x / WARP_SIZE, lane = threadIdx.x % WARP_SIZE, g = lane / 4, t = lane % 4;
    const int first = blockIdx.x * ROWS, warp_row = warp * 16;
    const long long head = (long long)blockIdx.y * tokens * D;
    load_tile(q_tile, q + head, first, tokens);
    float o[D / 8][4] = {}, largest[2] = {-1e30f, -1e30f}, sum[2] = {};

    for (int key = 0; key < min(tokens, first + ROWS); key += ROWS) {
        __syncthreads();  // all have used the tiles before
        load_tile(k_tile, k + head, key, tokens);
        load_tile(v_tile, v + head, key, tokens);
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();  // Q, K and V are there
        float s[ROWS / 8][4] = {};
#pragma unroll
        for (int d = 0; d < D / 16; d++) {
            unsigned rows[4], columns[4];
            ldmatrix_x4(rows, chunk_at(q_tile, warp_row + lane % 16, 2 * d + lane / 16));
#pragma unroll
            for (int n = 0; n < ROWS / 8; n += 2) {
                ldmatrix_x4(columns, chunk_at(k_tile, 8 * n + lane / 16 * 8 + lane % 8, 2 * d + lane / 8 % 2));
                mma_m16n8k16(s[n], rows, {columns[0], columns[1]});
                mma_m16n8k16(s[n + 1], rows, {columns[2], columns[3]});
            }
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {  // the rows g and g + 8 of the fragment
            const int row = first + warp_row + g + 8 * h;
            float now = largest[h];
#pragma unroll
            for (int i = 0; i < ROWS / 4; i++) {
                float& score = s[i / 2][2 * h + i % 2];
                score = key + i / 2 * 8 + 2 * t + i % 2 <= row ? score * scale * LOG2_E : lowest<float>();
                now = max(now, score);
            }
            now = max(now, __shfl_xor_sync(FULL_WARP, now, 1));  // the 4 lanes of a row
            now = max(now, __shfl_xor_sync(FULL_WARP, now, 2));
            const float factor = exp2_approx(largest[h] - now);
            largest[h] = now;
            sum[h] *= factor;
#pragma unroll
            for (int i = 0; i < ROWS / 4; i++) {
                float& p = s[i / 2][2 * h + i % 2];
                p = exp2_approx(p - now);
                sum[h] += p;
            }
#pragma unroll
            for (int i = 0; i < D / 4; i++) o[i / 2][2 * h + i % 2] *= factor;
        }
#pragma unroll
        for (int n = 0; n < ROWS / 16; n++) {
            const float *left = s[2 * n], *right = s[2 * n + 1];
            const unsigned p[4] = {pack_bf16(left[0], left[1]), pack_bf16(left[2], left[3]),
                                   pack_bf16(right[0], right[1]), pack_bf16(right[2], right[3])};
            unsigned columns[4];
#pragma unroll
            for (int c = 0; c < D / 8; c += 2) {
                ldmatrix_x4_trans(columns, chunk_at(v_tile, 16 * n + lane % 16, c + lane / 16));
                mma_m16n8k16(o[c], p, {columns[0], columns[1]});
                mma_m16n8k16(o[c + 1], p, {columns[2], columns[3]});
            }
        }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int row = first + warp_row + g + 8 * h;
        sum[h] += __shfl_xor_sync(FULL_WARP, sum[h], 1);
        sum[h] += __shfl_xor_sync(FULL_WARP, sum[h], 2);
        for (int c = 0; c < D / 8 && row < tokens; c++)
            *reinterpret_cast<unsigned*>(out + head + (long long)row * D + c * 8 + 2 * t) =
                pack_bf16(o[c][2 * h] / sum[h], o[c][2 * h + 1] / sum[h]);
    }
}

// instances sm_80: attention_4_tensor_cores
