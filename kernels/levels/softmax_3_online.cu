// Softmax, level 3: the largest number and the sum in one pass (Milakov, Gimelshein 2018, arXiv:1805.02867).
//
// The sum needs the largest number, but not the final one: s = sum_j e^(x_j - m) for the largest m so far turns into
// the sum for a larger m' by a factor,
//
//   sum_j e^(x_j - m') = e^(m - m') s
//
// so a lane carries m and s along, and two lanes put theirs together the same way. It is this step that lets attention
// work through its keys in tiles and never hold a row of scores.
//
// Shapes: x and y (rows, columns). Grid: a warp for each row, in blocks of up to 256 threads.
//
// What it costs: two reads of x instead of three. Exponentials: two for each number as before, one in each pass: of the
// two in the recurrence, e^(x - m') and e^(m - m'), one is always e^0.
#include "common.cuh"

struct Running {
    float largest, sum;  // of the numbers so far
};

// What two sets of numbers have together.
__device__ __forceinline__ Running together(Running a, Running b) {
    const float largest = max(a.largest, b.largest);
    return {largest, a.sum * exp(a.largest - largest) + b.sum * exp(b.largest - largest)};
}

__global__ void __launch_bounds__(256) softmax_3_online(const float* x, float* y, int rows, int columns) {
    const int row = (blockIdx.x * blockDim.x + threadIdx.x) / WARP_SIZE, lane = threadIdx.x % WARP_SIZE;
    if (row >= rows) return;
    x += row * columns;
    y += row * columns;
    Running all = {lowest<float>(), 0};
    for (int i = lane; i < columns; i += WARP_SIZE) {
        if (x[i] > all.largest)
            all = {x[i], all.sum * exp(all.largest - x[i]) + 1};
        else
            all.sum += exp(x[i] - all.largest);
    }
    for (int distance = WARP_SIZE / 2; distance > 0; distance /= 2) {
        const Running other = {__shfl_xor_sync(FULL_WARP, all.largest, distance),
                               __shfl_xor_sync(FULL_WARP, all.sum, distance)};
        all = together(all, other);
    }
    for (int i = lane; i < columns; i += WARP_SIZE) y[i] = exp(x[i] - all.largest) / all.sum;
}

// instances: softmax_3_online
