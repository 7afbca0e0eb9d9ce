// Attention, forward and backward, a tile at a time (Dao 2023, "FlashAttention-2", arXiv:2307.08691).
//
//   forward    S = scale Q K^T,  P_ij = e^(S_ij - lse_i),  lse_i = log sum_j e^(S_ij),  Y = (M P) V
//   backward   delta_i = dY_i . Y_i,   dS_ij = P_ij (dP_ij - delta_i),   dP = M (dY V^T)
//              dV = (M P)^T dY,   dK = scale dS^T Q,   dQ = scale dS K
//
// as minillm/ops/attention.py derives it; Y is `out` here, and dY `dout`. M is 1, or with DROPOUT the mask: `rescale` =
// 1 / (1 - p) where the number of the random stream is at least `threshold` = p 2^32, else 0. Each row of P begins a new
// block of the stream, the first at block `counter`. The rows of a batch item are followed by `elsewhere` blocks, for
// heads that other GPUs have. The mask is never stored: every kernel draws it again.
//
// Shapes: q, out, dout, dq (B, H, Tq, D); k, v, dk, dv (B, G, Tk, D), query head h with kv head h / (H/G); lse and
// delta (B, H, Tq), in float (double for double). Any order in memory: `strides` has those of all operands, in the order
// of the arguments (attention.cuh); rows of D are contiguous. Query i of item b sees the keys j < lengths[b] (but Tk at
// most) and, if causal, j <= i + Tk - Tq. A query that sees none gives 0, lse = +inf, and no gradient. scale > 0.
//
// Nothing of size Tq x Tk is stored. A block keeps a tile of queries, walks along the keys, and keeps for each query
// the largest score, the sum and the output so far, multiplied by e^(old largest - new) when the largest grows. The
// backward makes P again from lse. Tiles that no query sees are never begun, which halves the work where it is causal.
//
// Deterministic: each result is summed by one thread in one order. dK and dV come from blocks that keep keys and walk
// along the queries of all heads of their group; dQ from blocks that keep queries and walk along the keys. S and dP are
// so computed twice: 7 products backward, where one kernel that adds into dQ atomically, in any order, needs 5.
//
// This is the plain version: T is float, double or bfloat16, any D up to 128 (padded to a multiple of 32 in shared
// memory), any strides; computed in float (double for double). attention_bf16.cu is the same on tensor cores.
//
// Grid: (tiles of queries or keys, heads, B), with H heads forward and for dQ, G for dK and dV. Block: 256 threads.
//
// Work: 4 B H Tq Tk D FLOPs forward, 14 backward, half of it where it is causal. Memory: each operand once, and K
// and V (or Q and dY) again for every block, from L2. For B H = 96, T = 1024, D = 64, causal, float: 12.9 GFLOP
// forward, 0.19 ms at the 67 TFLOP/s of an H200, against 24 us to move 4 x 25 MB at 4.3 TB/s; backward 0.67 ms. Shared
// memory sets a nearer bound: forward, a thread reads 6 numbers for 8 multiplications to make S and 6 to 12 for 8 to 32
// of P V. Dropout adds about 30 instructions for each weight, once forward and twice backward; see attention_bf16.cu.
//
// A faster version would give a thread 8 x 8 results, and read 16 bytes of shared memory at a time.
#include "attention.cuh"

template <typename T, int D, bool DROPOUT>
__global__ void __launch_bounds__(256, 1) attention_forward(
    const T* q, const T* k, const T* v, const int* lengths, Accumulator<T>* lse, T* out, int queries, int keys,
    int head_size, int group, bool causal, Accumulator<T> scale, unsigned long long seed_low,
    unsigned long long seed_high, unsigned long long counter, unsigned long long elsewhere, unsigned threshold,
    Accumulator<T> rescale, Strides<4> strides) {
    using A = Accumulator<T>;
    constexpr int QUERIES = 256 / sizeof(A), KEYS = 128 / sizeof(A), M = QUERIES / SIDE, N = KEYS / SIDE;
    extern __shared__ __align__(16) unsigned char memory[];
    auto* q_tile = reinterpret_cast<A(*)[D + 1]>(memory);
    auto* kv_tile = q_tile + QUERIES;
    auto* p_tile = reinterpret_cast<A(*)[KEYS + 1]>(kv_tile + KEYS);
    const int y = threadIdx.x / SIDE, x = threadIdx.x % SIDE, head = blockIdx.y, batch = blockIdx.z;
    const int first = (gridDim.x - 1 - blockIdx.x) * QUERIES;  // the blocks with most keys begin first
    const Visible visible = {min(lengths[batch], keys), keys - queries, causal};
    q += strides.head(Q, batch, head);
    k += strides.head(K, batch, head / group);
    v += strides.head(V, batch, head / group);
    const Dropout dropout = {{seed_low, seed_high}, counter + batch * elsewhere, (keys + 7) / 8, threshold};
    const long long row0 = ((long long)batch * gridDim.y + head) * queries;
    load_tile<QUERIES, D>(q_tile, q, strides.row(Q), first, queries, head_size);

    A o[M][D / SIDE] = {}, largest[M], sum[M] = {};
    for (int i = 0; i < M; i++) largest[i] = NO_SCORE;
    const int end = visible.end(min(first + QUERIES, queries) - 1);
    for (int key = 0; key < end; key += KEYS) {
        __syncthreads();  // all have used V and P of the tile before
        load_tile<KEYS, D>(kv_tile, k, strides.row(K), key, end, head_size);
        if (DROPOUT) draw_mask<QUERIES, KEYS>(p_tile[0], KEYS + 1, 1, dropout, row0 + first, key / 8, rescale);
        __syncthreads();  // Q and K are there, and the mask where P will be
        A s[M][N];
        multiply_rows<D>(s, q_tile, kv_tile);
        __syncthreads();  // all have used K: V takes its place
        load_tile<KEYS, D>(kv_tile, v, strides.row(V), key, end, head_size);
#pragma unroll
        for (int i = 0; i < M; i++) {
            const int row_end = visible.end(first + y + SIDE * i);
            const A before = largest[i];
            for (int j = 0; j < N; j++) {
                s[i][j] = key + x + SIDE * j < row_end ? s[i][j] * scale : lowest<A>();
                largest[i] = max(largest[i], s[i][j]);
            }
            for (int d = SIDE / 2; d > 0; d /= 2)
                largest[i] = max(largest[i], __shfl_xor_sync(FULL_WARP, largest[i], d));
            const A factor = exp(before - largest[i]);
            sum[i] *= factor;
            for (int j = 0; j < N; j++) {
                const A p = exp(s[i][j] - largest[i]);
                A& weight = p_tile[y + SIDE * i][x + SIDE * j];
                weight = DROPOUT ? weight * p : p;
                sum[i] += p;
            }
            for (int j = 0; j < D / SIDE; j++) o[i][j] *= factor;
        }
        __syncthreads();  // P and V are there
        add_product<KEYS, D>(o, p_tile, kv_tile);
    }
#pragma unroll
    for (int i = 0; i < M; i++) {
        for (int d = SIDE / 2; d > 0; d /= 2) sum[i] += __shfl_xor_sync(FULL_WARP, sum[i], d);
        for (int j = 0; j < D / SIDE; j++) o[i][j] *= sum[i] == 0 ? A(0) : A(1) / sum[i];
        const int row = first + y + SIDE * i;
        if (x == 0 && row < queries)  // 1 / 0 = +inf where no key is seen
            lse[row0 + row] = sum[i] == 0 ? 1 / sum[i] : largest[i] + log(sum[i]);
    }
    store_tile(out + strides.head(OUT, batch, head), strides.row(OUT), first, queries, head_size, o, A(1));
}

// delta_i = dO_i . O_i. Block: 4 warps of a row each; grid: (Tq / 4, H, B).
template <typename T>
__global__ void __launch_bounds__(128) attention_delta(
    const T* dout, const T* out, Accumulator<T>* delta, int queries, int head_size, Strides<2> strides) {
    using A = Accumulator<T>;
    const int warp = threadIdx.x / WARP_SIZE, lane = threadIdx.x % WARP_SIZE, head = blockIdx.y, batch = blockIdx.z;
    const int row = blockIdx.x * 4 + warp;
    if (row >= queries) return;
    dout += strides.head(0, batch, head) + row * strides.row(0);
    out += strides.head(1, batch, head) + row * strides.row(1);
    A dot = 0;
    for (int d = lane; d < head_size; d += WARP_SIZE) dot += A(dout[d]) * A(out[d]);
    dot = warp_sum(dot);
    if (lane == 0) delta[((long long)batch * gridDim.y + head) * queries + row] = dot;
}

template <typename T, int D, bool DROPOUT>
__global__ void __launch_bounds__(256, 1) attention_backward_keys(
    const T* q, const T* k, const T* v, const T* dout, const int* lengths, const Accumulator<T>* lse,
    const Accumulator<T>* delta, T* dk, T* dv, int queries, int keys, int head_size, int group, bool causal,
    Accumulator<T> scale, unsigned long long seed_low, unsigned long long seed_high, unsigned long long counter,
    unsigned long long elsewhere, unsigned threshold, Accumulator<T> rescale, Strides<6> strides) {
    using A = Accumulator<T>;
    constexpr int KEYS = 128 / sizeof(A), QUERIES = SIDE, M = KEYS / SIDE;
    extern __shared__ __align__(16) unsigned char memory[];
    auto* k_tile = reinterpret_cast<A(*)[D + 1]>(memory);
    auto *v_tile = k_tile + KEYS, *q_tile = v_tile + KEYS, *dout_tile = q_tile + QUERIES;
    auto* p_tile = reinterpret_cast<A(*)[QUERIES + 1]>(dout_tile + QUERIES);  // P^T
    auto* ds_tile = p_tile + KEYS;                                           // dS^T
    const int y = threadIdx.x / SIDE, x = threadIdx.x % SIDE, key_head = blockIdx.y, batch = blockIdx.z;
    const int first = blockIdx.x * KEYS;
    const Visible visible = {min(lengths[batch], keys), keys - queries, causal};
    const Dropout dropout = {{seed_low, seed_high}, counter + batch * elsewhere, (keys + 7) / 8, threshold};
    load_tile<KEYS, D>(k_tile, k + strides.head(K, batch, key_head), strides.row(K), first, visible.keys, head_size);
    load_tile<KEYS, D>(v_tile, v + strides.head(V, batch, key_head), strides.row(V), first, visible.keys, head_size);

    A dk_sum[M][D / SIDE] = {}, dv_sum[M][D / SIDE] = {};
    const int first_query = first < visible.keys ? visible.first_query(first) / QUERIES * QUERIES : queries;
    for (int head = key_head * group; head < (key_head + 1) * group; head++) {
        const long long row0 = ((long long)batch * gridDim.y * group + head) * queries;
        for (int query = first_query; query < queries; query += QUERIES) {
            __syncthreads();  // all have used the tiles before
            const T* dout_of_head = dout + strides.head(DOUT, batch, head);
            load_tile<QUERIES, D>(q_tile, q + strides.head(Q, batch, head), strides.row(Q), query, queries, head_size);
            load_tile<QUERIES, D>(dout_tile, dout_of_head, strides.row(DOUT), query, queries, head_size);
            if (DROPOUT) draw_mask<QUERIES, KEYS>(p_tile[0], 1, QUERIES + 1, dropout, row0 + query, first / 8, rescale);
            __syncthreads();
            A s[M][1], dp[M][1];
            multiply_rows<D>(s, k_tile, q_tile);
            multiply_rows<D>(dp, v_tile, dout_tile);
            const int row = query + x;
            const int row_end = row < queries ? visible.end(row) : 0;
#pragma unroll
            for (int i = 0; i < M; i++) {
                const bool seen = first + y + SIDE * i < row_end;
                const A p = seen ? exp(s[i][0] * scale - lse[row0 + row]) : A(0);
                A& weight = p_tile[y + SIDE * i][x];
                if (DROPOUT) dp[i][0] *= weight;
                weight = DROPOUT ? weight * p : p;
                ds_tile[y + SIDE * i][x] = seen ? p * (dp[i][0] - delta[row0 + row]) : A(0);
            }
            __syncthreads();  // P^T and dS^T are there
            add_product<QUERIES, D>(dv_sum, p_tile, dout_tile);
            add_product<QUERIES, D>(dk_sum, ds_tile, q_tile);
        }
    }
    store_tile(dk + strides.head(DK, batch, key_head), strides.row(DK), first, keys, head_size, dk_sum, scale);
    store_tile(dv + strides.head(DV, batch, key_head), strides.row(DV), first, keys, head_size, dv_sum, A(1));
}

template <typename T, int D, bool DROPOUT>
__global__ void __launch_bounds__(256, 1) attention_backward_queries(
    const T* q, const T* k, const T* v, const T* dout, const int* lengths, const Accumulator<T>* lse,
    const Accumulator<T>* delta, T* dq, int queries, int keys, int head_size, int group, bool causal,
    Accumulator<T> scale, unsigned long long seed_low, unsigned long long seed_high, unsigned long long counter,
    unsigned long long elsewhere, unsigned threshold, Accumulator<T> rescale, Strides<5> strides) {
    using A = Accumulator<T>;
    constexpr int QUERIES = 128 / sizeof(A), KEYS = SIDE, M = QUERIES / SIDE;
    extern __shared__ __align__(16) unsigned char memory[];
    auto* q_tile = reinterpret_cast<A(*)[D + 1]>(memory);
    auto *dout_tile = q_tile + QUERIES, *k_tile = dout_tile + QUERIES, *v_tile = k_tile + KEYS;
    auto* ds_tile = reinterpret_cast<A(*)[KEYS + 1]>(v_tile + KEYS);
    const int y = threadIdx.x / SIDE, x = threadIdx.x % SIDE, head = blockIdx.y, batch = blockIdx.z;
    const int first = (gridDim.x - 1 - blockIdx.x) * QUERIES;
    const Visible visible = {min(lengths[batch], keys), keys - queries, causal};
    const Dropout dropout = {{seed_low, seed_high}, counter + batch * elsewhere, (keys + 7) / 8, threshold};
    const long long row0 = ((long long)batch * gridDim.y + head) * queries;
    load_tile<QUERIES, D>(q_tile, q + strides.head(Q, batch, head), strides.row(Q), first, queries, head_size);
    load_tile<QUERIES, D>(dout_tile, dout + strides.head(DOUT, batch, head), strides.row(DOUT), first, queries, head_size);
    k += strides.head(K, batch, head / group);
    v += strides.head(V, batch, head / group);

    A dq_sum[M][D / SIDE] = {};
    const int end = visible.end(min(first + QUERIES, queries) - 1);
    for (int key = 0; key < end; key += KEYS) {
        __syncthreads();  // all have used the tiles before
        load_tile<KEYS, D>(k_tile, k, strides.row(K), key, end, head_size);
        load_tile<KEYS, D>(v_tile, v, strides.row(V), key, end, head_size);
        if (DROPOUT) draw_mask<QUERIES, KEYS>(ds_tile[0], KEYS + 1, 1, dropout, row0 + first, key / 8, rescale);
        __syncthreads();
        A s[M][1], dp[M][1];
        multiply_rows<D>(s, q_tile, k_tile);
        multiply_rows<D>(dp, dout_tile, v_tile);
#pragma unroll
        for (int i = 0; i < M; i++) {
            const int row = first + y + SIDE * i;
            const bool seen = row < queries && key + x < visible.end(row);
            const A p = seen ? exp(s[i][0] * scale - lse[row0 + row]) : A(0);
            if (DROPOUT) dp[i][0] *= ds_tile[y + SIDE * i][x];
            ds_tile[y + SIDE * i][x] = seen ? p * (dp[i][0] - delta[row0 + row]) : A(0);
        }
        __syncthreads();  // dS is there
        add_product<KEYS, D>(dq_sum, ds_tile, k_tile);
    }
    store_tile(dq + strides.head(DQ, batch, head), strides.row(DQ), first, queries, head_size, dq_sum, scale);
}

// instances: attention_delta<float> attention_delta<double> attention_delta<__nv_bfloat16>
// instances: attention_forward<float, 32, false>
// instances: attention_backward_keys<float, 32, false> attention_backward_queries<float, 32, false>
// instances: attention_forward<float, 32, true>
// instances: attention_backward_keys<float, 32, true> attention_backward_queries<float, 32, true>
// instances: attention_forward<float, 64, false>
// instances: attention_backward_keys<float, 64, false> attention_backward_queries<float, 64, false>
// instances: attention_forward<float, 64, true>
// instances: attention_backward_keys<float, 64, true> attention_backward_queries<float, 64, true>
// instances: attention_forward<float, 96, false>
// instances: attention_backward_keys<float, 96, false> attention_backward_queries<float, 96, false>
// instances: attention_forward<float, 96, true>
// instances: attention_backward_keys<float, 96, true> attention_backward_queries<float, 96, true>
// instances: attention_forward<float, 128, false>
// instances: attention_backward_keys<float, 128, false> attention_backward_queries<float, 128, false>
// instances: attention_forward<float, 128, true>
// instances: attention_backward_keys<float, 128, true> attention_backward_queries<float, 128, true>
// instances: attention_forward<double, 32, false>
// instances: attention_backward_keys<double, 32, false> attention_backward_queries<double, 32, false>
// instances: attention_forward<double, 32, true>
// instances: attention_backward_keys<double, 32, true> attention_backward_queries<double, 32, true>
// instances: attention_forward<double, 64, false>
// instances: attention_backward_keys<double, 64, false> attention_backward_queries<double, 64, false>
// instances: attention_forward<double, 64, true>
// instances: attention_backward_keys<double, 64, true> attention_backward_queries<double, 64, true>
// instances: attention_forward<double, 96, false>
// instances: attention_backward_keys<double, 96, false> attention_backward_queries<double, 96, false>
// instances: attention_forward<double, 96, true>
// instances: attention_backward_keys<double, 96, true> attention_backward_queries<double, 96, true>
// instances: attention_forward<double, 128, false>
// instances: attention_backward_keys<double, 128, false> attention_backward_queries<double, 128, false>
// instances: attention_forward<double, 128, true>
// instances: attention_backward_keys<double, 128, true> attention_backward_queries<double, 128, true>
// instances: attention_forward<__nv_bfloat16, 32, false>
// instances: attention_backward_keys<__nv_bfloat16, 32, false> attention_backward_queries<__nv_bfloat16, 32, false>
// instances: attention_forward<__nv_bfloat16, 32, true>
// instances: attention_backward_keys<__nv_bfloat16, 32, true> attention_backward_queries<__nv_bfloat16, 32, true>
// instances: attention_forward<__nv_bfloat16, 64, false>
// instances: attention_backward_keys<__nv_bfloat16, 64, false> attention_backward_queries<__nv_bfloat16, 64, false>
// instances: attention_forward<__nv_bfloat16, 64, true>
// instances: attention_backward_keys<__nv_bfloat16, 64, true> attention_backward_queries<__nv_bfloat16, 64, true>
// instances: attention_forward<__nv_bfloat16, 96, false>
// instances: attention_backward_keys<__nv_bfloat16, 96, false> attention_backward_queries<__nv_bfloat16, 96, false>
// instances: attention_forward<__nv_bfloat16, 96, true>
// instances: attention_backward_keys<__nv_bfloat16, 96, true> attention_backward_queries<__nv_bfloat16, 96, true>
// instances: attention_forward<__nv_bfloat16, 128, false>
// instances: attention_backward_keys<__nv_bfloat16, 128, false> attention_backward_queries<__nv_bfloat16, 128, false>
// instances: attention_forward<__nv_bfloat16, 128, true>
// instances: attention_backward_keys<__nv_bfloat16, 128, true> attention_backward_queries<__nv_bfloat16, 128, true>
