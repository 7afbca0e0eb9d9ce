// Attention on tensor cores, forward and backward, in bfloat16: what attention.cu computes, in the same shapes, tiles
// and order; see there for the formulas. The products take bfloat16 and add in float; P and dS are rounded to bfloat16
// between two products; everything else is float. delta comes from attention.cu.
//
// For D = 32, 64, 96 and 128; addresses and strides are multiples of 16 bytes.
//
// A block has 4 warps, each with 16 M rows (queries, or keys for dK and dV), and walks along tiles of the other side.
// Those arrive through cp.async while the tile before is used; one barrier a tile says both that a tile is there for
// all and that the place of the one before is free. S, P, dP and dS never leave the registers: for dK and dV a warp
// makes their transposes, so that its rows are keys. Rows of a tile are swizzled (attention.cuh), so that ldmatrix
// meets no bank conflict.
//
// Grid: (tiles of queries or keys, heads, B), with H heads forward and for dQ, G for dK and dV. Block: 128 threads.
// Dynamic shared memory: 2 bytes x D x (rows + 4 columns) forward, (2 rows + 4 columns) backward, of the Tiles below;
// for dK and dV 16 bytes a column more.
//
// Work: 4 B H Tq Tk D operations forward, 14 backward, half of it where it is causal. For B H = 96, T = 1024, D = 64,
// causal: 12.9 G operations forward, 13 us at the 989 TFLOP/s of an H200 (and 12 us to move 4 x 12.6 MB at 4.3 TB/s);
// backward 46 us. mma.sync reaches about 60 % of those 989. Shared memory sets a bound as near: one fragment of B (16 x
// 8, 256 bytes) serves M products of 4096 operations, so that at 128 bytes a cycle M = 1 allows 2048 operations a cycle
// and multiprocessor (474 TFLOP/s on 132 at 1.755 GHz) and M = 2 twice that: hence M = 2 forward for D <= 64.
//
// Dropout: 4 lanes, or for dK and dV 8, hold the 8 weights of a block of the random stream; one of them draws it and
// passes the bits on by shuffles (attention.cuh). Ten rounds of Philox are about 220 instructions on sm_90, 28 for each
// weight, where all else takes about 20 for D = 64. At 4 x 132 warp instructions a cycle and 1.755 GHz that is 47 us
// for the shape above, and twice that backward: more than the products. Without dropout none of it is compiled.
//
// Two kernels for the backward compute S and dP twice: 7 products, where one that adds into dQ atomically, in an order
// that varies from run to run, needs 5. A faster version would share them, in a fixed order of the blocks, and use
// Hopper's wgmma, whose operands stay in shared memory, fed by TMA from a warp of its own. It might draw the mask once,
// forward, and store a bit for each weight: 12 MB here, but of size Tq x Tk.
#include "attention.cuh"

// Rows that a block keeps and rows of the tiles that pass by: forward, for dK and dV, and for dQ. As large as 255
// registers a thread and 99 KB of shared memory (sm_86) allow.
template <int D>
struct Tiles {
    static constexpr int forward_rows = D <= 64 ? 128 : 64, forward_columns = 64;
    static constexpr int keys_rows = 64, keys_columns = D <= 64 ? 64 : 32;
    static constexpr int queries_rows = 64, queries_columns = D <= 64 ? 64 : 32;
};

template <int D, bool DROPOUT>
__global__ void __launch_bounds__(128, 1) attention_forward_bf16(
    const __nv_bfloat16* q, const __nv_bfloat16* k, const __nv_bfloat16* v, const int* lengths, float* lse,
    __nv_bfloat16* out, int queries, int keys, int group, bool causal, float scale, unsigned long long seed_low,
    unsigned long long seed_high, unsigned long long counter, unsigned long long elsewhere, unsigned threshold,
    float rescale, Strides<4> strides) {
    constexpr int M = Tiles<D>::forward_rows / 64, COLUMNS = Tiles<D>::forward_columns, ROWS = 64 * M, N = COLUMNS / 8;
    extern __shared__ __align__(128) unsigned char memory[];
    bf16* q_tile = reinterpret_cast<bf16*>(memory);
    bf16* k_tiles = q_tile + ROWS * D;  // two of K, two of V: one in use, one arriving
    bf16* v_tiles = k_tiles + 2 * COLUMNS * D;
    const int warp = threadIdx.x / WARP_SIZE, lane = threadIdx.x % WARP_SIZE, g = lane / 4, t = lane % 4;
    const int head = blockIdx.y, batch = blockIdx.z, warp_row = warp * 16 * M;
    const int first = (gridDim.x - 1 - blockIdx.x) * ROWS;  // the blocks with most keys begin first
    const Visible visible = {min(lengths[batch], keys), keys - queries, causal};
    const Dropout dropout = {{seed_low, seed_high}, counter + batch * elsewhere, (keys + 7) / 8, threshold};
    const float scale_log2 = scale * LOG2_E;
    q += strides.head(Q, batch, head);
    k += strides.head(K, batch, head / group);
    v += strides.head(V, batch, head / group);
    const int end = visible.end(min(first + ROWS, queries) - 1), tiles = (max(end, 0) + COLUMNS - 1) / COLUMNS;
    auto copy = [&](int tile) {
        copy_tile<COLUMNS, D>(k_tiles + tile % 2 * COLUMNS * D, k, strides.row(K), tile * COLUMNS, end);
        copy_tile<COLUMNS, D>(v_tiles + tile % 2 * COLUMNS * D, v, strides.row(V), tile * COLUMNS, end);
        cp_async_commit();
    };
    if (tiles > 0) {
        copy_tile<ROWS, D>(q_tile, q, strides.row(Q), first, queries);
        copy(0);
    }

    float o[M][D / 8][4] = {}, largest[M][2], sum[M][2] = {};
    for (int m = 0; m < M; m++) largest[m][0] = largest[m][1] = NO_SCORE;
    for (int tile = 0; tile < tiles; tile++) {
        cp_async_wait<0>();
        __syncthreads();  // the tile is there for all; all have used the one before, whose place the next one takes
        if (tile + 1 < tiles) copy(tile + 1);
        const int key = tile * COLUMNS;
        float s[M][N][4];
        multiply_rows<D>(s, q_tile, warp_row, k_tiles + tile % 2 * COLUMNS * D);
        const bool masked = key + COLUMNS > visible.end(first);
#pragma unroll
        for (int m = 0; m < M; m++) {
            const long long row_of_p = ((long long)batch * gridDim.y + head) * queries + first + warp_row + 16 * m;
            const unsigned kept = DROPOUT ? kept_of_rows<N>(dropout, row_of_p, key / 8) : 0;
#pragma unroll
            for (int h = 0; h < 2; h++) {  // the rows g and g + 8 of a fragment
                const int row_end = visible.end(first + warp_row + 16 * m + g + 8 * h);
                const float before = largest[m][h];
                float now = before;
#pragma unroll
                for (int n = 0; n < N; n++)
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        float& score = s[m][n][2 * h + e];
                        if (masked && key + 8 * n + 2 * t + e >= row_end) score = lowest<float>();
                        now = max(now, score);
                    }
                now = max(now, __shfl_xor_sync(FULL_WARP, now, 1));  // the 4 lanes of a row
                now = max(now, __shfl_xor_sync(FULL_WARP, now, 2));
                const float factor = exp2_approx((before - now) * scale_log2);
                largest[m][h] = now;
                sum[m][h] *= factor;
#pragma unroll
                for (int n = 0; n < N; n++)
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        float& score = s[m][n][2 * h + e];
                        score = exp2_approx(score * scale_log2 - now * scale_log2);
                        sum[m][h] += score;
                        if (DROPOUT && !is_kept(kept, n, 2 * h + e)) score = 0;
                    }
#pragma unroll
                for (int c = 0; c < D / 8; c++) o[m][c][2 * h] *= factor, o[m][c][2 * h + 1] *= factor;
            }
        }
        add_product<D>(o, s, v_tiles + tile % 2 * COLUMNS * D);
    }
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float total = sum[m][h];
            total += __shfl_xor_sync(FULL_WARP, total, 1);
            total += __shfl_xor_sync(FULL_WARP, total, 2);
            const float inverse = total == 0 ? 0.0f : (DROPOUT ? rescale : 1.0f) / total;
#pragma unroll
            for (int c = 0; c < D / 8; c++) o[m][c][2 * h] *= inverse, o[m][c][2 * h + 1] *= inverse;
            const int row = first + warp_row + 16 * m + g + 8 * h;
            if (t == 0 && row < queries)  // 1 / 0 = +inf where no key is seen
                lse[((long long)batch * gridDim.y + head) * queries + row] =
                    total == 0 ? 1 / total : largest[m][h] * scale + log(total);
        }
    out += strides.head(OUT, batch, head);
    store_tile<D, M>(out, strides.row(OUT), first + warp_row, queries, o, q_tile, warp_row);
}

template <int D, bool DROPOUT>
__global__ void __launch_bounds__(128, 1) attention_backward_keys_bf16(
    const __nv_bfloat16* q, const __nv_bfloat16* k, const __nv_bfloat16* v, const __nv_bfloat16* dout,
    const int* lengths, const float* lse, const float* delta, __nv_bfloat16* dk, __nv_bfloat16* dv, int queries,
    int keys, int group, bool causal, float scale, unsigned long long seed_low, unsigned long long seed_high,
    unsigned long long counter, unsigned long long elsewhere, unsigned threshold, float rescale, Strides<6> strides) {
    constexpr int M = Tiles<D>::keys_rows / 64, COLUMNS = Tiles<D>::keys_columns, ROWS = 64 * M, N = COLUMNS / 8;
    extern __shared__ __align__(128) unsigned char memory[];
    bf16* k_tile = reinterpret_cast<bf16*>(memory);
    bf16 *v_tile = k_tile + ROWS * D, *q_tiles = v_tile + ROWS * D, *dout_tiles = q_tiles + 2 * COLUMNS * D;
    float2* sums = reinterpret_cast<float2*>(dout_tiles + 2 * COLUMNS * D);  // lse log2 e, delta
    const int warp = threadIdx.x / WARP_SIZE, lane = threadIdx.x % WARP_SIZE, g = lane / 4, t = lane % 4;
    const int key_head = blockIdx.y, batch = blockIdx.z, first = blockIdx.x * ROWS, warp_row = warp * 16 * M;
    const Visible visible = {min(lengths[batch], keys), keys - queries, causal};
    const Dropout dropout = {{seed_low, seed_high}, counter + batch * elsewhere, (keys + 7) / 8, threshold};
    const float scale_log2 = scale * LOG2_E;
    const int first_tile = visible.first_query(first) / COLUMNS, last_tile = (queries + COLUMNS - 1) / COLUMNS;
    const int per_head = first < visible.keys ? max(0, last_tile - first_tile) : 0, tiles = group * per_head;
    auto copy = [&](int tile) {  // of the queries of one head, then of the next
        const int head = key_head * group + tile / per_head, query = (first_tile + tile % per_head) * COLUMNS;
        const bf16* q_of_head = q + strides.head(Q, batch, head);
        const bf16* dout_of_head = dout + strides.head(DOUT, batch, head);
        copy_tile<COLUMNS, D>(q_tiles + tile % 2 * COLUMNS * D, q_of_head, strides.row(Q), query, queries);
        copy_tile<COLUMNS, D>(dout_tiles + tile % 2 * COLUMNS * D, dout_of_head, strides.row(DOUT), query, queries);
        cp_async_commit();
        if (threadIdx.x < COLUMNS) {
            const int row = query + threadIdx.x;
            const long long i = ((long long)batch * gridDim.y * group + head) * queries + row;
            const float2 beyond = {-lowest<float>(), 0};  // of queries that are not there: P = 0
            sums[tile % 2 * COLUMNS + threadIdx.x] = row < queries ? float2{lse[i] * LOG2_E, delta[i]} : beyond;
        }
    };
    if (tiles > 0) {
        copy_tile<ROWS, D>(k_tile, k + strides.head(K, batch, key_head), strides.row(K), first, visible.keys);
        copy_tile<ROWS, D>(v_tile, v + strides.head(V, batch, key_head), strides.row(V), first, visible.keys);
        copy(0);
    }

    float dk_sum[M][D / 8][4] = {}, dv_sum[M][D / 8][4] = {};
    for (int tile = 0; tile < tiles; tile++) {
        cp_async_wait<0>();
        __syncthreads();  // the tile is there for all; all have used the one before, whose place the next one takes
        if (tile + 1 < tiles) copy(tile + 1);
        bf16 *q_tile = q_tiles + tile % 2 * COLUMNS * D, *dout_tile = dout_tiles + tile % 2 * COLUMNS * D;
        const int query = (first_tile + tile % per_head) * COLUMNS;
        const bool masked = first + ROWS > visible.end(query);
        float p[M][N][4], ds[M][N][4];  // transposed: a row for each key
        multiply_rows<D>(p, k_tile, warp_row, q_tile);
        multiply_rows<D>(ds, v_tile, warp_row, dout_tile);
        unsigned kept[M];
        if (DROPOUT) {
            const int head = key_head * group + tile / per_head;
            const long long row = ((long long)batch * gridDim.y * group + head) * queries + query;
#pragma unroll
            for (int m = 0; m < M; m++) kept[m] = kept_of_columns<N>(dropout, row, (first + warp_row) / 8 + 2 * m);
        }
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int column = 8 * n + 2 * t + e, row_end = visible.end(query + column);
                const float2 of_query = sums[tile % 2 * COLUMNS + column];
#pragma unroll
                for (int i = 0; i < 2 * M; i++) {
                    float &p_i = p[i / 2][n][i % 2 * 2 + e], &ds_i = ds[i / 2][n][i % 2 * 2 + e];
                    const bool hidden = masked && first + warp_row + g + 8 * i >= row_end;
                    p_i = hidden ? 0.0f : exp2_approx(p_i * scale_log2 - of_query.x);
                    const bool keep = !DROPOUT || is_kept(kept[i / 2], n, i % 2 * 2 + e);
                    const float mask = !keep ? 0.0f : DROPOUT ? rescale : 1.0f;
                    ds_i = p_i * (mask * ds_i - of_query.y);
                    p_i *= mask;
                }
            }
        add_product<D>(dv_sum, p, dout_tile);
        add_product<D>(dk_sum, ds, q_tile);
    }
#pragma unroll
    for (int i = 0; i < M * D / 8 * 4; i++) dk_sum[i / (D / 2)][i % (D / 2) / 4][i % 4] *= scale;
    dk += strides.head(DK, batch, key_head);
    dv += strides.head(DV, batch, key_head);
    store_tile<D, M>(dk, strides.row(DK), first + warp_row, keys, dk_sum, k_tile, warp_row);
    store_tile<D, M>(dv, strides.row(DV), first + warp_row, keys, dv_sum, v_tile, warp_row);
}

template <int D, bool DROPOUT>
__global__ void __launch_bounds__(128, 1) attention_backward_queries_bf16(
    const __nv_bfloat16* q, const __nv_bfloat16* k, const __nv_bfloat16* v, const __nv_bfloat16* dout,
    const int* lengths, const float* lse, const float* delta, __nv_bfloat16* dq, int queries, int keys, int group,
    bool causal, float scale, unsigned long long seed_low, unsigned long long seed_high, unsigned long long counter,
    unsigned long long elsewhere, unsigned threshold, float rescale, Strides<5> strides) {
    constexpr int M = Tiles<D>::queries_rows / 64, COLUMNS = Tiles<D>::queries_columns, ROWS = 64 * M, N = COLUMNS / 8;
    extern __shared__ __align__(128) unsigned char memory[];
    bf16* q_tile = reinterpret_cast<bf16*>(memory);
    bf16 *dout_tile = q_tile + ROWS * D, *k_tiles = dout_tile + ROWS * D, *v_tiles = k_tiles + 2 * COLUMNS * D;
    const int warp = threadIdx.x / WARP_SIZE, lane = threadIdx.x % WARP_SIZE, g = lane / 4, t = lane % 4;
    const int head = blockIdx.y, batch = blockIdx.z, warp_row = warp * 16 * M;
    const int first = (gridDim.x - 1 - blockIdx.x) * ROWS;
    const Visible visible = {min(lengths[batch], keys), keys - queries, causal};
    const Dropout dropout = {{seed_low, seed_high}, counter + batch * elsewhere, (keys + 7) / 8, threshold};
    const long long row0 = ((long long)batch * gridDim.y + head) * queries;
    const float scale_log2 = scale * LOG2_E;
    k += strides.head(K, batch, head / group);
    v += strides.head(V, batch, head / group);
    const int end = visible.end(min(first + ROWS, queries) - 1), tiles = (max(end, 0) + COLUMNS - 1) / COLUMNS;
    auto copy = [&](int tile) {
        copy_tile<COLUMNS, D>(k_tiles + tile % 2 * COLUMNS * D, k, strides.row(K), tile * COLUMNS, end);
        copy_tile<COLUMNS, D>(v_tiles + tile % 2 * COLUMNS * D, v, strides.row(V), tile * COLUMNS, end);
        cp_async_commit();
    };
    if (tiles > 0) {
        copy_tile<ROWS, D>(q_tile, q + strides.head(Q, batch, head), strides.row(Q), first, queries);
        copy_tile<ROWS, D>(dout_tile, dout + strides.head(DOUT, batch, head), strides.row(DOUT), first, queries);
        copy(0);
    }
    float lse_log2[2 * M], delta_i[2 * M];  // of the rows g, g + 8, g + 16, ... of the warp
#pragma unroll
    for (int i = 0; i < 2 * M; i++) {
        const int row = min(first + warp_row + g + 8 * i, queries - 1);
        lse_log2[i] = lse[row0 + row] * LOG2_E;
        delta_i[i] = delta[row0 + row];
    }

    float dq_sum[M][D / 8][4] = {};
    for (int tile = 0; tile < tiles; tile++) {
        cp_async_wait<0>();
        __syncthreads();  // the tile is there for all; all have used the one before, whose place the next one takes
        if (tile + 1 < tiles) copy(tile + 1);
        bf16 *k_tile = k_tiles + tile % 2 * COLUMNS * D, *v_tile = v_tiles + tile % 2 * COLUMNS * D;
        const int key = tile * COLUMNS;
        const bool masked = key + COLUMNS > visible.end(first);
        float s[M][N][4], ds[M][N][4];
        multiply_rows<D>(s, q_tile, warp_row, k_tile);
        multiply_rows<D>(ds, dout_tile, warp_row, v_tile);
        unsigned kept[M];
#pragma unroll
        for (int m = 0; m < M; m++)
            if (DROPOUT) kept[m] = kept_of_rows<N>(dropout, row0 + first + warp_row + 16 * m, key / 8);
#pragma unroll
        for (int i = 0; i < 2 * M; i++) {
            const int row_end = visible.end(first + warp_row + g + 8 * i);
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float& ds_i = ds[i / 2][n][i % 2 * 2 + e];
                    const bool hidden = masked && key + 8 * n + 2 * t + e >= row_end;
                    const float p = exp2_approx(s[i / 2][n][i % 2 * 2 + e] * scale_log2 - lse_log2[i]);
                    if (DROPOUT) ds_i *= is_kept(kept[i / 2], n, i % 2 * 2 + e) ? rescale : 0.0f;
                    ds_i = hidden ? 0.0f : p * (ds_i - delta_i[i]);
                }
        }
        add_product<D>(dq_sum, ds, k_tile);
    }
#pragma unroll
    for (int i = 0; i < M * D / 8 * 4; i++) dq_sum[i / (D / 2)][i % (D / 2) / 4][i % 4] *= scale;
    dq += strides.head(DQ, batch, head);
    store_tile<D, M>(dq, strides.row(DQ), first + warp_row, queries, dq_sum, q_tile, warp_row);
}

// instances sm_80: attention_forward_bf16<32, false>
// instances sm_80: attention_backward_keys_bf16<32, false> attention_backward_queries_bf16<32, false>
// instances sm_80: attention_forward_bf16<32, true>
// instances sm_80: attention_backward_keys_bf16<32, true> attention_backward_queries_bf16<32, true>
// instances sm_80: attention_forward_bf16<64, false>
// instances sm_80: attention_backward_keys_bf16<64, false> attention_backward_queries_bf16<64, false>
// instances sm_80: attention_forward_bf16<64, true>
// instances sm_80: attention_backward_keys_bf16<64, true> attention_backward_queries_bf16<64, true>
// instances sm_80: attention_forward_bf16<96, false>
// instances sm_80: attention_backward_keys_bf16<96, false> attention_backward_queries_bf16<96, false>
// instances sm_80: attention_forward_bf16<96, true>
// instances sm_80: attention_backward_keys_bf16<96, true> attention_backward_queries_bf16<96, true>
// instances sm_80: attention_forward_bf16<128, false>
// instances sm_80: attention_backward_keys_bf16<128, false> attention_backward_queries_bf16<128, false>
// instances sm_80: attention_forward_bf16<128, true>
// instances sm_80: attention_backward_keys_bf16<128, true> attention_backward_queries_bf16<128, true>
