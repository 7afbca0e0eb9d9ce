// Random bits by counter: Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), to the bit
// the numbers of minillm/random.py and of np.random.Philox(key=seed).
//
// Block b of a stream, b = 0, 1, ..., is the cipher of the counter b + 1: four 64-bit words, each two 32-bit numbers,
// the low half first. Any block can be made at any time, by any thread, so nothing random is ever kept.
#pragma once
#include "common.cuh"

constexpr int PHILOX_NUMBERS = 8;  // of 32 bits, in a block

struct PhiloxKey {
    unsigned long long low, high;  // the seed
};

__device__ __forceinline__ void philox_block(PhiloxKey key, unsigned long long block,
                                             unsigned (&numbers)[PHILOX_NUMBERS]) {
    unsigned long long words[4] = {block + 1, 0, 0, 0};  // the counter, below 2^64
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const unsigned long long a = 0xD2E7470EE14C6C93, b = 0xCA5A826395121157;
        const unsigned long long a_high = __umul64hi(a, words[0]), a_low = a * words[0];
        const unsigned long long b_high = __umul64hi(b, words[2]), b_low = b * words[2];
        words[0] = b_high ^ words[1] ^ key.low;
        words[1] = b_low;
        words[2] = a_high ^ words[3] ^ key.high;
        words[3] = a_low;
        key.low += 0x9E3779B97F4A7C15;   // the golden ratio less 1, times 2^64
        key.high += 0xBB67AE8584CAA73B;  // the square root of 3 less 1, times 2^64
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        numbers[2 * i] = static_cast<unsigned>(words[i]);
        numbers[2 * i + 1] = static_cast<unsigned>(words[i] >> 32);
    }
}
