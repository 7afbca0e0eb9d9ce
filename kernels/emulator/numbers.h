// CUDA's numbers on a CPU: vector types, the 16-bit floating types, and the arithmetic functions that kernels call.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

// ---- vector types ----------------------------------------------------------------------------------------------

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define MINILLM_VECTOR_TYPES(T, NAME)                                                        \
    struct alignas(2 * sizeof(T)) NAME##2 {                                                  \
        T x, y;                                                                              \
    };                                                                                       \
    struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) NAME##4 {                        \
        T x, y, z, w;                                                                        \
    };                                                                                       \
    static inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }                        \
    static inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }
MINILLM_VECTOR_TYPES(float, float)
MINILLM_VECTOR_TYPES(double, double)
MINILLM_VECTOR_TYPES(int, int)
MINILLM_VECTOR_TYPES(unsigned, uint)
MINILLM_VECTOR_TYPES(unsigned short, ushort)
#undef MINILLM_VECTOR_TYPES

// ---- the same bits, read as another type -------------------------------------------------------------------------

namespace emulate {
template <class To, class From>
To bits(From value) {
    static_assert(sizeof(To) == sizeof(From), "the same bits need the same size");
    To result;
    memcpy(&result, &value, sizeof result);
    return result;
}
}  // namespace emulate

static inline unsigned __float_as_uint(float x) { return emulate::bits<unsigned>(x); }
static inline int __float_as_int(float x) { return emulate::bits<int>(x); }
static inline float __uint_as_float(unsigned x) { return emulate::bits<float>(x); }
static inline float __int_as_float(int x) { return emulate::bits<float>(x); }
static inline long long __double_as_longlong(double x) { return emulate::bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return emulate::bits<double>(x); }

// ---- 16-bit floating types: numbers to keep, not to compute with ---------------------------------------------------
// Conversions are explicit, and there is no arithmetic: a kernel converts to float, computes, and rounds once.

// The upper half of a float: 8 bits of exponent, 7 of mantissa.
struct __nv_bfloat16 {
    uint16_t bits;

    __nv_bfloat16() = default;
    explicit __nv_bfloat16(float value) {
        const uint32_t wide = __float_as_uint(value);
        // To the nearest: add just less than half of the last place that stays, or half where that place is odd.
        bits = std::isnan(value) ? 0x7fff : static_cast<uint16_t>((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
    }
    explicit __nv_bfloat16(double value) : __nv_bfloat16(static_cast<float>(value)) {}
    explicit operator float() const { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }
};

// IEEE half: 5 bits of exponent, 10 of mantissa.
struct __half {
    uint16_t bits;

    __half() = default;
    explicit __half(float value) {
        const uint32_t wide = __float_as_uint(value), sign = wide >> 16 & 0x8000;
        const float magnitude = std::fabs(value);
        if (std::isnan(value)) {
            bits = 0x7fff;
        } else if (magnitude >= 65520.0f) {  // halfway from the largest half to the next power of two
            bits = static_cast<uint16_t>(sign | 0x7c00);
        } else if (magnitude < 0x1p-14f) {  // subnormal: a multiple of 2^-24, to which this sum rounds
            const float rounded = magnitude + 0.5f;
            bits = static_cast<uint16_t>(sign | (__float_as_uint(rounded) - __float_as_uint(0.5f)));
        } else {  // as above, with 13 bits to drop and the exponent's bias changed from 127 to 15
            const uint32_t rounded = (wide & 0x7fffffff) + 0xfff + (wide >> 13 & 1);
            bits = static_cast<uint16_t>(sign | ((rounded >> 13) - ((127 - 15) << 10)));
        }
    }
    explicit operator float() const {
        const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, magnitude = bits & 0x7fff;
        if (magnitude >= 0x7c00) return __uint_as_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
        const float value = magnitude < 0x400 ? static_cast<float>(magnitude) * 0x1p-24f
                                              : __uint_as_float((magnitude << 13) + ((127 - 15) << 23));
        return __uint_as_float(__float_as_uint(value) | sign);
    }
};
using half = __half;

struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
struct alignas(4) __half2 {
    __half x, y;
};

static inline float __bfloat162float(__nv_bfloat16 x) { return static_cast<float>(x); }
static inline __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16(x); }
static inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__nv_bfloat16(x), __nv_bfloat16(y)}; }
static inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {static_cast<float>(v.x), static_cast<float>(v.y)}; }
static inline float __half2float(__half x) { return static_cast<float>(x); }
static inline __half __float2half(float x) { return __half(x); }

// ---- arithmetic ------------------------------------------------------------------------------------------------

using std::abs, std::ceil, std::cos, std::erf, std::exp, std::exp2, std::expm1, std::floor, std::fma, std::isfinite,
    std::isinf, std::isnan, std::log, std::log1p, std::log2, std::pow, std::sin, std::sqrt, std::tanh;

static inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
static inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
static inline float rsqrt(float x) { return rsqrtf(x); }

// CUDA's min and max of floating numbers are fmin and fmax: a NaN gives way to the other.
template <class T>
T max(T a, T b) {
    if constexpr (std::is_floating_point_v<T>) return std::fmax(a, b);
    return a < b ? b : a;
}
template <class T>
T min(T a, T b) {
    if constexpr (std::is_floating_point_v<T>) return std::fmin(a, b);
    return b < a ? b : a;
}

// The fast ones are exact here; on a GPU they are not. Macros, because glibc declares some of these names for itself.
#define __expf expf
#define __exp10f exp10f
#define __logf logf
#define __log2f log2f
#define __sinf sinf
#define __cosf cosf
#define __powf powf
static inline float __fdividef(float x, float y) { return x / y; }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __frsqrt_rn(float x) { return rsqrtf(x); }
static inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
static inline float __fadd_rn(float x, float y) { return x + y; }
static inline float __fmul_rn(float x, float y) { return x * y; }
static inline float __saturatef(float x) { return std::fmin(std::fmax(x, 0.0f), 1.0f); }

static inline unsigned __umulhi(unsigned x, unsigned y) { return static_cast<uint64_t>(x) * y >> 32; }
static inline int __mulhi(int x, int y) { return static_cast<int>(static_cast<int64_t>(x) * y >> 32); }
static inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(x) * y >> 64);
}
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }

static inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
static inline int __float2int_rz(float x) { return static_cast<int>(x); }
static inline float __int2float_rn(int x) { return static_cast<float>(x); }
static inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }

// Loads and stores that only advise the cache.
template <class T>
T __ldg(const T* p) {
    return *p;
}
template <class T>
T __ldcs(const T* p) {
    return *p;
}
template <class T>
void __stcs(T* p, T value) {
    *p = value;
}
template <class T>
void __stwb(T* p, T value) {
    *p = value;
}
