// The sigmoid linear unit, alone and as a gate.
//
//   silu     y = x s                 s = 1 / (1 + e^-x)
//            y' = s (1 + x (1 - s))
//   swiglu   y = silu(gate) up
//            dgate = dy up silu'(gate),  dup = dy silu(gate)
//
// The kernels of silu are those of activation.cuh. The arrays of swiglu have any `count` of elements each; its grid is
// any: thread after thread takes 16 bytes of each array.
//
// Memory: swiglu forward moves 3 numbers for each element, backward 5: for 65536 rows of 2048 bfloat16, 187 us and 312
// us at 4.3 TB/s (H200). Arithmetic: one exponential and one division each way.
//
// A faster version would read gate and up from the two halves of one matrix product's rows, where a single product can
// make both.
#include "activation.cuh"

struct Silu {
    template <typename A>
    static __device__ __forceinline__ A logistic(A x) {
        return reciprocal(1 + exp(-x));
    }
    template <typename A>
    static __device__ __forceinline__ A value(A x) {
        return x < -FAR ? A(0) : x * logistic(x);
    }
    template <typename A>
    static __device__ __forceinline__ A slope(A x) {
        if (x > FAR || x < -FAR) return A(x > 0);
        const A s = logistic(x);
        return s * (1 + x * (1 - s));
    }
};

template <int COUNT, typename T>
__device__ void swiglu_forward_from(const T* __restrict__ gate, const T* __restrict__ up, T* __restrict__ y,
                                    long long first, long long count) {
    using A = Accumulator<T>;
    const Threads threads;
    for (long long i = first + threads.number * COUNT; i + COUNT <= count; i += threads.count * COUNT) {
        const Vector<T, COUNT> gate_i = load<COUNT>(gate + i), up_i = load<COUNT>(up + i);
        Vector<T, COUNT> y_i;
#pragma unroll
        for (int k = 0; k < COUNT; k++) y_i[k] = T(Silu::value(A(gate_i[k])) * A(up_i[k]));
        store(y + i, y_i);
    }
}

template <typename T>
__global__ void __launch_bounds__(512) swiglu_forward(const T* gate, const T* up, T* y, long long count) {
    const bool aligned = is_aligned(gate) && is_aligned(up) && is_aligned(y);
    const long long in_vectors = aligned ? count / TAKEN<T> * TAKEN<T> : 0;
    swiglu_forward_from<TAKEN<T>>(gate, up, y, 0, in_vectors);
    swiglu_forward_from<1>(gate, up, y, in_vectors, count);
}

template <int COUNT, typename T>
__device__ void swiglu_backward_from(const T* __restrict__ dy, const T* __restrict__ gate, const T* __restrict__ up,
                                     T* __restrict__ dgate, T* __restrict__ dup, long long first, long long count) {
    using A = Accumulator<T>;
    const Threads threads;
    for (long long i = first + threads.number * COUNT; i + COUNT <= count; i += threads.count * COUNT) {
        const Vector<T, COUNT> dy_i = load<COUNT>(dy + i), gate_i = load<COUNT>(gate + i), up_i = load<COUNT>(up + i);
        Vector<T, COUNT> dgate_i, dup_i;
#pragma unroll
        for (int k = 0; k < COUNT; k++) {
            const A dy_k = A(dy_i[k]), x = A(gate_i[k]);
            dgate_i[k] = T(dy_k * A(up_i[k]) * Silu::slope(x));
            dup_i[k] = T(dy_k * Silu::value(x));
        }
        store(dgate + i, dgate_i);
        store(dup + i, dup_i);
    }
}

template <typename T>
__global__ void __launch_bounds__(512)
    swiglu_backward(const T* dy, const T* gate, const T* up, T* dgate, T* dup, long long count) {
    const bool aligned = is_aligned(dy) && is_aligned(gate) && is_aligned(up) && is_aligned(dgate) && is_aligned(dup);
    const long long in_vectors = aligned ? count / TAKEN<T> * TAKEN<T> : 0;
    swiglu_backward_from<TAKEN<T>>(dy, gate, up, dgate, dup, 0, in_vectors);
    swiglu_backward_from<1>(dy, gate, up, dgate, dup, in_vectors, count);
}

// instances: activation_forward<float, Silu> activation_backward<float, Silu>
// instances: activation_forward<double, Silu> activation_backward<double, Silu>
// instances: activation_forward<__nv_bfloat16, Silu> activation_backward<__nv_bfloat16, Silu>
// instances: swiglu_forward<float> swiglu_backward<float>
// instances: swiglu_forward<double> swiglu_backward<double>
// instances: swiglu_forward<__nv_bfloat16> swiglu_backward<__nv_bfloat16>
