// CUDA C++ on a CPU: the part of the language that kernels/*.cu use, for g++, so that every kernel can be run, stepped
// through and checked with no GPU.
//
// One fiber plays each CUDA thread. A block's threads take turns on one CPU thread: each runs until it waits for
// others, at a barrier or in an operation of its warp, and the last to arrive lets the others go on. The scheduler
// lets one warp run as far as it can before the next gets its turn, in a chosen order: that is far from how a GPU
// interleaves warps, and so it shows where a barrier is missing. Blocks run one after another.
//
// Stricter than a GPU, because what a GPU leaves undefined should be seen:
// - Shared memory is 0xFF, which is NaN in every floating type, when a block starts.
// - Every thread of a block must reach the same __syncthreads (the same line), and all lanes of a mask the same warp
//   operation with the same mask; lanes that have returned, or that the block does not have, count as missing.
// - A wild pointer, an integer divided by zero, dynamic shared memory out of range (from the next multiple of 128
//   bytes on), or a full stack ends the launch with the block and the thread, not the process.
// - __nv_bfloat16 and __half convert only where it is written.
//
// What it cannot show: races that need true concurrency or a weak memory model, accesses a little beyond an array in
// global or static shared memory (AddressSanitizer does: MINILLM_EMULATE_FLAGS="-fsanitize=address"), an endless loop,
// bank conflicts, any timing. exp and rsqrt are those of the C library, -ftz does not apply, and a tensor core adds in
// another order.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>
#include <type_traits>
#include <utility>
#include <vector>

#include "fiber.h"
#include "numbers.h"

// `__shared__` is not here: minillm/kernels/emulate.py turns each declaration into a static array, or a pointer to the
// launch's dynamic shared memory, and a call that fills it for the block (shared_array and dynamic_shared below).
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __constant__ static
#define __grid_constant__

// Built-in variables. gdb knows them by name: break softmax.cu:40 if blockIdx.x == 2 && threadIdx.x == 37
static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;

namespace emulate {

constexpr int WARP = 32;
constexpr size_t STACK = 256 * 1024;      // of one thread; only what is used takes memory
constexpr size_t GUARD = 64 * 1024;       // around shared memory and below each stack: touching it is an error
constexpr size_t SHARED_ALIGNMENT = 128;  // of dynamic shared memory

enum Order { FORWARD, REVERSE, RANDOM };
enum Copies { EAGER, DEFERRED };  // cp.async: copied where it is issued, or not before the wait that asks for it

// Of one launch; minillm/kernels/emulate.py fills the same structure.
struct Settings {
    unsigned grid[3];
    unsigned block[3];
    size_t shared_bytes;
    int order;
    unsigned seed;
    int copies;
};

static bool same(const char* a, const char* b) { return a == b || strcmp(a, b) == 0; }

// A line of kernel text: as a default argument, that of the call.
struct Place {
    const char* file;
    int line;
    Place(const char* file = __builtin_FILE(), int line = __builtin_LINE()) : file(file), line(line) {}
    bool operator==(const Place& other) const { return line == other.line && same(file, other.file); }
    const char* name() const { return strrchr(file, '/') ? strrchr(file, '/') + 1 : file; }
};

enum State { READY, AT_BARRIER, IN_WARP, RETURNED };

// What a thread has come to and waits at.
struct Arrival {
    const char* operation = nullptr;
    unsigned mask = 0;
    Place place;
    void* data = nullptr;
    bool meets(const Arrival& other) const {
        return mask == other.mask && place == other.place && same(operation, other.operation);
    }
};

struct Copy {
    void* to;
    const void* from;
    int group;
};

struct Thread {
    Fiber fiber;
    int number = 0;
    uint3 index = {};
    State state = READY;
    Arrival at;
    std::vector<Copy> copies;  // cp.async: issued, not yet made
    int copy_group = 0;        // cp.async: the group that is being collected
};

// Address space without access, of which parts are opened.
class Pages {
   public:
    explicit Pages(size_t bytes) : bytes_(bytes) {
        void* address = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        base_ = address == MAP_FAILED ? nullptr : static_cast<char*>(address);
    }
    ~Pages() {
        if (base_) munmap(base_, bytes_);
    }
    Pages(const Pages&) = delete;
    bool open(size_t offset, size_t bytes) {
        return base_ && mprotect(base_ + offset, bytes, PROT_READ | PROT_WRITE) == 0;
    }
    char* at(size_t offset) const { return base_ + offset; }
    bool contains(const void* p) const { return p >= base_ && p < base_ + bytes_; }

   private:
    char* base_;
    size_t bytes_;
};

// Everything that a launch holds, freed when it ends, however it ends.
struct Launch {
    Settings settings;
    void (*invoke)(const void* call);    // runs the kernel as the current thread
    const void* call;
    std::vector<Thread> threads;
    std::vector<int> warps, lanes;       // in the order in which they get their turn
    std::mt19937 random;
    int arrived = 0;                     // threads of the block at __syncthreads
    std::vector<int> in_warp_operation;  // threads of each warp
    char* shared = nullptr;              // dynamic shared memory
    std::vector<const void*> filled;     // static shared arrays that this block has come to
    char error[512] = "";
};

static Launch* launched;  // the launch that is running
static Thread* current;   // the thread that is running; null while the scheduler is
static char last_error[sizeof Launch::error];

// Those of a warp are kept for the next launch, as mapping them anew costs more than running a small kernel. Not more:
// a process may hold some 65000 mappings, and one that runs all tests has hundreds of libraries like this one.
static std::vector<Pages*> stacks;
constexpr size_t STACKS_KEPT = WARP;

static Thread* lane_of_warp(int warp, int lane) {
    size_t number = static_cast<size_t>(warp) * WARP + lane;
    return number < launched->threads.size() ? &launched->threads[number] : nullptr;
}

static void write_error(const Thread& thread, const char* format, va_list arguments) {
    char* error = launched->error;
    size_t room = sizeof launched->error;
    int used = snprintf(error, room, "thread (%u,%u,%u) of block (%u,%u,%u) ", thread.index.x, thread.index.y,
                        thread.index.z, blockIdx.x, blockIdx.y, blockIdx.z);
    vsnprintf(error + used, room - used, format, arguments);
}

// Called by a thread: end the launch with what `thread` did wrong.
__attribute__((format(printf, 2, 3))) [[noreturn]] static void misuse(const Thread& thread, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    write_error(thread, format, arguments);
    va_end(arguments);
    current->fiber.suspend();  // for ever, as the scheduler sees the error
    __builtin_trap();
}

// ---- waiting for others ----------------------------------------------------------------------------------------

static void block_barrier(Place place) {
    Thread& me = *current;
    me.at = {"__syncthreads", 0, place, nullptr};
    me.state = AT_BARRIER;
    auto& threads = launched->threads;
    if (++launched->arrived < static_cast<int>(threads.size())) return me.fiber.suspend();
    for (Thread& thread : threads) {
        if (!(thread.at.place == place)) return me.fiber.suspend();  // for ever
    }
    launched->arrived = 0;
    for (Thread& thread : threads) thread.state = READY;
}

// An operation of all lanes in `mask`. Each lane brings `data`; the last to arrive performs the operation for all of
// them, on the array of their data by lane (null outside the mask), and lets them go on.
template <class Data, class Perform>
void warp_operation(const char* operation, unsigned mask, Place place, Data& data, Perform perform) {
    Thread& me = *current;
    const int warp = me.number / WARP;
    if (!(mask >> (me.number % WARP) & 1)) {
        misuse(me, "calls %s (%s:%d) with mask %#010x, which leaves out its own lane %d", operation, place.name(),
               place.line, mask, me.number % WARP);
    }
    me.at = {operation, mask, place, &data};
    me.state = IN_WARP;
    int& waiting = launched->in_warp_operation[warp];
    if (++waiting < __builtin_popcount(mask)) return me.fiber.suspend();
    Data* lanes[WARP] = {};
    for (int lane = 0; lane < WARP; lane++) {
        if (!(mask >> lane & 1)) continue;
        Thread* other = lane_of_warp(warp, lane);
        if (!other || other->state != IN_WARP || !other->at.meets(me.at)) return me.fiber.suspend();
        lanes[lane] = static_cast<Data*>(other->at.data);
    }
    perform(lanes);
    for (int lane = 0; lane < WARP; lane++) {
        if (lanes[lane]) lane_of_warp(warp, lane)->state = READY, waiting--;
    }
}

// The scheduler's: `thread` waits for what will not come.
__attribute__((format(printf, 2, 3))) static void stuck(const Thread& thread, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    write_error(thread, format, arguments);
    va_end(arguments);
}

// Nothing can go on: say which thread waits for which other one. Warp operations first, as the threads at a barrier may
// only be waiting for those.
static void report_deadlock() {
    for (Thread& thread : launched->threads) {
        if (thread.state != IN_WARP) continue;
        const Arrival& at = thread.at;
        char waits[200];
        snprintf(waits, sizeof waits, "waits in %s (%s:%d, mask %#010x)", at.operation, at.place.name(), at.place.line,
                 at.mask);
        for (int lane = 0; lane < WARP; lane++) {
            if (!(at.mask >> lane & 1)) continue;
            const Thread* other = lane_of_warp(thread.number / WARP, lane);
            if (!other) {
                return stuck(thread, "%s for lane %d, which a block of %zu threads does not have", waits, lane,
                             launched->threads.size());
            }
            if (other->state == RETURNED) return stuck(thread, "%s for lane %d, which has returned", waits, lane);
            const Arrival& there = other->at;
            if (other->state != IN_WARP || !there.meets(at)) {
                return stuck(thread, "%s for lane %d, which waits in %s (%s:%d, mask %#010x)", waits, lane,
                             there.operation, there.place.name(), there.place.line, there.mask);
            }
        }
    }
    auto& threads = launched->threads;
    const Thread& thread =
        *std::find_if(threads.begin(), threads.end(), [](const Thread& t) { return t.state == AT_BARRIER; });
    for (const Thread& other : threads) {
        if (other.state != RETURNED && other.at.place == thread.at.place) continue;
        char there[100] = "has returned";
        if (other.state != RETURNED)
            snprintf(there, sizeof there, "at another (%s:%d)", other.at.place.name(), other.at.place.line);
        return stuck(thread,
                     "waits at __syncthreads (%s:%d), but thread (%u,%u,%u) %s; every thread of a block must reach the "
                     "same barrier",
                     thread.at.place.name(), thread.at.place.line, other.index.x, other.index.y, other.index.z, there);
    }
}

// ---- shared memory ---------------------------------------------------------------------------------------------

// `__shared__ float x[32];` becomes `static float x[32]; emulate::shared_array(&x, sizeof x);`: the first thread of a
// block that comes to it finds it as it was left by the block before, and fills it.
static void shared_array(void* array, size_t bytes) {
    auto& filled = launched->filled;
    if (std::find(filled.begin(), filled.end(), array) != filled.end()) return;
    filled.push_back(array);
    memset(array, 0xFF, bytes);
}

// `extern __shared__ float memory[];` becomes `float* memory = emulate::dynamic_shared<float>();`.
template <class T>
T* dynamic_shared() {
    return reinterpret_cast<T*>(launched->shared);
}

// ---- faults ----------------------------------------------------------------------------------------------------

static const int FAULTS[] = {SIGSEGV, SIGBUS, SIGFPE};
static struct sigaction before[3];
static Pages* shared_pages;

// A fault inside a kernel ends the launch; one anywhere else goes where it would have gone.
static void on_fault(int signal, siginfo_t* info, void*) {
    if (!current) {
        for (int i = 0; i < 3; i++) sigaction(FAULTS[i], &before[i], nullptr);
        return;  // and the faulting instruction runs again
    }
    const char* address = static_cast<const char*>(info->si_addr);
    if (signal == SIGFPE) {
        misuse(*current, "divides an integer by zero");
    } else if (shared_pages->contains(address)) {
        misuse(*current, "reaches for byte %td of its dynamic shared memory, which has %zu bytes",
               address - launched->shared, launched->settings.shared_bytes);
    } else if (stacks[current->number]->contains(address)) {
        misuse(*current, "has filled its stack, %zu KB of local variables and calls", STACK / 1024);
    } else {
        misuse(*current, "reads or writes memory that is not there, at address %p", static_cast<const void*>(address));
    }
}

// Installs the handlers, with a stack of their own as a thread's may be full, and takes them back.
class CatchFaults {
   public:
    CatchFaults() : stack_(64 * 1024) {
#ifndef __SANITIZE_ADDRESS__  // which reports faults itself, with more to say
        stack_t stack = {};
        stack.ss_sp = stack_.data();
        stack.ss_size = stack_.size();
        sigaltstack(&stack, &before_stack_);
        struct sigaction action = {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // NODEFER: misuse() leaves the handler for good
        for (int i = 0; i < 3; i++) sigaction(FAULTS[i], &action, &before[i]);
#endif
    }
    ~CatchFaults() {
#ifndef __SANITIZE_ADDRESS__
        for (int i = 0; i < 3; i++) sigaction(FAULTS[i], &before[i], nullptr);
        sigaltstack(&before_stack_, nullptr);
#endif
    }
    CatchFaults(const CatchFaults&) = delete;

   private:
    std::vector<char> stack_;
    stack_t before_stack_ = {};
};

// ---- the scheduler ---------------------------------------------------------------------------------------------

// Where every fiber begins.
static void run_thread() {
    Fiber::entered();
    launched->invoke(launched->call);
    current->state = RETURNED;
    current->fiber.suspend();
}

static void shuffle_if_random(std::vector<int>& order) {
    if (launched->settings.order == RANDOM) std::shuffle(order.begin(), order.end(), launched->random);
}

// Run the threads of a warp until none can go on; returns whether any did.
static bool run_warp(int warp) {
    bool progress = false;
    for (bool again = true; again;) {
        again = false;
        shuffle_if_random(launched->lanes);
        for (int lane : launched->lanes) {
            Thread* thread = lane_of_warp(warp, lane);
            if (!thread || thread->state != READY) continue;
            current = thread;
            threadIdx = thread->index;
            thread->fiber.resume();
            current = nullptr;
            if (launched->error[0]) return false;
            again = progress = true;
        }
    }
    return progress;
}

static void run_block() {
    auto& threads = launched->threads;
    for (Thread& thread : threads) {
        thread.fiber.start(stacks[thread.number]->at(GUARD), STACK, run_thread);
        thread.state = READY;
        thread.copies.clear();
    }
    launched->filled.clear();
    memset(launched->shared, 0xFF, launched->settings.shared_bytes);
    for (bool progress = true; progress;) {
        progress = false;
        shuffle_if_random(launched->warps);
        for (int warp : launched->warps) {
            progress |= run_warp(warp);
            if (launched->error[0]) return;
        }
    }
    if (std::any_of(threads.begin(), threads.end(), [](Thread& t) { return t.state != RETURNED; })) report_deadlock();
}

static std::vector<int> turns(int count, int order) {
    std::vector<int> result(count);
    std::iota(result.begin(), result.end(), 0);
    if (order == REVERSE) std::reverse(result.begin(), result.end());
    return result;
}

static bool map_stacks(size_t count) {
    while (stacks.size() < count) {
        auto* stack = new Pages(GUARD + STACK);
        stacks.push_back(stack);
        if (!stack->open(GUARD, STACK)) return false;
    }
    return true;
}

static void unmap_stacks() {
    for (; stacks.size() > STACKS_KEPT; stacks.pop_back()) delete stacks.back();
}

// Run all blocks; returns what went wrong, or null.
static const char* run(const Settings& settings, void (*invoke)(const void*), const void* call) {
    Launch launch;
    launch.settings = settings;
    launch.invoke = invoke;
    launch.call = call;
    gridDim = {settings.grid[0], settings.grid[1], settings.grid[2]};
    blockDim = {settings.block[0], settings.block[1], settings.block[2]};
    const int count = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
    launch.threads.resize(count);
    for (int i = 0; i < count; i++) {
        launch.threads[i].number = i;
        launch.threads[i].index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
    }
    launch.warps = turns((count + WARP - 1) / WARP, settings.order);
    launch.lanes = turns(WARP, settings.order);
    launch.in_warp_operation.resize(launch.warps.size());
    launch.random.seed(settings.seed);

    // Dynamic shared memory ends where its pages end, so that the first byte beyond it is out of reach.
    const size_t rounded = (settings.shared_bytes + SHARED_ALIGNMENT - 1) / SHARED_ALIGNMENT * SHARED_ALIGNMENT;
    const size_t opened = (rounded + GUARD - 1) / GUARD * GUARD;
    Pages pages(GUARD + opened + GUARD);
    if (!map_stacks(count) || !pages.open(GUARD, opened)) {
        unmap_stacks();
        return "cannot get memory for the threads' stacks";
    }
    launch.shared = pages.at(GUARD + opened - rounded);
    shared_pages = &pages;

    launched = &launch;
    {
        CatchFaults while_running;
        for (unsigned z = 0; z < gridDim.z; z++)
            for (unsigned y = 0; y < gridDim.y; y++)
                for (unsigned x = 0; x < gridDim.x && !launch.error[0]; x++) {
                    blockIdx = {x, y, z};
                    run_block();
                }
    }
    launched = nullptr;
    unmap_stacks();
    memcpy(last_error, launch.error, sizeof last_error);
    return last_error[0] ? last_error : nullptr;
}

// A kernel with its arguments: `values` are pointers to them, as cuLaunchKernel takes them.
template <class... Parameters>
struct Call {
    void (*kernel)(Parameters...);
    void** values;

    static void invoke(const void* call) {
        static_cast<const Call*>(call)->unpack(std::index_sequence_for<Parameters...>{});
    }
    template <size_t... I>
    void unpack(std::index_sequence<I...>) const {
        kernel(*static_cast<Parameters*>(values[I])...);
    }
};

template <class... Parameters>
const char* launch(void (*kernel)(Parameters...), const Settings& settings, void** values) {
    const Call<Parameters...> call = {kernel, values};
    return run(settings, Call<Parameters...>::invoke, &call);
}

// An address that a vector access needs aligned: on a GPU, one that is not stops the program.
static inline void check_aligned(const void* address, size_t bytes, const char* what, Place place = {}) {
    if (reinterpret_cast<uintptr_t>(address) % bytes) {
        misuse(*current, "%s at address %p (%s:%d), which is not a multiple of %zu", what, address, place.name(),
               place.line, bytes);
    }
}

}  // namespace emulate

// ---- barriers and fences ---------------------------------------------------------------------------------------

static inline void __syncthreads(emulate::Place place = {}) { emulate::block_barrier(place); }

static inline void __syncwarp(unsigned mask = ~0u) {  // lanes may meet from different lines
    int nothing = 0;
    emulate::warp_operation("__syncwarp", mask, emulate::Place("", 0), nothing, [](int**) {});
}

static inline void __threadfence() {}
static inline void __threadfence_block() {}

// ---- shuffles and votes ----------------------------------------------------------------------------------------

namespace emulate {

template <class T>
T shuffle(const char* operation, unsigned mask, T value, int source, int width, Place place) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8, "a shuffle moves a number");
    struct Data {
        T value;
        int source;
        T received;
    } mine = {value, source, value};
    if (width < 1 || width > WARP || (width & (width - 1))) {
        misuse(*current, "calls %s (%s:%d) with width %d, which is not 1, 2, 4, 8, 16 or 32", operation, place.name(),
               place.line, width);
    }
    warp_operation(operation, mask, place, mine, [&](Data** lanes) {
        for (int lane = 0; lane < WARP; lane++) {
            if (!lanes[lane]) continue;
            Data* from = lanes[lanes[lane]->source];
            if (!from) {
                misuse(*lane_of_warp(current->number / WARP, lane),
                       "calls %s (%s:%d) to read lane %d, which mask %#010x leaves out", operation, place.name(),
                       place.line, lanes[lane]->source, mask);
            }
            lanes[lane]->received = from->value;
        }
    });
    return mine.received;
}

// The lanes whose predicate holds.
static inline unsigned ballot(const char* operation, unsigned mask, int predicate, Place place) {
    struct Data {
        bool holds;
        unsigned lanes;
    } mine = {predicate != 0, 0};
    warp_operation(operation, mask, place, mine, [](Data** lanes) {
        unsigned holding = 0;
        for (int lane = 0; lane < WARP; lane++) holding |= unsigned{lanes[lane] && lanes[lane]->holds} << lane;
        for (int lane = 0; lane < WARP; lane++)
            if (lanes[lane]) lanes[lane]->lanes = holding;
    });
    return mine.lanes;
}

static inline int my_lane() { return current->number % WARP; }

}  // namespace emulate

// A shuffle stays within a group of `width` lanes; one that would leave it gives the lane its own value.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, emulate::Place place = {}) {
    int lane = emulate::my_lane();
    return emulate::shuffle("__shfl_sync", mask, value, (lane & ~(width - 1)) | (source & (width - 1)), width, place);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, emulate::Place place = {}) {
    int lane = emulate::my_lane(), within = lane & (width - 1);
    int source = static_cast<unsigned>(within) >= delta ? lane - static_cast<int>(delta) : lane;
    return emulate::shuffle("__shfl_up_sync", mask, value, source, width, place);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, emulate::Place place = {}) {
    int lane = emulate::my_lane(), within = lane & (width - 1);
    int source = within + delta < static_cast<unsigned>(width) ? lane + static_cast<int>(delta) : lane;
    return emulate::shuffle("__shfl_down_sync", mask, value, source, width, place);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, emulate::Place place = {}) {
    int lane = emulate::my_lane(), last = lane | (width - 1), source = (lane ^ lane_mask) & 31;
    return emulate::shuffle("__shfl_xor_sync", mask, value, source <= last ? source : lane, width, place);
}

static inline unsigned __ballot_sync(unsigned mask, int predicate, emulate::Place place = {}) {
    return emulate::ballot("__ballot_sync", mask, predicate, place);
}
static inline int __any_sync(unsigned mask, int predicate, emulate::Place place = {}) {
    return emulate::ballot("__any_sync", mask, predicate, place) != 0;
}
static inline int __all_sync(unsigned mask, int predicate, emulate::Place place = {}) {
    return emulate::ballot("__all_sync", mask, predicate, place) == mask;
}

// ---- atomics: threads take turns, so a plain read and write is one -----------------------------------------------

namespace emulate {
template <class T>
struct Same {  // keeps a parameter out of template deduction, so that atomicAdd(&unsigned_value, 1) compiles
    using type = T;
};
template <class T>
T exchange(T* address, T value) {
    T old = *address;
    *address = value;
    return old;
}
}  // namespace emulate

template <class T>
T atomicAdd(T* address, typename emulate::Same<T>::type value) {
    return emulate::exchange<T>(address, *address + value);
}
template <class T>
T atomicMax(T* address, typename emulate::Same<T>::type value) {
    static_assert(std::is_integral_v<T>, "CUDA has atomicMax for integers only");
    return emulate::exchange<T>(address, std::max(*address, value));
}
template <class T>
T atomicExch(T* address, typename emulate::Same<T>::type value) {
    return emulate::exchange<T>(address, value);
}
template <class T>
T atomicCAS(T* address, typename emulate::Same<T>::type compare, typename emulate::Same<T>::type value) {
    static_assert(std::is_integral_v<T>, "CUDA has atomicCAS for integers only");
    return emulate::exchange<T>(address, *address == compare ? value : *address);
}
