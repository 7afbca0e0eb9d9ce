// The CPU twins of the functions in ptx.cuh, under the same names: a warp's matrix product, the loads of its fragments,
// and asynchronous copies.
#pragma once
#include "cuda_on_cpu.h"

// The warp's fragments put together as matrices, multiplied in float, and the result given back.
static inline void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                emulate::Place place = {}) {
    struct Fragments {
        float* d;
        const unsigned *a, *b;
    } mine = {d, a, b};
    emulate::warp_operation("mma_m16n8k16", ~0u, place, mine, [](Fragments** lanes) {
        float A[16][16], B[16][8], D[16][8] = {};
        auto half_of = [](unsigned pair, int e) { return __uint_as_float(e ? pair & 0xffff0000u : pair << 16); };
        for (int lane = 0; lane < 32; lane++) {
            const int g = lane / 4, t = lane % 4;
            for (int e = 0; e < 2; e++) {
                for (int i = 0; i < 4; i++) A[g + i % 2 * 8][2 * t + i / 2 * 8 + e] = half_of(lanes[lane]->a[i], e);
                for (int i = 0; i < 2; i++) B[2 * t + i * 8 + e][g] = half_of(lanes[lane]->b[i], e);
            }
        }
        for (int row = 0; row < 16; row++)
            for (int k = 0; k < 16; k++)
                for (int column = 0; column < 8; column++) D[row][column] += A[row][k] * B[k][column];
        for (int lane = 0; lane < 32; lane++) {
            const int g = lane / 4, t = lane % 4;
            for (int i = 0; i < 4; i++) lanes[lane]->d[i] += D[g + i / 2 * 8][2 * t + i % 2];
        }
    });
}

namespace emulate {

template <int COUNT, bool TRANSPOSED>
void ldmatrix(const char* name, unsigned (&fragments)[COUNT], const void* row, Place place) {
    struct Data {
        unsigned* fragments;
        const unsigned short* row;
    } mine = {fragments, static_cast<const unsigned short*>(row)};
    if (my_lane() < 8 * COUNT) check_aligned(row, 16, "loads a matrix row", place);
    warp_operation(name, ~0u, place, mine, [](Data** lanes) {
        for (int lane = 0; lane < WARP; lane++) {
            for (int matrix = 0; matrix < COUNT; matrix++) {
                unsigned short pair[2];
                for (int e = 0; e < 2; e++) {
                    const int one = lane / 4, other = 2 * (lane % 4) + e;
                    const int row = TRANSPOSED ? other : one, column = TRANSPOSED ? one : other;
                    pair[e] = lanes[8 * matrix + row]->row[column];
                }
                memcpy(&lanes[lane]->fragments[matrix], pair, sizeof pair);
            }
        }
    });
}

}  // namespace emulate

static inline void ldmatrix_x2(unsigned (&fragments)[2], const void* row, emulate::Place place = {}) {
    emulate::ldmatrix<2, false>("ldmatrix_x2", fragments, row, place);
}
static inline void ldmatrix_x2_trans(unsigned (&fragments)[2], const void* row, emulate::Place place = {}) {
    emulate::ldmatrix<2, true>("ldmatrix_x2_trans", fragments, row, place);
}
static inline void ldmatrix_x4(unsigned (&fragments)[4], const void* row, emulate::Place place = {}) {
    emulate::ldmatrix<4, false>("ldmatrix_x4", fragments, row, place);
}
static inline void ldmatrix_x4_trans(unsigned (&fragments)[4], const void* row, emulate::Place place = {}) {
    emulate::ldmatrix<4, true>("ldmatrix_x4_trans", fragments, row, place);
}

// A copy is made at once, or not before the wait that asks for it: a kernel must be right either way. Waiting too
// little shows when copies are late, overwriting what others still read shows when they are early.
static inline void cp_async16(void* to, const void* from, bool valid = true, emulate::Place place = {}) {
    static const unsigned char zeros[16] = {};
    emulate::check_aligned(to, 16, "copies 16 bytes to shared memory", place);
    emulate::check_aligned(from, 16, "copies 16 bytes from global memory", place);
    emulate::Copy copy = {to, valid ? from : zeros, emulate::current->copy_group};
    if (emulate::launched->settings.copies == emulate::EAGER) {
        memcpy(copy.to, copy.from, 16);
    } else {
        emulate::current->copies.push_back(copy);
    }
}

static inline void cp_async_commit() { emulate::current->copy_group++; }

template <int IN_FLIGHT>
void cp_async_wait() {
    auto& copies = emulate::current->copies;
    const int due = emulate::current->copy_group - IN_FLIGHT;
    auto copy = copies.begin();
    for (; copy != copies.end() && copy->group < due; copy++) memcpy(copy->to, copy->from, 16);
    copies.erase(copies.begin(), copy);
}

static inline float exp2_approx(float x) { return std::exp2(x); }
