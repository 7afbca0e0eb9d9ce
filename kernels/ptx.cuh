// The instructions for which CUDA C++ has no name. This is the only file with inline PTX; the twins of these functions
// for a CPU are in emulator/tensor_core.h. Source: PTX ISA 8.7, 9.7.14 (matrix multiply) and 9.7.9.25 (cp.async).
//
// ldmatrix needs sm_75; cp.async and the bfloat16 mma need sm_80. All 32 lanes call ldmatrix and mma together.
#pragma once
#include "common.cuh"

#ifdef MINILLM_EMULATE
#include "emulator/tensor_core.h"
#else

// PTX addresses shared memory by an offset of 32 bits.
__device__ __forceinline__ unsigned shared_address(const void* p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

// d (16 x 8, float) += a (16 x 16, bfloat16) b (16 x 8, bfloat16). With g = lane / 4 and t = lane % 4, a lane holds, a
// pair of neighbours in each unsigned, the lower index in the lower half,
//   a[0] a(g, 2t)     a[1] a(g+8, 2t)     a[2] a(g, 2t+8)     a[3] a(g+8, 2t+8)       and the next column
//   b[0] b(2t, g)     b[1] b(2t+8, g)                                                 and the next row
//   d[0] d(g, 2t)     d[1] d(g, 2t+1)     d[2] d(g+8, 2t)     d[3] d(g+8, 2t+1)
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Load 2 or 4 matrices of 8 x 8 16-bit numbers from shared memory. Lane 8 m + i brings the address of row i of matrix
// m, a multiple of 16 bytes (lanes beyond the last row bring any); lane l receives in fragments[m] the pair of matrix m
// at row l / 4, columns 2 (l % 4) and the next. With _trans, that of the transposed matrix.
__device__ __forceinline__ void ldmatrix_x2(unsigned (&fragments)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(fragments[0]), "=r"(fragments[1])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x2_trans(unsigned (&fragments)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(fragments[0]), "=r"(fragments[1])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x4(unsigned (&fragments)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(fragments[0]), "=r"(fragments[1]), "=r"(fragments[2]), "=r"(fragments[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&fragments)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(fragments[0]), "=r"(fragments[1]), "=r"(fragments[2]), "=r"(fragments[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Begin to copy 16 bytes from global to shared memory, both aligned to 16, without passing through registers; or fill
// them with zeros where not `valid` (`from` must still be an address in the array).
__device__ __forceinline__ void cp_async16(void* to, const void* from, bool valid = true) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(valid ? 16 : 0)
                 : "memory");
}
// This thread's copies since the last commit become a group; waiting leaves at most the last IN_FLIGHT groups under
// way. What other threads have copied is there after their wait and a __syncthreads.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int IN_FLIGHT>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(IN_FLIGHT) : "memory");
}

// 2^x to 2 units in the last place, in one instruction.
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#endif
