#include "common.cuh"

constexpr int D = 16, TILE = 32;

__global__ void __launch_bounds__(32)
    attention(const float* q, const float* k, const float* v, float* y, int tokens, float scale) {
    __shared__ float keys[TILE][D];
    __shared__ float values[TILE][D];
    const int head = blockIdx.y * tokens * D;
    const int i = blockIdx.x * TILE + threadIdx.x;
    float query[D] = {}, out[D] = {}, largest = lowest<float>(), sum = 0;
    for (int d = 0; d < D; d++)
        if (i < tokens) query[d] = q[head + i * D + d] * scale;

    for (int first = 0; first < tokens; first += TILE) {
        const int own = first + threadIdx.x;
        for (int d = 0; d < D; d++) {
            keys[threadIdx.x][d] = own < tokens ? k[head + own * D + d] : 0;
            values[threadIdx.x][d] = own < tokens ? v[head + own * D + d] : 0;
        }
        __syncthreads();
        for (int j = 0; j < min(TILE, tokens - first); j++) {
            float score = 0;
            for (int d = 0; d < D; d++) score += query[d] * keys[j][d];
            const float now = max(largest, score), factor = exp(largest - now), p = exp(score - now);
            largest = now;
            sum = sum * factor + p;
            for (int d = 0; d < D; d++) out[d] = out[d] * factor + p * values[j][d];
        }
        __syncthreads();
    }
    for (int d = 0; d < D; d++)
        if (i < tokens) y[head + i * D + d] = out[d] / sum;
}

// instances: attention
