// Look-up of one row of a table for each id, and in reverse the sum of the gradients that reached each row.
//
//   forward    y_n = W[ids_n]
//   backward   dW_i += sum over the n with ids_n = i of dy_n
//
// Shapes: ids (count), y and dy (count, columns), W and dW (rows of the table, columns).
//
// An id that the table does not have gives a row of NaN, and passes no gradient: on a GPU nobody else looks at it.
//
// Adding each dy_n to its row as it comes would need atomics, whose order varies and with it the last bits of the sum.
// So the backward asks for the ids in ascending order, `sorted_ids`, and for the positions n that they had, `order`,
// for one id ascending too (a stable argsort). The gradients of one id are then a run of neighbours in `order`, which
// one warp adds up in float (double for double) before it adds them to the row of dW, rounding once.
//
// Grid, forward: a warp for a position, or with fewer warps every so many. Backward: a warp for a place in `order`
// (blockIdx.x) and 512 bytes of a row (blockIdx.y); where no run starts, it returns at once. Those idle warps save
// asking the device how many distinct ids there are, and waiting for the answer. Block: whole warps, up to 256 threads.
//
// Memory, for 65536 ids and 768 columns of bfloat16: forward reads and writes 101 MB each, at least 47 us at 4.3 TB/s
// (H200); backward reads 101 MB of gradients, and reads and writes the rows of dW that are named, at most 101 MB each
// and far less in a text: 23 to 70 us.
//
// A faster version would cut runs of more than some hundred places into parts for several warps, and add the parts'
// sums in a second pass: here the commonest token, perhaps a twentieth of a text, is the work of one warp.
#include "common.cuh"

template <typename T, int COUNT>
__device__ __forceinline__ void copy_row(const T* from, T* to, int columns) {
    const int lane = threadIdx.x % WARP_SIZE;
    for (int i = lane * COUNT; i < columns; i += WARP_SIZE * COUNT) store(to + i, load<COUNT>(from + i));
}

template <typename T>
__global__ void __launch_bounds__(256)
    embedding_forward(const T* table, const long long* ids, T* y, long long rows, long long count, int columns) {
    const long long warps_of_block = blockDim.x / WARP_SIZE, warps = gridDim.x * warps_of_block;
    const bool aligned = rows_are_aligned(table, columns) && rows_are_aligned(y, columns);
    for (long long n = blockIdx.x * warps_of_block + threadIdx.x / WARP_SIZE; n < count; n += warps) {
        const long long id = ids[n];
        T* row = y + n * columns;
        if (id < 0 || id >= rows)
            for (int i = threadIdx.x % WARP_SIZE; i < columns; i += WARP_SIZE) row[i] = not_a_number<T>();
        else if (aligned)
            copy_row<T, VECTOR<T>>(table + id * columns, row, columns);
        else
            copy_row<T, 1>(table + id * columns, row, columns);
    }
}

// Columns [first, stop) of the run that starts at `place`, COUNT neighbours to a lane.
template <typename T, int COUNT>
__device__ void add_run(const T* dy, const long long* sorted_ids, const long long* order, T* row_of_table,
                        long long place, long long count, int columns, int first, int stop) {
    using A = Accumulator<T>;
    const int lane = threadIdx.x % WARP_SIZE;
    for (; first < stop; first += WARP_SIZE * COUNT) {  // once, where rows are aligned
        const int column = first + lane * COUNT;
        LongSum<A> of_run[COUNT];
        int found = WARP_SIZE;
        for (long long p = place; found == WARP_SIZE; p += WARP_SIZE) {  // each lane looks up one place
            const bool in_run = p + lane < count && sorted_ids[p + lane] == sorted_ids[place];
            const long long position = in_run ? order[p + lane] : 0;
            found = __popc(__ballot_sync(FULL_WARP, in_run));  // the lanes of the run are the first
            A sum[COUNT] = {};
#pragma unroll 4
            for (int k = 0; k < found; k++) {
                const long long n = __shfl_sync(FULL_WARP, position, k);
                if (column >= stop) continue;
                const Vector<T, COUNT> piece = load<COUNT>(dy + n * columns + column);
#pragma unroll
                for (int c = 0; c < COUNT; c++) sum[c] += A(piece[c]);
            }
#pragma unroll
            for (int c = 0; c < COUNT; c++) of_run[c] += sum[c];
        }
        if (column >= stop) continue;
        Vector<T, COUNT> total = load<COUNT>(row_of_table + column);
#pragma unroll
        for (int c = 0; c < COUNT; c++) total[c] = T(A(total[c]) + A(of_run[c]));
        store(row_of_table + column, total);
    }
}

template <typename T>
__global__ void __launch_bounds__(256, 4)
    embedding_backward(const T* dy, const long long* sorted_ids, const long long* order, T* dtable, long long rows,
                       long long count, int columns) {
    const long long place = blockIdx.x * (blockDim.x / WARP_SIZE) + threadIdx.x / WARP_SIZE;
    if (place >= count || (place > 0 && sorted_ids[place] == sorted_ids[place - 1])) return;
    if (sorted_ids[place] < 0 || sorted_ids[place] >= rows) return;
    T* row = dtable + sorted_ids[place] * columns;
    const int first = blockIdx.y * WARP_SIZE * VECTOR<T>, stop = min(first + WARP_SIZE * VECTOR<T>, columns);
    if (rows_are_aligned(dy, columns) && rows_are_aligned(dtable, columns))
        add_run<T, VECTOR<T>>(dy, sorted_ids, order, row, place, count, columns, first, stop);
    else
        add_run<T, 1>(dy, sorted_ids, order, row, place, count, columns, first, stop);
}

// instances: embedding_forward<float> embedding_backward<float>
// instances: embedding_forward<double> embedding_backward<double>
// instances: embedding_forward<__nv_bfloat16> embedding_backward<__nv_bfloat16>
