// Kernels that break a rule, each in its own way; every launch must end with an error that names the thread.
#include "common.cuh"
#include "ptx.cuh"

__global__ void divergent_barrier(int* out) {
    if (threadIdx.x < 32) __syncthreads();
    out[threadIdx.x] = 1;
    if (threadIdx.x >= 32) __syncthreads();
}

__global__ void missing_thread(int* out) {
    if (blockIdx.x == 2 && threadIdx.x == 5) return;
    __syncthreads();
    out[threadIdx.x] = 1;
}

__global__ void returned_lane(int* out) {
    if (threadIdx.x == 7) return;
    out[threadIdx.x] = __shfl_xor_sync(FULL_WARP, static_cast<int>(threadIdx.x), 1);
}

__global__ void own_lane_left_out(int* out) {
    out[threadIdx.x] = __shfl_sync(0x7fffffffu, static_cast<int>(threadIdx.x), 0);
}

__global__ void lane_outside_mask(int* out) {
    if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xffffu, static_cast<int>(threadIdx.x), 20);
}

__global__ void different_masks(int* out) {
    const unsigned mask = threadIdx.x < 16 ? 0xffffu : 0xffffffffu;
    out[threadIdx.x] = __shfl_xor_sync(mask, static_cast<int>(threadIdx.x), 1);
}

__global__ void different_operations(int* out) {
    if (threadIdx.x == 3)
        out[threadIdx.x] = __ballot_sync(FULL_WARP, 1);
    else
        out[threadIdx.x] = __shfl_sync(FULL_WARP, static_cast<int>(threadIdx.x), 0);
}

__global__ void bad_width(int* out) { out[threadIdx.x] = __shfl_sync(FULL_WARP, static_cast<int>(threadIdx.x), 0, 12); }

__global__ void barrier_against_shuffle(int* out) {
    if (threadIdx.x == 0) __syncthreads();
    out[threadIdx.x] = __shfl_sync(FULL_WARP, static_cast<int>(threadIdx.x), 0);
}

__global__ void shared_out_of_range(int* out) {
    extern __shared__ int memory[];
    memory[threadIdx.x + 1] = 1;  // 32 numbers, and the last thread writes the 33rd
    out[threadIdx.x] = memory[threadIdx.x + 1];
}

__global__ void wild_pointer(int* out) {
    if (blockIdx.y == 1 && threadIdx.x == 9) out = nullptr;
    *out = 1;
}

__global__ void divided_by_zero(int* out) {
    out[threadIdx.x] = 1000 / (static_cast<int>(threadIdx.x) - 4 + out[threadIdx.x]);
}

__device__ __noinline__ int deeper(volatile int* out, int depth) {
    volatile int room[1024];
    room[depth % 1024] = depth;
    return depth > 1000000 ? 0 : deeper(out, depth + 1) + room[depth % 1024] + out[0];
}
__global__ void endless_recursion(int* out) { out[threadIdx.x] = deeper(out, threadIdx.x); }

__global__ void misaligned_vector(int* out) { store(out + 1, load<4>(out + threadIdx.x)); }

__global__ void misaligned_copy(int* out) {
    extern __shared__ __align__(16) int memory[];
    cp_async16(memory + 2, out);
}

// instances: divergent_barrier missing_thread returned_lane own_lane_left_out lane_outside_mask different_masks
// instances: different_operations bad_width barrier_against_shuffle shared_out_of_range wild_pointer divided_by_zero
// instances: endless_recursion misaligned_vector
// instances sm_80: misaligned_copy
