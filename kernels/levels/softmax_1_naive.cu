// Softmax, level 1: one thread for a row, written as the formula reads.
//
//   y_i = e^(x_i - m) / s          m = max_j x_j,  s = sum_j e^(x_j - m)
//
// Shapes: x and y (rows, columns). Grid: as many threads as rows, in blocks of up to 256.
//
// What it costs, for 98304 rows of 1024 floats (the scores of 8 x 12 heads at T = 1024), 403 MB:
// - Passes: x is read three times and y written once. Nothing keeps 403 MB, so that is 1.61 GB where 0.81 GB, at least
//   0.19 ms at 4.3 TB/s (H200), would do.
// - Transactions: memory is moved in sectors of 32 bytes. The 32 threads of a warp run in step, and read numbers that
//   lie a row apart: one load of 128 useful bytes touches 32 sectors, 1024 bytes, where 4 would do. The other 7 numbers
//   of each sector are for the thread's next 7 loads, if a cache still has them then.
// - Threads: 98304, of the 270336 that 132 multiprocessors hold.
#include "common.cuh"

__global__ void __launch_bounds__(256) softmax_1_naive(const float* x, float* y, int rows, int columns) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    x += row * columns;
    y += row * columns;
    float largest = lowest<float>();
    for (int i = 0; i < columns; i++) largest = max(largest, x[i]);
    float sum = 0;
    for (int i = 0; i < columns; i++) sum += exp(x[i] - largest);
    for (int i = 0; i < columns; i++) y[i] = exp(x[i] - largest) / sum;
}

// instances: softmax_1_naive
