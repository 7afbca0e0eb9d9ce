// The Gaussian error linear unit, y = x Phi(x), in its two forms; the kernels are those of activation.cuh.
//
//   erf    y = x cdf        cdf = Phi(x) = (1 + erf(x / sqrt 2)) / 2
//          y' = cdf + x pdf        pdf = phi(x) = e^(-x^2/2) / sqrt(2 pi)
//   tanh   y = x cdf        cdf = (1 + tanh u) / 2,   u = sqrt(2/pi) (x + 0.044715 x^3)
//
// The tanh form is computed without a tanh: (1 + tanh u) / 2 is the logistic function of 2u, so
//
//          y = x s        s = 1 / (1 + e^(-2u))
//          y' = s + x s (1 - s) 2u'
//
// which takes one exponential and one division, and has no 1 + tanh u to cancel where x is far below zero.
//
// Memory: 65536 rows of 3072 bfloat16 (a GPT-2 block at 64 x 1024 tokens) take at least 187 us forward and 281 us
// backward at 4.3 TB/s (H200). Arithmetic: in the time in which the bytes of an element come and go, the GPU can issue
// 27 instructions for it forward, 41 backward. The tanh form compiles to 19 and 31 (sm_90), the erf form to 31 and 46:
// there, arithmetic sets the pace, some 10% slower than memory would.
//
// A faster version would be part of the matrix product before it, whose results are at hand in registers; or, for
// bfloat16, would take exp and erf to 8 bits with fewer instructions.
#include "activation.cuh"

struct GeluTanh {
    template <typename A>
    static __device__ __forceinline__ A power(A x, A square) {  // e^(-2u)
        return exp(-2 * x * (A(0.7978845608028654) + A(0.7978845608028654 * 0.044715) * square));
    }
    template <typename A>
    static __device__ __forceinline__ A value(A x) {
        return x < -FAR ? A(0) : x * reciprocal(1 + power(x, x * x));
    }
    template <typename A>
    static __device__ __forceinline__ A slope(A x) {
        if (x > FAR || x < -FAR) return A(x > 0);
        const A square = x * x, e = power(x, square), s = reciprocal(1 + e);
        const A rest = x > 0 ? e * s : 1 - s;  // 1 - s: as a difference where s is small, where e may be infinite
        const A du = A(0.7978845608028654) + A(3 * 0.7978845608028654 * 0.044715) * square;
        return s + x * s * rest * (2 * du);
    }
};

struct GeluErf {
    template <typename A>
    static __device__ __forceinline__ A distribution(A x) {
        return A(0.5) * (1 + erf(x * A(0.7071067811865476)));
    }
    template <typename A>
    static __device__ __forceinline__ A value(A x) {
        return x < -FAR ? A(0) : x * distribution(x);
    }
    template <typename A>
    static __device__ __forceinline__ A slope(A x) {
        if (x > FAR || x < -FAR) return A(x > 0);
        return distribution(x) + x * (A(0.3989422804014327) * exp(A(-0.5) * x * x));
    }
};

// instances: activation_forward<float, GeluTanh> activation_backward<float, GeluTanh>
// instances: activation_forward<float, GeluErf> activation_backward<float, GeluErf>
// instances: activation_forward<double, GeluTanh> activation_backward<double, GeluTanh>
// instances: activation_forward<double, GeluErf> activation_backward<double, GeluErf>
// instances: activation_forward<__nv_bfloat16, GeluTanh> activation_backward<__nv_bfloat16, GeluTanh>
// instances: activation_forward<__nv_bfloat16, GeluErf> activation_backward<__nv_bfloat16, GeluErf>
// instances: bias_activation_forward<float, GeluTanh> bias_activation_backward<float, GeluTanh>
// instances: bias_activation_forward<float, GeluErf> bias_activation_backward<float, GeluErf>
// instances: bias_activation_forward<double, GeluTanh> bias_activation_backward<double, GeluTanh>
// instances: bias_activation_forward<double, GeluErf> bias_activation_backward<double, GeluErf>
// instances: bias_activation_forward<__nv_bfloat16, GeluTanh> bias_activation_backward<__nv_bfloat16, GeluTanh>
// instances: bias_activation_forward<__nv_bfloat16, GeluErf> bias_activation_backward<__nv_bfloat16, GeluErf>
