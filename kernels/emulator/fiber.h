// A fiber: a function with a stack of its own that can stop in the middle and go on later.
//
// The scheduler resumes a fiber; the fiber runs until it suspends itself, and the scheduler goes on after its resume().
// Switching means saving the registers that a called function must keep, on the stack that is being left, and taking
// another stack pointer: a dozen instructions on x86-64. Elsewhere ucontext does it, at two system calls a switch;
// -DMINILLM_UCONTEXT selects it everywhere.
#pragma once
#include <cstddef>
#include <cstdint>

#ifndef __x86_64__
#define MINILLM_UCONTEXT
#endif
#ifdef MINILLM_UCONTEXT
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulate {

#ifdef MINILLM_UCONTEXT

using Context = ucontext_t;

static void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}

static void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }

#else

struct Context {
    void* stack_pointer;
};

// Lay out a stack as if switch_context had been left there, about to return to the first line of entry().
static void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
    void** top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t{15});
    *--top = nullptr;  // the return address of entry(), which never returns: here backtraces end
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; i++) *--top = nullptr;  // the six registers that switch_context restores
    context.stack_pointer = top;
}

// System V ABI: the first argument arrives in rdi, the second in rsi; a callee keeps rbp, rbx and r12 to r15.
__attribute__((naked, noinline)) static void switch_stack(void** /*save*/, void* /*restore*/) {
    asm("push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15\n"
        "mov %rsp, (%rdi)\n"
        "mov %rsi, %rsp\n"
        "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp\n"
        "pop %rdx; jmp *%rdx");  // a ret would be predicted to go back where this was called
}

static void switch_context(Context& from, Context& to) {
    switch_stack(&from.stack_pointer, to.stack_pointer);
    asm volatile("" ::: "memory");  // other fibers have run: what was read before may have changed
}

#endif

// AddressSanitizer watches the stack and has to be told when it becomes another one.
struct Stack {
    const void* bottom;
    size_t bytes;
};
static void switch_stacks(Context& from, Context& to, [[maybe_unused]] Stack to_stack) {
#ifdef __SANITIZE_ADDRESS__
    void* left = nullptr;
    __sanitizer_start_switch_fiber(&left, to_stack.bottom, to_stack.bytes);
    switch_context(from, to);
    __sanitizer_finish_switch_fiber(left, nullptr, nullptr);
#else
    switch_context(from, to);
#endif
}

static Context scheduler;
static Stack scheduler_stack;

class Fiber {
   public:
    // The next resume() begins at entry(), which must never return: its last act is suspend().
    void start(char* stack, size_t bytes, void (*entry)()) {
        stack_ = {stack, bytes};
#ifdef __SANITIZE_ADDRESS__
        __asan_unpoison_memory_region(stack, bytes);  // what an abandoned launch has left
#endif
        prepare(context_, stack, bytes, entry);
    }

    // First line of entry().
    static void entered() {
#ifdef __SANITIZE_ADDRESS__
        __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack.bottom, &scheduler_stack.bytes);
#endif
    }

    void resume() { switch_stacks(scheduler, context_, stack_); }
    void suspend() { switch_stacks(context_, scheduler, scheduler_stack); }

   private:
    Context context_;
    Stack stack_;
};

}  // namespace emulate
