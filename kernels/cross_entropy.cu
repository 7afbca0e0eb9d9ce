// Cross-entropy of logits against target ids, with label smoothing: the loss, and its gradient.
//
// The derivation is in minillm/ops/cross_entropy.py. With p = softmax(x) for a row x of V logits, target t and label
// smoothing e, the target distribution is q_i = (1 - e) [i = t] + e/V, and
//
//   loss = -sum_i q_i log p_i = log s + (1 - e) (m - x_t) + e (m - mean_i x_i)
//   m    = max_i x_i,           s = sum_i e^(x_i - m)
//   p_i  = e^(x_i - m) / s
//   dx_i = dloss (p_i - q_i)                                                   dloss: gradient of this row's loss
//
// Differences of logits, never the logits themselves, so that a loss near 0 keeps its digits where logits are large.
// The row of an ignored target has loss 0 and gradient 0, and is not read. A target that is no class has a loss of NaN.
//
// Shapes: logits and dlogits (rows, classes); targets, loss, largest (m), total (s) and dloss (rows). loss, m, s and
// dloss are Accumulator<T>: float for bfloat16, in which log 50257 = 10.8 has steps of 0.06. m and s are kept apart, as
// m + log s has no digits left for s where m is large. Three kernels:
//
//   cross_entropy_forward        loss, m and s                           reads the logits
//   cross_entropy_backward       dlogits from m and s                    reads the logits, writes dlogits
//   cross_entropy_with_gradient  loss, and dlogits for a known dloss     reads the logits, writes dlogits
//
// dlogits may be the logits' own array: each thread writes the numbers that it alone reads, and a barrier lies between
// the passes. That is how a step with 64k tokens and 50257 classes in bfloat16 holds 6.6 GB of them, and not 13.2.
//
// Grid: one block for a row; with fewer blocks than rows, each takes every gridDim.x-th. Block: whole warps, up to 512
// threads; classes / (16 / sizeof(T)), rounded up to a warp, where that is less.
//
// Memory: each array once, if the second pass finds the row in a cache: three or four rows of 50257 bfloat16 are under
// way on each of 132 multiprocessors (H200), 40 to 53 MB, and the L1 caches hold 34 MB (256 KB each), L2 50 MB. That
// pass goes backwards, to begin with what was read last. 65536 such rows are 6.59 GB: at 4.3 TB/s forward takes at
// least 1.53 ms, backward 3.06 ms, and cross_entropy_with_gradient 3.06 ms, in place of the 4.60 ms of the two.
// Exponentials: one for each logit in each pass, and in the first one more for every 16 bytes.
//
// 50257 is odd, so rows begin at any address: a row is walked in pieces of 16 bytes with single numbers at both ends.
//
// A faster version would take the maximum from the matrix product that makes the logits, or never store them (Liger's
// fused linear cross-entropy: a chunk of rows at a time, its gradient multiplied by the weights while it is there).
#include "common.cuh"

// e^x on its way to becoming a T: the fast exponential is right to about 2^-21, and bfloat16 rounds at 2^-9.
template <typename T>
__device__ __forceinline__ Accumulator<T> exp_for(Accumulator<T> x) {
    if constexpr (sizeof(T) == 2)
        return __expf(x);
    else
        return exp(x);
}

// A row cut at two places: [0, body) one by one, [body, tail) 16 bytes at a time, [tail, columns) one by one.
struct Cuts {
    int body, tail, columns;
};

template <typename T>
__device__ __forceinline__ Cuts cut_row(const T* row, int columns) {
    const int ahead = static_cast<int>(reinterpret_cast<unsigned long long>(row) % 16 / sizeof(T));
    const int body = min((VECTOR<T> - ahead) % VECTOR<T>, columns);
    return {body, body + (columns - body) / VECTOR<T> * VECTOR<T>, columns};
}

// The same, to write another row alongside: one by one throughout where the two are not aligned alike.
template <typename T>
__device__ __forceinline__ Cuts cut_rows(const T* row, const T* other, int columns) {
    const long long apart = reinterpret_cast<long long>(row) - reinterpret_cast<long long>(other);
    return apart % 16 == 0 ? cut_row(row, columns) : Cuts{columns, columns, columns};
}

// What a row is summed up to: every thread of the block gets the same.
template <typename A>
struct Summary {
    A largest;  // m
    A sum;      // s
    A mean;     // mean_i (x_i - base), only where it is asked for
};

template <typename T>
__device__ Summary<Accumulator<T>> summarise(const T* x, Cuts cuts, Accumulator<T> base, bool want_mean) {
    using A = Accumulator<T>;
    const A share = A(1) / A(cuts.columns);  // of one logit: their sum might overflow
    const int thread = threadIdx.x, threads = blockDim.x;
    A largest = lowest<A>();
    LongSum<A> sum, mean;
    auto take = [&](const auto& piece) {  // a larger x scales down the sum so far
        constexpr int COUNT = sizeof(piece) / sizeof(T);
        const A before = largest;
#pragma unroll
        for (int k = 0; k < COUNT; k++) largest = max(largest, A(piece[k]));
        sum *= exp_for<T>(before - largest);
        A of_piece = 0, mean_of_piece = 0;
#pragma unroll
        for (int k = 0; k < COUNT; k++) {
            of_piece += exp_for<T>(A(piece[k]) - largest);
            mean_of_piece += (A(piece[k]) - base) * share;
        }
        sum += of_piece;
        mean += mean_of_piece;
    };
    for (int i = thread; i < cuts.body; i += threads) take(load<1>(x + i));
    for (int i = cuts.body + thread * VECTOR<T>; i < cuts.tail; i += threads * VECTOR<T>) take(load<VECTOR<T>>(x + i));
    for (int i = cuts.tail + thread; i < cuts.columns; i += threads) take(load<1>(x + i));
    Summary<A> row;
    row.largest = block_max(largest);
    row.sum = block_sum(sum * exp_for<T>(largest - row.largest));
    row.mean = want_mean ? block_sum(A(mean)) : A(0);
    return row;
}

// What the mean of the logits is taken of: differences from the target's logit, as far as it is a number.
template <typename A>
__device__ A base_of(A target_logit) {
    return target_logit - target_logit == 0 ? target_logit : A(0);
}

template <typename A>
__device__ A loss_of(const Summary<A>& row, A target_logit, A smoothing) {
    const A above_target = row.largest - target_logit, above_mean = row.largest - base_of(target_logit) - row.mean;
    return log(row.sum) + (smoothing > 0 ? (1 - smoothing) * above_target + smoothing * above_mean : above_target);
}

// dx_i = dloss (e^(x_i - base) scale - q_i), the last pieces of the row first.
template <typename T>
__device__ void write_gradient(const T* x, T* dx, Cuts cuts, long long target, Accumulator<T> base,
                               Accumulator<T> scale, Accumulator<T> dloss, Accumulator<T> smoothing) {
    using A = Accumulator<T>;
    const int thread = threadIdx.x, threads = blockDim.x;
    const A everywhere = smoothing / A(cuts.columns), at_target = A(1) - smoothing;
    auto gradient = [&](T logit, int i) {
        return T(dloss * (exp_for<T>(A(logit) - base) * scale - (i == target ? at_target + everywhere : everywhere)));
    };
    for (int i = cuts.tail + thread; i < cuts.columns; i += threads) dx[i] = gradient(x[i], i);
    for (int i = cuts.tail - (thread + 1) * VECTOR<T>; i >= cuts.body; i -= threads * VECTOR<T>) {
        Vector<T, VECTOR<T>> piece = load<VECTOR<T>>(x + i);
#pragma unroll
        for (int k = 0; k < VECTOR<T>; k++) piece[k] = gradient(piece[k], i + k);
        store(dx + i, piece);
    }
    for (int i = thread; i < cuts.body; i += threads) dx[i] = gradient(x[i], i);
}

// NaN for a target that is no class: on a GPU nobody else looks at it.
template <typename T>
__device__ Accumulator<T> logit_of(const T* x, long long target, int classes) {
    return Accumulator<T>(target >= 0 && target < classes ? x[target] : not_a_number<T>());
}

template <typename T>
__device__ void write_zeros(T* dx, int classes) {
    for (int i = threadIdx.x; i < classes; i += blockDim.x) dx[i] = T(Accumulator<T>(0));
}

// Each of the three may have two blocks or more on a multiprocessor, that is up to 64 registers: doubles need them.

template <typename T>
__global__ void __launch_bounds__(512, 2)
    cross_entropy_forward(const T* logits, const long long* targets, Accumulator<T>* loss, Accumulator<T>* largest,
                          Accumulator<T>* total, long long rows, int classes, long long ignore_index,
                          Accumulator<T> smoothing) {
    using A = Accumulator<T>;
    for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
        const T* x = logits + row * classes;
        const bool ignored = targets[row] == ignore_index;
        if (!ignored) {
            const A target_logit = logit_of(x, targets[row], classes);
            const Summary<A> summary = summarise(x, cut_row(x, classes), base_of(target_logit), smoothing > 0);
            if (threadIdx.x == 0) {
                loss[row] = loss_of(summary, target_logit, smoothing);
                largest[row] = summary.largest;
                total[row] = summary.sum;
            }
        } else if (threadIdx.x == 0) {
            loss[row] = largest[row] = 0;
            total[row] = 1;
        }
    }
}

// A row whose dloss is 0, as that of an ignored target is, gets zeros and is not read.
template <typename T>
__global__ void __launch_bounds__(512, 2)
    cross_entropy_backward(const T* logits, const long long* targets, const Accumulator<T>* largest,
                           const Accumulator<T>* total, const Accumulator<T>* dloss, T* dlogits, long long rows,
                           int classes, Accumulator<T> smoothing) {
    using A = Accumulator<T>;
    for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
        const T* x = logits + row * classes;
        T* dx = dlogits + row * classes;
        if (dloss[row] == 0)
            write_zeros(dx, classes);
        else
            write_gradient(x, dx, cut_rows(x, dx, classes), targets[row], largest[row], A(1) / total[row], dloss[row],
                           smoothing);
    }
}

template <typename T>
__global__ void __launch_bounds__(512, 2)
    cross_entropy_with_gradient(const T* logits, const long long* targets, const Accumulator<T>* dloss,
                                Accumulator<T>* loss, T* dlogits, long long rows, int classes, long long ignore_index,
                                Accumulator<T> smoothing) {
    using A = Accumulator<T>;
    for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
        const T* x = logits + row * classes;
        T* dx = dlogits + row * classes;
        const long long target = targets[row];
        if (target == ignore_index) {
            write_zeros(dx, classes);
            if (threadIdx.x == 0) loss[row] = 0;
            continue;
        }
        const A target_logit = logit_of(x, target, classes);
        const Cuts cuts = cut_rows(x, dx, classes);
        const Summary<A> summary = summarise(x, cuts, base_of(target_logit), smoothing > 0);
        if (threadIdx.x == 0) loss[row] = loss_of(summary, target_logit, smoothing);
        write_gradient(x, dx, cuts, target, summary.largest, A(1) / summary.sum, dloss[row], smoothing);
    }
}

// instances: cross_entropy_forward<float> cross_entropy_backward<float> cross_entropy_with_gradient<float>
// instances: cross_entropy_forward<double> cross_entropy_backward<double> cross_entropy_with_gradient<double>
// instances: cross_entropy_forward<__nv_bfloat16> cross_entropy_backward<__nv_bfloat16>
// instances: cross_entropy_with_gradient<__nv_bfloat16>
