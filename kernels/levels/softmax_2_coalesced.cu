// Softmax, level 2: one warp for a row, so that neighbouring threads read neighbouring numbers.
//
// Lane l has the numbers l, l + 32, ... of the row. Each lane finds the largest of its own and adds up its own; then
// the warp puts the 32 results together in five steps of shuffles, which move numbers from register to register.
//
// Shapes: x and y (rows, columns). Grid: a warp for each row, in blocks of up to 256 threads.
//
// What it costs, for 98304 rows of 1024 floats, 403 MB:
// - Transactions: a load of a warp is 128 bytes in a row, 4 sectors instead of level 1's 32 (where the row starts at a
//   multiple of 32 bytes; else 5).
// - Threads: 3.1 million, which fill the 270336 places 11.6 times over.
// - Passes: still three reads and a write, but a row is 4 KB, and the 64 rows under way on a multiprocessor are 256 KB:
//   the second and third read come from L1 or L2. What they still cost is the instructions: 3 loads for each number.
// - Exponentials: two for each number.
// - Order: each number is added to one of 32 sums of 32, not to one sum of 1024, so less is lost in rounding.
#include "common.cuh"

__global__ void __launch_bounds__(256) softmax_2_coalesced(const float* x, float* y, int rows, int columns) {
    const int row = (blockIdx.x * blockDim.x + threadIdx.x) / WARP_SIZE, lane = threadIdx.x % WARP_SIZE;
    if (row >= rows) return;  // a whole warp: its shuffles miss nobody
    x += row * columns;
    y += row * columns;
    float largest = lowest<float>();
    for (int i = lane; i < columns; i += WARP_SIZE) largest = max(largest, x[i]);
    largest = warp_max(largest);
    float sum = 0;
    for (int i = lane; i < columns; i += WARP_SIZE) sum += exp(x[i] - largest);
    sum = warp_sum(sum);
    for (int i = lane; i < columns; i += WARP_SIZE) y[i] = exp(x[i] - largest) / sum;
}

// instances: softmax_2_coalesced
