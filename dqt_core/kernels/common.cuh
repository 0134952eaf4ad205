// common.cuh: what several kernels share. Compiles under nvcc, NVRTC (which has no standard headers) and, with
// cuda_cpu.hpp, as plain C++: whatever is written in PTX here has a second body that says exactly what it means.
//
// Variants of a kernel are chosen when it is compiled, by these macros:
//   X_SIGNED  1: activation codes are int8; 0: uint8
//   FLOOR     1: a switch rounds down; 0: half up
#pragma once
#ifndef __CUDACC__
#include "cuda_cpu.hpp"
#endif
#ifndef X_SIGNED
#define X_SIGNED 0
#endif
#ifndef FLOOR
#define FLOOR 0
#endif

#if X_SIGNED
typedef signed char Code;
#else
typedef unsigned char Code;
#endif
constexpr bool x_signed = X_SIGNED;
constexpr unsigned EACH_BYTE = 0x01010101u;  // times a byte: that byte four times

// Four master codes in one register, switched to `width` bits (Eq. 4 of the paper); switch.cu explains each step.
// The result is four codes again, one a byte; signed ones in two's complement.
__device__ inline unsigned switch4(unsigned codes, int width, bool is_signed) {
    int drop = 8 - width;
    if (drop == 0) return codes;
    if (is_signed) codes ^= 0x80 * EACH_BYTE;                    // -128..127 becomes 0..255, in order
    unsigned kept = (codes >> drop) & (0xFF >> drop) * EACH_BYTE;
    if (!FLOOR) {
        kept += (codes >> (drop - 1)) & EACH_BYTE;               // epsilon, the top dropped bit
        kept -= (kept >> width) & EACH_BYTE;                     // 2^width, which has no code, becomes 2^width - 1
    }
    if (is_signed)                                               // back: subtract 2^(width-1) in every byte
        kept = (kept + (0x80 - (1 << (width - 1))) * EACH_BYTE) ^ 0x80 * EACH_BYTE;
    return kept;
}

// Whether 16 bytes at this address may be read or written at once.
__device__ inline bool aligned16(const void* address) { return ((size_t)address & 15) == 0; }

// Sum of four products of bytes, plus `sum`; the bytes of a are signed, those of b as b_signed says.
template <bool b_signed> __device__ inline int dot4(unsigned a, unsigned b, int sum) {
#ifdef __CUDACC__
    if (b_signed) asm("dp4a.s32.s32 %0, %1, %2, %0;" : "+r"(sum) : "r"(a), "r"(b));
    else asm("dp4a.s32.u32 %0, %1, %2, %0;" : "+r"(sum) : "r"(a), "r"(b));
#else
    for (int i = 0; i < 32; i += 8) {
        int factor = b_signed ? int((signed char)(b >> i)) : int((unsigned char)(b >> i));
        sum += (signed char)(a >> i) * factor;
    }
#endif
    return sum;
}

// C (16 x 8, int32) += A (16 x 32, bytes signed as a_signed says) * B (32 x 8, int8), by a whole warp.
//
// With group = lane / 4 and t = lane % 4, a lane holds
//   a[0] A[group][4t..4t+3]   a[1] A[group+8][4t..]   a[2] A[group][16+4t..]   a[3] A[group+8][16+4t..]
//   b[0] B[4t..4t+3][group]   b[1] B[16+4t..][group]
//   c[0] C[group][2t]         c[1] C[group][2t+1]     c[2] C[group+8][2t]      c[3] C[group+8][2t+1]
// From sm_80 this is one instruction. sm_75 multiplies 8 x 16 by 16 x 8; the pieces of the same registers fit.
#ifdef __CUDACC__
#define MMA_8X8X16(type, c0, c1, a, b) \
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32." type ".s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};" \
                 : "+r"(c0), "+r"(c1) : "r"(a), "r"(b))
#define MMA_16X8X32(type, c, a, b) \
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32." type ".s8.s32 " \
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
#endif
template <bool a_signed>
__device__ inline void mma_16x8x32(int (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifndef __CUDACC__
    cuda_cpu::warp_matrix_product<a_signed>(c, a, b);
#elif __CUDA_ARCH__ >= 800
    if (a_signed) MMA_16X8X32("s8", c, a, b);
    else MMA_16X8X32("u8", c, a, b);
#else
    for (int half = 0; half < 2; half++)      // rows 0-7, rows 8-15
        for (int k = 0; k < 2; k++) {         // terms 0-15, terms 16-31
            if (a_signed) MMA_8X8X16("s8", c[2 * half], c[2 * half + 1], a[half + 2 * k], b[k]);
            else MMA_8X8X16("u8", c[2 * half], c[2 * half + 1], a[half + 2 * k], b[k]);
        }
#endif
}

// One term of a requantize, (a << drop) * multiplier: the product of two 32-bit numbers is exact in 64 bits.
__device__ inline long long scaled(int a, int drop, int multiplier) {
    return (long long)a * multiplier << drop;
}

// The one rounding: (sum + 2^(r-1)) >> r, ties up, clamped to lo..hi.
__device__ inline int rounded(long long sum, int r, int lo, int hi) {
    long long shifted = (sum + (1ll << (r - 1))) >> r;
    return shifted < lo ? lo : shifted > hi ? hi : int(shifted);
}

// ---- what kernels are given by name ----
// The host fills these structs by the names of their fields (dqt_core.kernels.structs) and passes them by value; what
// it does not name is 0 or null. Pointers come first and the ints are even in number, so nothing is padded.

// A term of a requantize: (x << drop) * multiplier + offset. An image's choice picks the row of both tables, and
// the drop: what the widths of its codes are short of 16 bits.
struct Term {
    const void* x;            // (N, H, W, C)
    const int* multiplier;    // (rows, C)
    const long long* offset;  // (rows, C)
    const int* picks;         // (N): every image's choice; null: choice 0
    const int* bits;          // (K, 2): weight bits and input bits of every choice; null: drop is 0
    int kind;                 // of x: 0 there is no such term, 1 uint8 codes, 2 int8 codes, 3 int32 sums
    int rows;                 // K or 1
};

// A convolution, and the requantize that it takes along. A group is the images that made the same choice: `order` lists
// the images group by group, `starts` says where each begins.
struct Convolution {
    const Code* x;              // (N, H, W, C) master codes
    const signed char* weight;  // (O, kh, kw, C / groups) master codes
    const int* order;           // (N)
    const int* starts;          // (K + 1)
    const int* bits;            // (K, 2): weight bits and input bits of every choice
    int* sums;                  // out, (N, OH, OW, O): integer.conv2d (floor: integer.conv2d_mid_bin); null: not kept
    void* codes;                // out, (N, OH, OW, O): codes; null: none are made
    Term own;                   // of the sums, at the choices of the convolution: its tables alone are read
    Term skip;                  // of what is added to them
    int N, C, H, W, O, OH, OW, kh, kw, stride, padding, groups;
    int choices;                // K
    int r, lo, hi;              // of the requantize
};

__device__ inline int code_at(const void* codes, int kind, long long i) {
    return kind == 2 ? int(__ldg(static_cast<const signed char*>(codes) + i))
                     : int(__ldg(static_cast<const unsigned char*>(codes) + i));
}

// What a term makes of x, for a channel of C.
__device__ inline long long value_of(const Term& term, int x, int drop, int choice, int channel, int C) {
    int at = (term.rows > 1 ? choice : 0) * C + channel;
    return scaled(x, drop, __ldg(term.multiplier + at)) + __ldg(term.offset + at);
}

// The same of its own x at i, which belongs to an image.
__device__ inline long long value_at(const Term& term, long long i, int image, int channel, int C) {
    if (!term.kind) return 0;
    int x = term.kind == 3 ? __ldg(static_cast<const int*>(term.x) + i) : code_at(term.x, term.kind, i);
    int choice = term.picks ? term.picks[image] : 0;
    int drop = term.bits ? 16 - term.bits[2 * choice] - term.bits[2 * choice + 1] : 0;
    return value_of(term, x, drop, choice, channel, C);
}

// Write output i, of channel o, whose window's codes add up to `window`; conv.cu writes four channels at once.
__device__ inline void finish(const Convolution& c, int sum, int window, int choice, int image, long long i, int o) {
    int weight_drop = 8 - c.bits[2 * choice], input_drop = 8 - c.bits[2 * choice + 1], drop = weight_drop + input_drop;
    if (FLOOR) {  // half steps of weights at the middle of their bins: integer.conv2d_mid_bin
        sum = (sum << (1 + drop)) + (((1 << weight_drop) - 1) * window << input_drop);
        drop = 0;
    }
    if (c.sums) c.sums[i] = sum;
    if (!c.codes) return;
    long long total = value_of(c.own, sum, drop, choice, o, c.O) + value_at(c.skip, i, image, o, c.O);
    static_cast<unsigned char*>(c.codes)[i] = static_cast<unsigned char>(rounded(total, c.r, c.lo, c.hi));
}
