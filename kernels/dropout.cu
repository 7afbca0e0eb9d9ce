// Dropout, and its backward, which is the same kernel applied to the gradient.
//
//   y_i = m_i x_i       m_i = scale where the i-th random number is at least p 2^32, and else 0;  scale = 1 / (1 - p)
//
// Shapes: x and y any `count` of numbers. The numbers are those of philox.cuh from block `counter` on, less the first
// `skip` (0 to 7), which belong to what lies before x in a larger array. They are the same as minillm/random.py makes
// on a CPU, and are made again in the backward: no mask is ever stored.
//
// Grid: any. A thread makes one block of 8 numbers at a time, for 8 elements: 16 bytes of bfloat16, 32 of float. Blocks
// that elements share with others (skip > 0) do not begin at 16 bytes, so their elements are moved one by one.
//
// Memory: 2 numbers for each element: 47 us at 4.3 TB/s (H200) for 65536 rows of 768 bfloat16. Arithmetic: ten rounds
// of two 64 x 64-bit products, which a GPU makes of 32-bit ones, and the rest come to 28 instructions for each element
// of bfloat16 (sm_90); the GPU can issue 27 in the time in which its bytes come and go. So neither hides behind the
// other entirely, and copy bandwidth is out of reach for bfloat16, though not for float.
//
// A faster version would use Philox4x32, half of the work, and lose NumPy's stream; or be part of a kernel that waits
// for memory anyway, such as the residual addition before a layer norm.
#include "philox.cuh"
#include "rows.cuh"

// The elements `begin` to `end` of a block of random numbers, COUNT at a time; `y` may be `x`.
template <int COUNT, typename T>
__device__ __forceinline__ void drop(const T* x, T* y, const unsigned (&numbers)[PHILOX_NUMBERS], unsigned threshold,
                                     Accumulator<T> scale, int begin, int end) {
    using A = Accumulator<T>;
#pragma unroll
    for (int first = 0; first < PHILOX_NUMBERS; first += COUNT) {
        if (first < begin) continue;
        if (first >= end) break;
        Vector<T, COUNT> v = load<COUNT>(x + first);
#pragma unroll
        for (int k = 0; k < COUNT; k++) v[k] = T(A(v[k]) * (numbers[first + k] >= threshold ? scale : A(0)));
        store(y + first, v);
    }
}

template <typename T>
__global__ void __launch_bounds__(512)
    dropout(const T* x, T* y, long long count, unsigned long long seed_low, unsigned long long seed_high,
            unsigned long long counter, int skip, unsigned threshold, Accumulator<T> scale) {
    const bool aligned = is_aligned(x) && is_aligned(y) && skip == 0;
    const Threads threads;
    for (long long block = threads.number; block * PHILOX_NUMBERS - skip < count; block += threads.count) {
        const long long first = block * PHILOX_NUMBERS - skip;  // the element of the block's first number
        unsigned numbers[PHILOX_NUMBERS];
        philox_block({seed_low, seed_high}, counter + block, numbers);
        if (aligned && first + PHILOX_NUMBERS <= count)
            drop<VECTOR<T>>(x + first, y + first, numbers, threshold, scale, 0, PHILOX_NUMBERS);
        else
            drop<1>(x + first, y + first, numbers, threshold, scale, first < 0 ? skip : 0,
                    static_cast<int>(min(count - first, 8LL)));
    }
}

// instances: dropout<float> dropout<double> dropout<__nv_bfloat16>
