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
