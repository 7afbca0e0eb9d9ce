// Softmax, level 4: the row stays in registers, and moves 16 bytes at a time.
//
// A register cannot be indexed by a number that is known only when the kernel runs. So the row's length is a template
// parameter, the loops are unrolled, and a lane's COLUMNS / 32 numbers become as many registers: x is read once, and
// the three loops of the formula are back, at no cost in memory. e^(x - m), too, is computed once, kept, and scaled.
//
// Shapes: x and y (rows, COLUMNS), COLUMNS a multiple of 128; both start at a multiple of 16 bytes. Grid: a warp for
// each row, in blocks of up to 256 threads.
//
// What it costs, for 98304 rows of 1024 floats, 403 MB:
// - Passes: one read and one write, 0.81 GB: the floor of 0.19 ms at 4.3 TB/s (H200).
// - Instructions: a load brings 4 numbers of each lane, so that a warp needs 8 for its row, where level 3 needs 64.
//   All 8 are under way before the first is needed: more bytes in flight is what hides the time that memory takes.
// - Exponentials: one for each number, and one division a row.
// - Registers: 32 for the row. At 4096 columns it would be 128, and fewer warps would fit on a multiprocessor; beyond
//   some 6000 a row no longer fits in a warp, and a block has to share it.
//
// kernels/softmax.cu keeps the two passes of level 3, with 16-byte loads, for rows of any length.
#include "common.cuh"

template <int COLUMNS>
__global__ void __launch_bounds__(256) softmax_4_registers(const float* x, float* y, int rows) {
    constexpr int PIECES = COLUMNS / (4 * WARP_SIZE);
    const int row = (blockIdx.x * blockDim.x + threadIdx.x) / WARP_SIZE, lane = threadIdx.x % WARP_SIZE;
    if (row >= rows) return;
    x += row * COLUMNS;
    y += row * COLUMNS;
    Vector<float, 4> e[PIECES];
#pragma unroll
    for (int i = 0; i < PIECES; i++) e[i] = load<4>(x + (i * WARP_SIZE + lane) * 4);
    float largest = lowest<float>();
#pragma unroll
    for (int i = 0; i < PIECES; i++)
#pragma unroll
        for (int k = 0; k < 4; k++) largest = max(largest, e[i][k]);
    largest = warp_max(largest);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < PIECES; i++)
#pragma unroll
        for (int k = 0; k < 4; k++) sum += e[i][k] = exp(e[i][k] - largest);
    const float scale = 1 / warp_sum(sum);
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
#pragma unroll
        for (int k = 0; k < 4; k++) e[i][k] *= scale;
        store(y + (i * WARP_SIZE + lane) * 4, e[i]);
    }
}

// instances: softmax_4_registers<128> softmax_4_registers<1024> softmax_4_registers<2048>
