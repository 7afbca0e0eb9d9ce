// The norm of all gradients together, and the factor that clips it (Pascanu, Mikolov, Bengio 2013, arXiv:1211.5063).
//
//   norm = sqrt(sum_i g_i^2)          factor = min(1, max_norm / norm), or 1 where the norm is 0
//
// A norm of NaN gives a factor of NaN, and one of infinity 0 (times infinity, NaN), as in PyTorch: an update must not
// hide them. In double, because the square of a float need not be one: those of 10^20 and of 10^-30 are not.
//
// Two stages, so that the result depends on the gradients alone and not on who comes first:
//
//   sum_of_squares   a flat buffer (n) of gradients to one sum for each block         in double
//   clip_factor      the sums (count) of one or several buffers to the two numbers    in double
//
// Both numbers stay in device memory: adamw reads the factor there, and the host waits for neither.
//
// Grid of sum_of_squares: one block for each place of `partials`, at most 1024, as many as n alone asks for, so that
// every GPU adds in the same order. The grid's threads take pieces of 16 bytes in turn. Several buffers (of other
// options or types) leave their sums side by side in one array. clip_factor: one block. Blocks: whole warps, up to 512.
//
// Memory: n sizeof(T) bytes, each once. 124 million float gradients are 0.50 GB: at least 0.12 ms at 4.3 TB/s (H200).
//
// A faster version would have the backward pass that writes a gradient also add up its squares.
#include "rows.cuh"

template <typename T>
__global__ void __launch_bounds__(512) sum_of_squares(const T* gradients, double* partials, long long n) {
    const auto square = [](T gradient) {
        const double g = Accumulator<T>(gradient);
        return g * g;
    };
    const Threads thread;
    const long long pieces = is_aligned(gradients) ? n / VECTOR<T> : 0;
    double sum = 0;
    for (long long i = thread.number; i < pieces; i += thread.count) {
        const Vector<T, VECTOR<T>> g = load<VECTOR<T>>(gradients + i * VECTOR<T>);
#pragma unroll
        for (int k = 0; k < VECTOR<T>; k++) sum += square(g[k]);
    }
    for (long long i = pieces * VECTOR<T> + thread.number; i < n; i += thread.count)
        sum += square(gradients[i]);
    sum = block_sum(sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

template <typename A>
__global__ void __launch_bounds__(512) clip_factor(const double* partials, int count, A max_norm, A* norm, A* factor) {
    double sum = 0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) sum += partials[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        const double length = sqrt(sum);
        *norm = A(length);
        *factor = A(length == length ? min(1.0, double(max_norm) / length) : length);  // 1 / 0 is infinite
    }
}

// instances: sum_of_squares<float> sum_of_squares<double> sum_of_squares<__nv_bfloat16>
// instances: clip_factor<float> clip_factor<double>
