// Attention, level 2 of 4: the softmax while the keys go by, so that no score is ever stored.
//
//   for each key j:   s = scale q . k_j,   m' = max(m, s),   p = e^(s - m')
//                     l = l e^(m - m') + p,   o = o e^(m - m') + p v_j
//   at the end:       o / l
//
// Whenever the largest score m so far grows, what was summed against the old one is multiplied by e^(m - m'): the
// result is that of the three passes (Milakov and Gimelshein 2018; Rabe and Staats 2021).
//
// Shapes: q, k, v, out (heads, T, 64), C-contiguous float, causal. A thread has a query: q and o, 128 numbers, in
// registers. Grid: (T / 64 rounded up, heads), 64 threads.
//
// Counted: no T^2 in memory, and half the work of level 1, as keys beyond the query are not visited. Of K and V each
// number is loaded by every thread, the same one by all of a warp at once: T^2 / 2 x 512 bytes a head asked of L1 for 4
// x 64 operations each, one load for two operations. Level 1 had two.
//
// The reason to go on: a load for every multiplication-and-addition still, each waited for in turn; and only T / 64
// blocks of 2 warps for a head: at T = 1024, 96 heads, 11 blocks on each of 132 multiprocessors.
#include "common.cuh"

constexpr int D = 64, QUERIES = 64;

__global__ void __launch_bounds__(64, 1)
    attention_2_online(const float* q, const float* k, const float* v, float* out, int tokens, float scale) {
    const long long first = (long long)blockIdx.y * tokens * D;  // of this head
    const int i = blockIdx.x * QUERIES + threadIdx.x;
    if (i >= tokens) return;
    float q_i[D], o[D], largest = lowest<float>(), sum = 0;
#pragma unroll
    for (int d = 0; d < D; d++) q_i[d] = q[first + (long long)i * D + d] * scale, o[d] = 0;
    for (int j = 0; j <= i; j++) {
        const float *k_j = k + first + (long long)j * D, *v_j = v + first + (long long)j * D;
        float score = 0;
#pragma unroll
        for (int d = 0; d < D; d++) score += q_i[d] * k_j[d];
        const float now = max(largest, score), factor = exp(largest - now), p = exp(score - now);
        largest = now;
        sum = sum * factor + p;
#pragma unroll
        for (int d = 0; d < D; d++) o[d] = o[d] * factor + p * v_j[d];
    }
#pragma unroll
    for (int d = 0; d < D; d++) out[first + (long long)i * D + d] = o[d] / sum;
}

// instances: attention_2_online
