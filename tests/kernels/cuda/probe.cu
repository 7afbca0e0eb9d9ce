// Small kernels that show one thing each of what a kernel can do.
#include "common.cuh"
#include "ptx.cuh"

// Who am I, in a grid and a block of three dimensions: the number of the thread in the whole launch, and its parts.
__global__ void indices(unsigned* out) {
    const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    unsigned* mine = out + (block * blockDim.x * blockDim.y * blockDim.z + thread) * 6;
    mine[0] = blockIdx.x, mine[1] = blockIdx.y, mine[2] = blockIdx.z;
    mine[3] = threadIdx.x, mine[4] = threadIdx.y, mine[5] = threadIdx.z;
}

// All four shuffles of one warp, a row of 32 for each.
template <typename T>
__global__ void shuffles(const T* x, T* out, int delta, int width) {
    const int lane = threadIdx.x;
    const T mine = x[lane];
    out[lane] = __shfl_sync(FULL_WARP, mine, delta, width);
    out[32 + lane] = __shfl_up_sync(FULL_WARP, mine, delta, width);
    out[64 + lane] = __shfl_down_sync(FULL_WARP, mine, delta, width);
    out[96 + lane] = __shfl_xor_sync(FULL_WARP, mine, delta, width);
}

// Votes among the lanes of a mask, while the others do their own.
__global__ void votes(const int* holds, unsigned* out, unsigned mask) {
    const int lane = threadIdx.x;
    const unsigned mine = mask >> lane & 1 ? mask : ~mask;
    out[lane] = __ballot_sync(mine, holds[lane]);
    out[32 + lane] = __any_sync(mine, holds[lane]);
    out[64 + lane] = __all_sync(mine, holds[lane]);
}

template <typename T>
__global__ void add_all(const T* x, T* sum, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) atomicAdd(sum, x[i]);
}

// largest: the largest of x; held: the first of x to come; last: the one that came last, and seen what each replaced.
__global__ void other_atomics(const int* x, int* largest, int* held, int* last, int* seen) {
    atomicMax(largest, x[threadIdx.x]);
    atomicCAS(held, -1, x[threadIdx.x]);
    seen[threadIdx.x] = atomicExch(last, x[threadIdx.x]);
}

__global__ void to_bf16(const float* x, __nv_bfloat16* rounded, float* back, int count) {
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        rounded[i] = __nv_bfloat16(x[i]);
        back[i] = float(rounded[i]);
    }
}

__global__ void to_half(const float* x, __half* rounded, float* back, int count) {
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        rounded[i] = __half(x[i]);
        back[i] = float(rounded[i]);
    }
}

__global__ void pack(const float* x, unsigned* out) {
    out[threadIdx.x] = pack_bf16(x[2 * threadIdx.x], x[2 * threadIdx.x + 1]);
}

__global__ void products(const unsigned long long* x, unsigned long long* out) {
    const unsigned long long a = x[threadIdx.x], b = x[threadIdx.x + 1];
    out[3 * threadIdx.x] = __umul64hi(a, b);
    out[3 * threadIdx.x + 1] = __umulhi(static_cast<unsigned>(a), static_cast<unsigned>(b));
    const int bits = __popcll(a) + 100 * __popc(static_cast<unsigned>(a));
    out[3 * threadIdx.x + 2] = bits + 10000 * __clz(static_cast<int>(a >> 40)) + 1000000 * __ffs(static_cast<int>(a));
}

__global__ void functions(const float* x, float* out, int count) {
    const int i = threadIdx.x;
    if (i >= count) return;
    out[i] = __expf(x[i]);
    out[count + i] = rsqrtf(x[i]);
    out[2 * count + i] = fmaxf(x[i], 1.0f);
    out[3 * count + i] = __fdividef(x[i], 3.0f);
    out[4 * count + i] = exp2_approx(x[i]);
    out[5 * count + i] = __logf(x[i]);
    out[6 * count + i] = max(x[i], __int_as_float(0x7fffffff)) + min(x[i], 2.0f);  // NaN gives way
    out[7 * count + i] = tanh(x[i]) + __sinf(x[i]) * __cosf(x[i]) + __powf(x[i], 1.5f);
}

// What a block finds in its shared memory before it writes there.
__global__ void found_in_shared(float* out) {
    extern __shared__ float dynamic[];
    __shared__ float array[4][8];
    __shared__ double number;
    float* mine = out + blockIdx.x * 3;
    if (threadIdx.x == 0) {
        mine[0] = dynamic[31], mine[1] = array[3][7], mine[2] = static_cast<float>(number);
    }
    __syncthreads();
    dynamic[threadIdx.x] = array[threadIdx.x / 8][threadIdx.x % 8] = 1.0f;
    number = 1.0;
}

// The turn of each thread: first until the barrier, then after it.
__global__ void turns(int* ticket, int* out) {
    out[threadIdx.x] = atomicAdd(ticket, 1);
    __syncthreads();
    out[blockDim.x + threadIdx.x] = atomicAdd(ticket, 1);
}

template <typename T>
__global__ void reductions(const T* x, Accumulator<T>* out) {
    using A = Accumulator<T>;
    const A mine = A(x[blockIdx.x * blockDim.x + threadIdx.x]);
    const A sum = block_sum(mine), largest = block_max(mine), again = block_sum(-mine);
    A* to = out + (blockIdx.x * blockDim.x + threadIdx.x) * 3;
    to[0] = sum, to[1] = largest, to[2] = again;
}

// One thread copies a row through cp.async, 16 bytes at a time, and looks at it after a wait that leaves some to come.
// A template only so that it is not compiled for sm_75 with the others.
template <int GROUPS>
__global__ void copies(const int* x, int* waited, int* all, int* zeros) {
    extern __shared__ __align__(16) int row[];
    for (int i = 0; i < GROUPS; i++) {
        cp_async16(row + 4 * i, x + 4 * i);
        cp_async_commit();
    }
    cp_async_wait<1>();
    for (int i = 0; i < 4 * GROUPS; i++) waited[i] = row[i];
    cp_async_wait<0>();
    for (int i = 0; i < 4 * GROUPS; i++) all[i] = row[i];
    cp_async16(row, x, false);
    cp_async_commit();
    cp_async_wait<0>();
    for (int i = 0; i < 4; i++) zeros[i] = row[i];
}

// Each lane fills its place and reads its neighbour's.
__global__ void neighbours(const int* x, int* out) {
    __shared__ int places[32];
    places[threadIdx.x] = x[threadIdx.x];
    __syncwarp();
    out[threadIdx.x] = places[(threadIdx.x + 1) % 32] - places[(threadIdx.x + 31) % 32];
}

// A place to stop in: gdb prints the locals of one thread of one block.
__global__ void stop_here(const float* x, float* out) {
    __shared__ float doubled[64];
    const float mine = x[blockIdx.x * 64 + threadIdx.x];
    doubled[threadIdx.x] = 2 * mine;
    __syncthreads();
    const float reversed = doubled[63 - threadIdx.x];
    out[blockIdx.x * 64 + threadIdx.x] = reversed + mine;
}

// instances: indices shuffles<int> shuffles<double> votes add_all<float> add_all<double> add_all<int> other_atomics
// instances: to_bf16 to_half pack products functions
// instances: found_in_shared turns neighbours stop_here
// instances: reductions<float> reductions<double> reductions<__nv_bfloat16> reductions<__half>
// instances sm_80: copies<3>
