// Attention, level 1 of 4: three passes over the scores, which lie in device memory.
//
//   S = scale Q K^T,   P = softmax(S) by rows,   O = P V       causal: query i sees the keys j <= i
//
// Shapes: q, k, v, out (heads, T, 64), scores (heads, T, T), C-contiguous float. One thread computes one number of S or
// O; one warp one row of P. Grid: scores (T / 256 rounded up, T, heads), softmax (T, heads), product (T, heads) with 64
// threads.
//
// The reason to go on: S and P are written twice and read twice, 16 T^2 bytes a head with S and P in one place; q, k, v
// and out are 1024 T bytes. At T = 1024 that is 16 times as much, and it grows with T: for 96 heads 1.6 GB, 0.38 ms of
// an H200's 4.3 TB/s, where all inputs and outputs take 0.02 ms. And no number is used twice once it is loaded: 2 loads
// for each multiplication.
#include "common.cuh"

constexpr int D = 64;

__global__ void __launch_bounds__(256)
    attention_1_scores(const float* q, const float* k, float* scores, int tokens, float scale) {
    const int i = blockIdx.y, j = blockIdx.x * 256 + threadIdx.x;
    const long long head = blockIdx.z;
    if (j >= tokens) return;
    float dot = 0;
    for (int d = 0; d < D; d++) dot += q[(head * tokens + i) * D + d] * k[(head * tokens + j) * D + d];
    scores[(head * tokens + i) * tokens + j] = j <= i ? dot * scale : lowest<float>();
}

__global__ void __launch_bounds__(32) attention_1_softmax(float* scores, int tokens) {
    float* row = scores + ((long long)blockIdx.y * tokens + blockIdx.x) * tokens;
    float largest = lowest<float>(), sum = 0;
    for (int j = threadIdx.x; j < tokens; j += WARP_SIZE) largest = max(largest, row[j]);
    largest = warp_max(largest);
    for (int j = threadIdx.x; j < tokens; j += WARP_SIZE) sum += exp(row[j] - largest);
    sum = warp_sum(sum);
    for (int j = threadIdx.x; j < tokens; j += WARP_SIZE) row[j] = exp(row[j] - largest) / sum;
}

__global__ void __launch_bounds__(64)
    attention_1_product(const float* scores, const float* v, float* out, int tokens) {
    const long long head = blockIdx.y, i = blockIdx.x;
    const int d = threadIdx.x;
    float sum = 0;
    for (int j = 0; j < tokens; j++) sum += scores[(head * tokens + i) * tokens + j] * v[(head * tokens + j) * D + d];
    out[(head * tokens + i) * D + d] = sum;
}

// instances: attention_1_scores attention_1_softmax attention_1_product
