// cuda_cpu.hpp: what CUDA kernels need to run on the CPU, compiled as ordinary C++17.
//
// The kernels of this package are compiled twice: by nvcc or NVRTC for a GPU, and by a C++ compiler with this
// header, so that a computer without a GPU can check every bit that they compute.
//
// Blocks run one after another. Every thread of a block is a *fiber*: a stack of its own, and a saved stack
// pointer. A fiber runs until it waits (at __syncthreads, __syncwarp, a shuffle or a matrix product) or ends;
// then the scheduler takes the next one. A warp runs as far ahead of the other warps as its barriers allow, and
// lanes run in ascending or, on demand, descending order: where a barrier is missing, one of the two orders reads
// what has not been written yet. Shared memory starts every block filled with a pattern, so a value that nobody
// wrote is seen too.
//
// A kernel that goes wrong (threads at different barriers, a shuffle from a thread that has ended, an address
// outside memory) ends its launch with a message that names the thread; the process lives on.
#pragma once
#ifndef __linux__
#error "the emulator needs Linux: it finds the shared memory as a section of an ELF file"
#endif
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <cmath>
#include <sys/mman.h>
#include <utility>
#if !defined(__x86_64__) || defined(CUDA_CPU_UCONTEXT)
#define CUDA_CPU_UCONTEXT
#include <ucontext.h>
#endif

// ---- the words of CUDA ----
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// All __shared__ variables lie in one section, whose start and end the linker knows: see start_block.
#define __shared__ static __attribute__((section("cuda_shared")))
extern "C" __attribute__((weak, visibility("hidden"))) char __start_cuda_shared[], __stop_cuda_shared[];

#define CUDA_CPU_VECTOR2(name, type) \
    struct alignas(2 * sizeof(type)) name { type x, y; }; \
    inline name make_##name(type x, type y) { return {x, y}; }
#define CUDA_CPU_VECTOR4(name, type) \
    struct alignas(4 * sizeof(type)) name { type x, y, z, w; }; \
    inline name make_##name(type x, type y, type z, type w) { return {x, y, z, w}; }
CUDA_CPU_VECTOR2(int2, int)
CUDA_CPU_VECTOR2(uint2, unsigned)
CUDA_CPU_VECTOR4(int4, int)
CUDA_CPU_VECTOR4(uint4, unsigned)
CUDA_CPU_VECTOR4(char4, signed char)
CUDA_CPU_VECTOR4(uchar4, unsigned char)
CUDA_CPU_VECTOR4(float4, float)
struct dim3 { unsigned x, y, z; };

// ---- fibers ----
namespace cuda_cpu {
constexpr int WARP = 32, MOST_THREADS = 1024;
// 64 KiB of stack a thread; the 64 bytes more spread the tops of the stacks over the sets of the cache.
constexpr size_t STACK = (64 << 10) + 64;
constexpr int POISON = 0xA5;

#ifdef CUDA_CPU_UCONTEXT  // portable, with a system call in every switch
typedef ucontext_t Context;
static void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }
static void start_context(Context& context, char* stack, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = STACK;
    makecontext(&context, entry, 0);
}
#else
// x86-64: a function call keeps rbx, rbp and r12 to r15, so these and the stack pointer are all there is to save.
// The last two lines are a return; written as `ret` it would be predicted to go back to this fiber, and cost thrice.
typedef void* Context;
extern "C" void cuda_cpu_switch(Context* from, Context to) __attribute__((visibility("hidden")));
asm(R"(
    .text
    .hidden cuda_cpu_switch
    .globl cuda_cpu_switch
    .type cuda_cpu_switch, @function
cuda_cpu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    popq %rcx
    jmp *%rcx
    .size cuda_cpu_switch, . - cuda_cpu_switch
)");
static void switch_context(Context& from, Context& to) { cuda_cpu_switch(&from, to); }
static void start_context(Context& context, char* stack, void (*entry)()) {
    // What the first switch pops: six registers, the entry's address, and a return address that is never used.
    void** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + STACK) & ~uintptr_t(15)) - 8;
    memset(top, 0, 8 * sizeof(void*));
    top[6] = reinterpret_cast<void*>(entry);
    context = top;
}
#endif

enum State { READY, AT_BLOCK_BARRIER, AT_WARP, ENDED };
struct Thread;
typedef void (*Collective)(Thread* lanes, int count);
struct Thread {
    Context context;
    dim3 index;
    State state;
    int line;               // of the source, where it waits
    Collective collective;  // what its warp does once all of its lanes are there
    void* result;           // operands of the collective, in the waiting thread's own stack
    const void *a, *b;
    int source;             // of a shuffle
};
static Thread threads[MOST_THREADS];
static Thread* current;
static Context scheduler;
static char* stacks;
static dim3 block_index, block_size, grid_size;
static void (*kernel_body)();
static void** arguments;
static bool reversed;
static char failure[512];  // empty: all is well

// Keep the first message.
__attribute__((format(printf, 1, 2))) static void fail(const char* format, ...) {
    if (failure[0]) return;
    va_list values;
    va_start(values, format);
    vsnprintf(failure, sizeof failure, format, values);
    va_end(values);
}

static void wait_as(State state, int line) {
    current->state = state;
    current->line = line;
    switch_context(current->context, scheduler);
}
static void fiber() {
    kernel_body();
    wait_as(ENDED, 0);
}
static void start_thread(Thread& thread, int i) {
    thread.index = {i % block_size.x, i / block_size.x % block_size.y, i / (block_size.x * block_size.y)};
    thread.state = READY;
    start_context(thread.context, stacks + i * STACK, fiber);
}
static void resume(Thread& thread) {
    current = &thread;
    switch_context(scheduler, thread.context);
    current = nullptr;
}

// All threads that have not ended wait in the same state, at the same line, for the same thing.
static bool together(const Thread* first, int count, State state) {
    const Thread* one = nullptr;
    for (int i = 0; i < count; i++) {
        const Thread& thread = first[i];
        if (thread.state == ENDED) continue;
        if (!one) one = &thread;
        bool same = thread.line == one->line && (state != AT_WARP || thread.collective == one->collective);
        if (thread.state == state && same) continue;
        fail("a divergent barrier, which stops a GPU for ever: thread (%u, %u, %u) waits at line %d, thread "
             "(%u, %u, %u) at line %d", one->index.x, one->index.y, one->index.z, one->line,
             thread.index.x, thread.index.y, thread.index.z, thread.line);
        return false;
    }
    return true;
}
static bool any(const Thread* first, int count, State state) {
    for (int i = 0; i < count; i++) if (first[i].state == state) return true;
    return false;
}
static void release(Thread* first, int count) {
    for (int i = 0; i < count; i++) if (first[i].state != ENDED) first[i].state = READY;
}

// Run a warp until each of its threads has ended or waits for the block.
static void run_warp(Thread* lanes, int count) {
    for (;;) {
        for (int i = 0; i < count && !failure[0]; i++) {
            Thread& thread = lanes[reversed ? count - 1 - i : i];
            if (thread.state == READY) resume(thread);
        }
        if (failure[0] || !any(lanes, count, AT_WARP) || !together(lanes, count, AT_WARP)) return;
        for (int i = 0; i < count; i++)
            if (lanes[i].state == AT_WARP) { lanes[i].collective(lanes, count); break; }
        release(lanes, count);
    }
}
static void run_block(int count) {
    if (__start_cuda_shared) memset(__start_cuda_shared, POISON, __stop_cuda_shared - __start_cuda_shared);
    for (int i = 0; i < count; i++) start_thread(threads[i], i);
    int warps = (count + WARP - 1) / WARP;
    for (;;) {
        for (int i = 0; i < warps && !failure[0]; i++) {
            int first = (reversed ? warps - 1 - i : i) * WARP;
            run_warp(threads + first, count - first < WARP ? count - first : WARP);
        }
        if (failure[0] || !any(threads, count, AT_BLOCK_BARRIER) || !together(threads, count, AT_BLOCK_BARRIER))
            return;
        release(threads, count);
    }
}

// ---- what a warp does together; the scheduler calls these once all lanes are there ----
static void nothing(Thread*, int) {}
static void warp_wait(Collective collective, int line) {
    current->collective = collective;
    wait_as(AT_WARP, line);
}
static void shuffle(Thread* lanes, int count) {
    for (int i = 0; i < count; i++) {
        if (lanes[i].state == ENDED) continue;
        int source = lanes[i].source;
        if (source >= count || lanes[source].state == ENDED)
            return fail("a shuffle reads lane %d, which is not there (line %d)", source, lanes[i].line);
        memcpy(lanes[i].result, lanes[source].a, 4);
    }
}
template <class T> T shuffle_from(unsigned mask, T value, int source, int line) {
    static_assert(sizeof(T) == 4, "shuffles move 32 bits");
    T result = value;
    if (mask != ~0u) fail("a shuffle with the mask %08x (line %d); the emulator knows whole warps only", mask, line);
    current->result = &result, current->a = &value, current->source = source;
    warp_wait(shuffle, line);
    return result;
}
inline int lane() { return int(current - threads) % WARP; }

// Matrix product C += A * B of a warp, by definition. A (16 x 32), B (32 x 8), C (16 x 8); a lane holds 4 bytes of
// a row of A or of a column of B in a register, as PTX lays down for mma.m16n8k32.
template <bool a_signed> void matrix_product(Thread* lanes, int count) {
    short a[16][32], b[8][32];
    for (int i = 0; i < WARP; i++) {
        if (i >= count || lanes[i].state == ENDED) return fail("a matrix product needs all 32 lanes of a warp");
        const unsigned char* a_bytes = static_cast<const unsigned char*>(lanes[i].a);
        const signed char* b_bytes = static_cast<const signed char*>(lanes[i].b);
        int group = i / 4, k = i % 4 * 4;
        for (int byte = 0; byte < 16; byte++) {  // registers 0, 1: k 0-15 of rows 0-7, 8-15; 2, 3: k 16-31
            int value = a_signed ? static_cast<signed char>(a_bytes[byte]) : a_bytes[byte];
            a[group + 8 * (byte / 4 % 2)][k + 16 * (byte / 8) + byte % 4] = short(value);
        }
        for (int byte = 0; byte < 8; byte++) b[group][k + 16 * (byte / 4) + byte % 4] = b_bytes[byte];
    }
    for (int i = 0; i < WARP; i++) {
        int* c = static_cast<int*>(lanes[i].result);
        for (int j = 0; j < 4; j++) {
            const short *row = a[i / 4 + 8 * (j / 2)], *column = b[i % 4 * 2 + j % 2];
            int sum = 0;
            for (int k = 0; k < 32; k++) sum += row[k] * column[k];
            c[j] += sum;
        }
    }
}
template <bool a_signed> void warp_matrix_product(int (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    current->result = c, current->a = a, current->b = b;
    warp_wait(matrix_product<a_signed>, __LINE__);
}

// ---- launching ----
static void on_signal(int number, siginfo_t* info, void*) {
    if (!current) {  // not a kernel's fault: let it end the process as usual
        signal(number, SIG_DFL);
        return;
    }
    if (number == SIGSEGV || number == SIGBUS) fail("an access outside memory, at address %p", info->si_addr);
    else fail("an operation that C++ leaves undefined");
    current->state = ENDED;
    Context abandoned;
    switch_context(abandoned, scheduler);
}
constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};

static void run_grid() {
    int count = block_size.x * block_size.y * block_size.z;
    for (unsigned z = 0; z < grid_size.z; z++)
        for (unsigned y = 0; y < grid_size.y; y++)
            for (unsigned x = 0; x < grid_size.x; x++) {
                block_index = {x, y, z};
                run_block(count);
                if (failure[0]) return;
            }
}
// Returns null, or what went wrong. A fault is handled on a stack of its own, as a full stack may be its cause.
static const char* launch(void (*body)(), const unsigned* sizes, void** values, int backwards) {
    static char signal_stack[64 << 10];
    if (!stacks) {
        stacks = static_cast<char*>(mmap(nullptr, MOST_THREADS * STACK, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (stacks == MAP_FAILED) return stacks = nullptr, "no memory for the stacks of the threads";
    }
    kernel_body = body, arguments = values, reversed = backwards, failure[0] = 0;
    grid_size = {sizes[0], sizes[1], sizes[2]}, block_size = {sizes[3], sizes[4], sizes[5]};
    stack_t ours = {}, theirs;
    ours.ss_sp = signal_stack, ours.ss_size = sizeof signal_stack;
    sigaltstack(&ours, &theirs);
    struct sigaction action = {}, previous[4];
    action.sa_sigaction = on_signal, action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], &action, &previous[i]);
    run_grid();
    for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], &previous[i], nullptr);
    sigaltstack(&theirs, nullptr);
    if (!failure[0]) return nullptr;
    size_t end = strlen(failure);
    snprintf(failure + end, sizeof failure - end, ", in block (%u, %u, %u)", block_index.x, block_index.y, block_index.z);
    return failure;
}

// The types of a kernel's arguments in NumPy's words, for the host to compare with what it was given.
template <class T> struct Name;
template <> struct Name<void> { static constexpr const char* text = "any"; };
template <> struct Name<signed char> { static constexpr const char* text = "int8"; };
template <> struct Name<unsigned char> { static constexpr const char* text = "uint8"; };
template <> struct Name<int> { static constexpr const char* text = "int32"; };
template <> struct Name<unsigned> { static constexpr const char* text = "uint32"; };
template <> struct Name<long long> { static constexpr const char* text = "int64"; };
template <> struct Name<float> { static constexpr const char* text = "float32"; };
template <class T> struct Argument {
    static int write(char* out, size_t size) { return snprintf(out, size, "%s,", Name<T>::text); }
};
template <class T> struct Argument<T*> {
    static int write(char* out, size_t size) { return snprintf(out, size, "%s*,", Name<T>::text); }
};
template <class T> struct Argument<const T*> {
    static int write(char* out, size_t size) { return snprintf(out, size, "const %s*,", Name<T>::text); }
};
// One after another; those of a struct are its fields', which the emulator names.
template <class... A> struct Arguments {
    static int write(char* out, size_t size) {
        size_t end = 0;
        ((end += Argument<A>::write(out + end, size - end)), ...);
        return int(end);
    }
};
template <class... A> const char* signature(void (*)(A...)) {
    static char text[2048];
    Arguments<A...>::write(text, sizeof text);
    return text;
}
template <auto kernel, class... A, size_t... i> void call(void (*)(A...), std::index_sequence<i...>) {
    kernel(*static_cast<A*>(arguments[i])...);
}
template <auto kernel, class... A> void call_all(void (*of)(A...)) {
    call<kernel>(of, std::make_index_sequence<sizeof...(A)>());
}
template <auto kernel> void body() { call_all<kernel>(kernel); }
}  // namespace cuda_cpu

// Makes a kernel callable from outside; the emulator writes one such line for each kernel of a source.
#define CUDA_CPU_EXPORT(kernel) \
    extern "C" __attribute__((visibility("default"))) const char* kernel##_launch( \
        const unsigned* sizes, void** values, int backwards) { \
        return cuda_cpu::launch(cuda_cpu::body<kernel>, sizes, values, backwards); \
    } \
    extern "C" __attribute__((visibility("default"))) const char* kernel##_signature() { \
        return cuda_cpu::signature(kernel); \
    }

// ---- CUDA's built-in variables and functions, as far as the kernels use them ----
#define threadIdx (cuda_cpu::current->index)
#define blockIdx cuda_cpu::block_index
#define blockDim cuda_cpu::block_size
#define gridDim cuda_cpu::grid_size
#define __syncthreads() cuda_cpu::wait_as(cuda_cpu::AT_BLOCK_BARRIER, __LINE__)
#define __syncwarp() cuda_cpu::warp_wait(cuda_cpu::nothing, __LINE__)
#define __shfl_sync(mask, value, source) cuda_cpu::shuffle_from(mask, value, (source) & 31, __LINE__)
#define __shfl_xor_sync(mask, value, bits) cuda_cpu::shuffle_from(mask, value, cuda_cpu::lane() ^ (bits), __LINE__)
#define __shfl_down_sync(mask, value, by) \
    cuda_cpu::shuffle_from(mask, value, cuda_cpu::lane() + (by) < 32 ? cuda_cpu::lane() + (by) : cuda_cpu::lane(), __LINE__)
#define __shfl_up_sync(mask, value, by) \
    cuda_cpu::shuffle_from(mask, value, cuda_cpu::lane() - (by) < 0 ? cuda_cpu::lane() : cuda_cpu::lane() - (by), __LINE__)

template <class T> inline T min(T a, T b) { return b < a ? b : a; }
template <class T> inline T max(T a, T b) { return a < b ? b : a; }
template <class T> inline T __ldg(const T* address) { return *address; }
template <class T> inline T atomicAdd(T* address, T value) { T old = *address; *address += value; return old; }
// The products of CUDA's float intrinsics are rounded once each and never fused.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
// Four bytes chosen by the four lowest hexadecimal digits: 0-3 from a, 4-7 from b, the lowest digit first.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned digits) {
    unsigned long long both = (unsigned long long)b << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) result |= unsigned(both >> 8 * (digits >> 4 * i & 7) & 255) << 8 * i;
    return result;
}
