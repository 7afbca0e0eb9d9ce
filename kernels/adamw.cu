// AdamW: one step of Adam with decoupled weight decay (Loshchilov, Hutter 2017, arXiv:1711.05101, algorithm 2), on flat
// buffers of n numbers that hold all parameters of a group one after another.
//
//   g  = clip_factor gradient
//   m += (1 - b1) (g - m)                                   v += (1 - b2) (g^2 - v)       (see `moved`)
//   w  = w (1 - lr weight_decay) - step_size m / (sqrt(v) unbias + eps)
//
// with step_size = lr / (1 - b1^t) and unbias = 1 / sqrt(1 - b2^t), where t counts the gradients that a parameter has
// had, this one included. One launch is for parameters of equal t that lie side by side: in the usual case all of a
// buffer; where some had no gradient at some steps, optim/flat.py cuts it. What all parameters share comes as the
// numbers that are multiplied by (rest1 = 1 - b1, rest2 = 1 - b2, keep = 1 - lr weight_decay), made in double on the
// host: in float, 1 - 0.999 has lost three of its seven digits. The clip factor is read from device memory, where
// global_norm.cu has put it.
//
// weights and gradients are T; masters, m and v are Accumulator<T>. For bfloat16 the masters are the weights as the
// optimiser knows them, and `weights` is the rounded copy that the model computes with: a change of less than 2^-9 of a
// weight, as most are, would be lost in a bfloat16. A master that does not round to its weight gives way to it: then
// somebody has written to the weight since, or the masters are new. For float and double the weights are their own
// masters: pass that array twice.
//
// Grid: any number of blocks, whose threads take pieces of 16 bytes of the masters in turn. Block: up to 256 threads.
// Buffers that do not start at a multiple of 16 bytes (bfloat16: of 8) go one number at a time.
//
// Memory: 28 bytes a float parameter (weight, gradient, m, v read; weight, m, v written), 30 a bfloat16 one (4 + 12
// read, 2 + 12 written). 124 million take 3.5 or 3.7 GB, at least 0.81 or 0.87 ms at 4.3 TB/s (H200), behind which a
// square root and a division each are hidden.
//
// A faster version has to move less: moments of 8 bits, or a gradient that is used where it is made.
#include "rows.cuh"

// What all parameters share in one step.
template <typename A>
struct Step {
    A clip, rest1, rest2, unbias, eps, step_size, keep;
};

// mean + rest (value - mean). With a rest above 1/2 the sum begins with the value: with a rest of 1, rounding would
// otherwise leave a part of a large mean, or nothing of a small value.
template <typename A>
__device__ __forceinline__ A moved(A mean, A value, A rest) {
    return rest > A(0.5) ? value + (1 - rest) * (mean - value) : mean + rest * (value - mean);
}

template <typename T, int COUNT>
__device__ __forceinline__ void update(T* weights, const T* gradients, Accumulator<T>* masters, Accumulator<T>* m,
                                       Accumulator<T>* v, const Step<Accumulator<T>>& step) {
    using A = Accumulator<T>;
    constexpr bool HAS_MASTERS = sizeof(T) < sizeof(A);
    const Vector<T, COUNT> gradient = load<COUNT>(gradients);
    Vector<T, COUNT> weight;
    if constexpr (HAS_MASTERS) weight = load<COUNT>(weights);
    Vector<A, COUNT> w = load<COUNT>(masters), mean = load<COUNT>(m), square = load<COUNT>(v);
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        if constexpr (HAS_MASTERS)
            if (A(weight[k]) != A(T(w[k]))) w[k] = A(weight[k]);
        const A g = step.clip * A(gradient[k]);
        mean[k] = moved(mean[k], g, step.rest1);
        square[k] = moved(square[k], g * g, step.rest2);
        w[k] = w[k] * step.keep - step.step_size * (mean[k] / (sqrt(square[k]) * step.unbias + step.eps));
        weight[k] = T(w[k]);
    }
    store(masters, w);
    store(m, mean);
    store(v, square);
    if constexpr (HAS_MASTERS) store(weights, weight);
}

template <typename T>
__global__ void __launch_bounds__(256)
    adamw(T* weights, const T* gradients, Accumulator<T>* masters, Accumulator<T>* m, Accumulator<T>* v,
          const Accumulator<T>* clip_factor, long long n, Accumulator<T> rest1, Accumulator<T> rest2,
          Accumulator<T> unbias, Accumulator<T> eps, Accumulator<T> step_size, Accumulator<T> keep) {
    using A = Accumulator<T>;
    constexpr int COUNT = VECTOR<A>;
    const Step<A> step = {*clip_factor, rest1, rest2, unbias, eps, step_size, keep};
    const Threads thread;
    auto aligned = [](const auto* p) { return reinterpret_cast<unsigned long long>(p) % (COUNT * sizeof(*p)) == 0; };
    const bool all = aligned(weights) && aligned(gradients) && aligned(masters) && aligned(m) && aligned(v);
    const long long pieces = all ? n / COUNT : 0;
    for (long long i = thread.number * COUNT; i < pieces * COUNT; i += thread.count * COUNT)
        update<T, COUNT>(weights + i, gradients + i, masters + i, m + i, v + i, step);
    for (long long i = pieces * COUNT + thread.number; i < n; i += thread.count)
        update<T, 1>(weights + i, gradients + i, masters + i, m + i, v + i, step);
}

// instances: adamw<float> adamw<double> adamw<__nv_bfloat16>
