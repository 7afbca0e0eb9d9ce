// Rotary position embedding: each pair of channels is turned by the angle of its position, or back.
//
//   forward    y1 = x1 cos - x2 sin,   y2 = x1 sin + x2 cos
//   backward   dx1 = dy1 cos + dy2 sin,   dx2 = -dy1 sin + dy2 cos
//
// The backward turns back, as a rotation's transpose is its inverse: `direction` = -1 flips the sign of sin.
//
// Shapes: x, y (rows, 2 pairs), row r being at position r % length; cos, sin (length, pairs), of type Accumulator<T>. y
// may be x. Pair i is, by layout,
//
//   HALF          channels i and i + pairs
//   INTERLEAVED   channels 2i and 2i + 1
//
// Grid: any number of blocks. Block: (threads for the pairs of a row, threads for rows), up to 512 in all; pairs
// divided by 16 / sizeof(Accumulator<T>) gives every thread 16 bytes of each table.
//
// Memory: x once in, y once out: for the queries and keys of 64 x 1024 tokens with 12 heads of 64, in bfloat16, 403 MB,
// 94 us at 4.3 TB/s (H200). The tables are read again for each head, from cache. Arithmetic: 4 multiplications a pair.
//
// A faster version is none at all: attention's kernel can turn queries and keys as it loads them.
#include "rows.cuh"

enum Layout { HALF, INTERLEAVED };

template <typename T>
__device__ __forceinline__ void turn(T& x1, T& x2, Accumulator<T> cos, Accumulator<T> sin) {
    using A = Accumulator<T>;
    const A y1 = A(x1) * cos - A(x2) * sin, y2 = A(x1) * sin + A(x2) * cos;
    x1 = T(y1);
    x2 = T(y2);
}

// Each thread takes PAIRS pairs at a time. Loads come before stores, thread by thread, so that y may be x.
template <Layout LAYOUT, int PAIRS, typename T>
__device__ void turn_rows(const T* x, const Accumulator<T>* __restrict__ cos, const Accumulator<T>* __restrict__ sin,
                          T* y, long long rows, int length, int pairs, Accumulator<T> direction) {
    using A = Accumulator<T>;
    const long long first_row = static_cast<long long>(blockIdx.x) * blockDim.y + threadIdx.y;
    const long long step = static_cast<long long>(gridDim.x) * blockDim.y;
    const int position_step = static_cast<int>(step % length);  // a division of 64-bit numbers is slow: one is enough
    int position = static_cast<int>(first_row % length);
    for (long long row = first_row; row < rows; row += step) {
        const T* x_row = x + row * 2 * pairs;
        T* y_row = y + row * 2 * pairs;
        for (int pair = threadIdx.x * PAIRS; pair < pairs; pair += blockDim.x * PAIRS) {
            const long long angle = static_cast<long long>(position) * pairs + pair;
            const Vector<A, PAIRS> c = load<PAIRS>(cos + angle), s = load<PAIRS>(sin + angle);
            if constexpr (LAYOUT == INTERLEAVED && PAIRS > 1) {  // whole pairs, side by side
                Vector<T, 2 * PAIRS> v = load<2 * PAIRS>(x_row + 2 * pair);
#pragma unroll
                for (int k = 0; k < PAIRS; k++) turn(v[2 * k], v[2 * k + 1], c[k], direction * s[k]);
                store(y_row + 2 * pair, v);
            } else {
                const int i1 = LAYOUT == HALF ? pair : 2 * pair, i2 = LAYOUT == HALF ? pair + pairs : 2 * pair + 1;
                Vector<T, PAIRS> v1 = load<PAIRS>(x_row + i1), v2 = load<PAIRS>(x_row + i2);
#pragma unroll
                for (int k = 0; k < PAIRS; k++) turn(v1[k], v2[k], c[k], direction * s[k]);
                store(y_row + i1, v1);
                store(y_row + i2, v2);
            }
        }
        position += position_step;
        if (position >= length) position -= length;
    }
}

template <typename T, Layout LAYOUT>
__global__ void __launch_bounds__(512) rope(const T* x, const Accumulator<T>* cos, const Accumulator<T>* sin, T* y,
                                            long long rows, int length, int pairs, Accumulator<T> direction) {
    // 16 bytes of each table for HALF; of x, which then holds both channels of its pairs, for INTERLEAVED.
    constexpr int PAIRS = LAYOUT == HALF ? VECTOR<Accumulator<T>> : VECTOR<T> / 2;
    if (pairs % PAIRS == 0 && is_aligned(x) && is_aligned(y) && is_aligned(cos) && is_aligned(sin))
        turn_rows<LAYOUT, PAIRS>(x, cos, sin, y, rows, length, pairs, direction);
    else
        turn_rows<LAYOUT, 1>(x, cos, sin, y, rows, length, pairs, direction);
}

// instances: rope<float, HALF> rope<float, INTERLEAVED>
// instances: rope<double, HALF> rope<double, INTERLEAVED>
// instances: rope<__nv_bfloat16, HALF> rope<__nv_bfloat16, INTERLEAVED>
