// Generating one token at a time: attention of one query for each sequence over its cache of keys and values, and the
// product of one row, or a few, with a weight matrix.
//
//   attention    o = sum_j p_j v_j / sum_j p_j,   p_j = e^(scale q . k_j),   over the keys j < lengths[b]
//                lse = log sum_j p_j, as attention.cu has it for a backward
//   gemv         y = x W^T
//
// Shapes: q, out (B, H, D); k, v (B, G, capacity, D), query head h with kv head h / (H/G); x (rows, K), W (N, K), y
// (rows, N). All C-contiguous; D = 32, 64, 96 or 128. Computed in float (double for double), rounded once at the end.
//
// Attention in two steps, as one block for each head would leave most of a GPU idle. attention_decode: block (s, h, b)
// of 128 threads takes keys s chunk to (s + 1) chunk. A group of LANES lanes takes a key, each lane a few 16-byte
// vectors of it, and keeps its own largest score, sum and output; shared memory joins the groups.
// attention_decode_combine: block (h, b) of 128 threads joins the splits. Both in a fixed order. A sequence of length 0
// gives 0, and lse = +inf.
//
// Memory: K and V once for each query head, 2 lengths D sizeof(T) bytes; all else is small. 4 FLOPs for each
// element of K or V: bound by memory. B = 8, H = 12, D = 64, length 1024, bfloat16: 25 MB, 5.9 us at the 4.3 TB/s of an
// H200. The gemv reads W once: 768 x 3072 bfloat16 are 4.7 MB, 1.1 us.
//
// A faster version would let one block take all query heads of a group, which here read their kv head's cache again
// (from L2), keep several keys a lane under way, and join the last two steps by a counter of blocks that are done.
#include "attention.cuh"

// How a row of D numbers is spread over lanes: 16-byte vectors, so that the lanes are a power of two.
template <typename T, int D>
struct Spread {
    static constexpr int vectors = D * sizeof(T) / 16;
    static constexpr int lanes = vectors % 32 == 0 ? 32 : vectors % 16 == 0 ? 16 : vectors % 8 == 0 ? 8 : 4;
    static constexpr int each = vectors / lanes;  // vectors a lane
};

template <typename T, int D>
__global__ void __launch_bounds__(128, 1)
    attention_decode(const T* q, const T* k, const T* v, const int* lengths, Accumulator<T>* partial_out,
                     Accumulator<T>* partial_sums, int group, int chunk, long long capacity, Accumulator<T> scale) {
    using A = Accumulator<T>;
    constexpr int LANES = Spread<T, D>::lanes, EACH = Spread<T, D>::each, SIZE = VECTOR<T>, GROUPS = 128 / LANES;
    __shared__ A outs[GROUPS][D];
    __shared__ A largests[GROUPS];
    __shared__ A sums[GROUPS];
    const int split = blockIdx.x, head = blockIdx.y, batch = blockIdx.z, heads = gridDim.y;
    const int key_group = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const long long row = (long long)batch * heads + head;
    const long long cache = ((long long)batch * (heads / group) + head / group) * capacity * D;
    const int first = split * chunk, end = min(lengths[batch], first + chunk);

    A q_lane[EACH][SIZE], o[EACH][SIZE] = {}, largest = NO_SCORE, sum = 0;
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        const Vector<T, SIZE> numbers = load<SIZE>(q + row * D + (e * LANES + lane) * SIZE);
#pragma unroll
        for (int i = 0; i < SIZE; i++) q_lane[e][i] = A(numbers[i]) * scale;
    }
    for (int key0 = first; key0 < end; key0 += GROUPS) {  // the same count for all lanes of a warp
        const int key = min(key0 + key_group, end - 1);
        const bool mine = key0 + key_group < end;
        const long long from = cache + (long long)key * D;
        A score = 0;
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            const Vector<T, SIZE> numbers = load<SIZE>(k + from + (e * LANES + lane) * SIZE);
#pragma unroll
            for (int i = 0; i < SIZE; i++) score += q_lane[e][i] * A(numbers[i]);
        }
        for (int d = LANES / 2; d > 0; d /= 2) score += __shfl_xor_sync(FULL_WARP, score, d);
        const A now = mine ? max(largest, score) : largest;
        const A factor = exp(largest - now), p = mine ? exp(score - now) : A(0);
        largest = now;
        sum = sum * factor + p;
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            const Vector<T, SIZE> numbers = load<SIZE>(v + from + (e * LANES + lane) * SIZE);
#pragma unroll
            for (int i = 0; i < SIZE; i++) o[e][i] = o[e][i] * factor + p * A(numbers[i]);
        }
    }
#pragma unroll
    for (int e = 0; e < EACH; e++)
#pragma unroll
        for (int i = 0; i < SIZE; i++) outs[key_group][(e * LANES + lane) * SIZE + i] = o[e][i];
    if (lane == 0) largests[key_group] = largest, sums[key_group] = sum;
    __syncthreads();

    A block_largest = NO_SCORE, block_sum = 0, block_out = 0;
    for (int g = 0; g < GROUPS; g++) block_largest = max(block_largest, largests[g]);
    for (int g = 0; g < GROUPS; g++) {
        const A weight = exp(largests[g] - block_largest);
        block_sum += sums[g] * weight;
        if (threadIdx.x < D) block_out += outs[g][threadIdx.x] * weight;
    }
    const long long part = row * gridDim.x + split;
    if (threadIdx.x < D) partial_out[part * D + threadIdx.x] = block_out;
    if (threadIdx.x == 0) partial_sums[2 * part] = block_largest, partial_sums[2 * part + 1] = block_sum;
}

template <typename T>
__global__ void __launch_bounds__(128) attention_decode_combine(
    const Accumulator<T>* partial_out, const Accumulator<T>* partial_sums, T* out, Accumulator<T>* lse, int splits,
    int head_size) {
    using A = Accumulator<T>;
    const long long row = (long long)blockIdx.y * gridDim.x + blockIdx.x;  // of head x, item y
    const A* sums = partial_sums + row * splits * 2;
    A largest = NO_SCORE, total = 0, o = 0;
    for (int s = 0; s < splits; s++) largest = max(largest, sums[2 * s]);
    const int d = min(int(threadIdx.x), head_size - 1);
    for (int s = 0; s < splits; s++) {
        const A weight = exp(sums[2 * s] - largest);
        total += sums[2 * s + 1] * weight;
        o += partial_out[(row * splits + s) * head_size + d] * weight;
    }
    if (threadIdx.x < head_size) out[row * head_size + threadIdx.x] = T(total == 0 ? A(0) : o / total);
    if (threadIdx.x == 0) lse[row] = total == 0 ? A(1) / total : largest + log(total);  // 1 / 0 = +inf
}

template <typename T, int ROWS, int COUNT>
__device__ void gemv_output(const T* x, const T* weight, T* y, int outputs, int inner, int output) {
    using A = Accumulator<T>;
    A sum[ROWS] = {};
    for (int i = threadIdx.x % WARP_SIZE * COUNT; i < inner; i += WARP_SIZE * COUNT) {
        const Vector<T, COUNT> w = load<COUNT>(weight + (long long)output * inner + i);
#pragma unroll
        for (int row = 0; row < ROWS; row++) {
            const Vector<T, COUNT> x_row = load<COUNT>(x + (long long)row * inner + i);
#pragma unroll
            for (int e = 0; e < COUNT; e++) sum[row] += A(x_row[e]) * A(w[e]);
        }
    }
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
        const A total = warp_sum(sum[row]);
        if (threadIdx.x % WARP_SIZE == 0) y[(long long)row * outputs + output] = T(total);
    }
}

// ROWS rows of x at once, so that W is read once for all. Block: 128 threads, a warp an output; grid: outputs / 4.
template <typename T, int ROWS>
__global__ void __launch_bounds__(128) gemv(const T* x, const T* weight, T* y, int outputs, int inner) {
    const int output = blockIdx.x * 4 + threadIdx.x / WARP_SIZE;
    if (output >= outputs) return;
    if (rows_are_aligned(x, inner) && rows_are_aligned(weight, inner))
        gemv_output<T, ROWS, VECTOR<T>>(x, weight, y, outputs, inner, output);
    else
        gemv_output<T, ROWS, 1>(x, weight, y, outputs, inner, output);
}

// instances: attention_decode<float, 32> attention_decode<float, 64> attention_decode<float, 96>
// instances: attention_decode<float, 128> attention_decode_combine<float>
// instances: attention_decode<double, 32> attention_decode<double, 64> attention_decode<double, 96>
// instances: attention_decode<double, 128> attention_decode_combine<double>
// instances: attention_decode<__nv_bfloat16, 32> attention_decode<__nv_bfloat16, 64>
// instances: attention_decode_combine<__nv_bfloat16>
// instances: attention_decode<__nv_bfloat16, 96> attention_decode<__nv_bfloat16, 128>
// instances: gemv<float, 1> gemv<float, 2> gemv<float, 4> gemv<float, 8>
// instances: gemv<double, 1> gemv<double, 2> gemv<double, 4> gemv<double, 8>
// instances: gemv<__nv_bfloat16, 1> gemv<__nv_bfloat16, 2> gemv<__nv_bfloat16, 4> gemv<__nv_bfloat16, 8>
