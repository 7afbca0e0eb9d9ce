// The numbers of philox.cuh as they are: `blocks` times 8, from block `counter` of the seed's stream on.
#include "philox.cuh"

__global__ void philox_numbers(unsigned* numbers, int blocks, unsigned long long seed_low, unsigned long long seed_high,
                               unsigned long long counter) {
    const int block = blockIdx.x * blockDim.x + threadIdx.x;
    if (block >= blocks) return;
    unsigned drawn[PHILOX_NUMBERS];
    philox_block({seed_low, seed_high}, counter + block, drawn);
    for (int i = 0; i < PHILOX_NUMBERS; i++) numbers[block * PHILOX_NUMBERS + i] = drawn[i];
}

// instances: philox_numbers
