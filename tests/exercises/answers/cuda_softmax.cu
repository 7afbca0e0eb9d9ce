#include "common.cuh"

__global__ void __launch_bounds__(64) softmax(const float* x, float* y, int rows, int columns) {
    __shared__ float of_thread[64];
    const int t = threadIdx.x;
    x += blockIdx.x * columns;
    y += blockIdx.x * columns;

    float largest = lowest<float>();
    for (int i = t; i < columns; i += 64) largest = max(largest, x[i]);
    of_thread[t] = largest;
    __syncthreads();
    for (int i = 0; i < 64; i++) largest = max(largest, of_thread[i]);
    __syncthreads();

    float sum = 0;
    for (int i = t; i < columns; i += 64) sum += exp(x[i] - largest);
    of_thread[t] = sum;
    __syncthreads();
    float total = 0;
    for (int i = 0; i < 64; i++) total += of_thread[i];

    for (int i = t; i < columns; i += 64) y[i] = exp(x[i] - largest) / total;
}

// instances: softmax
