// switch.cu: from 8-bit master codes to any width, and what it is measured against.
//
// A walk through `switch_codes`
// -----------------------------
// *What a thread does.* Thread t reads codes 16t to 16t+15, switches them in its registers and writes them back.
// Nothing is shared between threads, so there is no barrier; the last thread may find fewer than 16.
//
// *Why 16 bytes.* A switch is a few integer operations on a byte that must travel from memory and back: memory is
// the limit. 16 bytes is the widest load a thread can issue, so a warp asks for 512 bytes in a row with a single
// instruction, the fewest instructions for the bytes. It needs an address that is a multiple of 16; where an array
// starts elsewhere, codes are taken one by one, slower and with the same result.
//
// *Why four codes at once.* A register has 32 bits and a code 8. An addition or a shift does not know of the
// borders between codes, but if no code grows out of its byte and what a shift drags over a border is cut off, one
// instruction works on four codes: SIMD within a register. switch4 in common.cuh does so. Here for one byte, with
// width 4, so drop = 4, on the codes 88 and 248 (? is a bit of the neighbouring code):
//
//                                               01011000     11111000
//     codes >> drop                             ????0101     ????1111   the shift, with a neighbour's bits on top
//     & (0xFF >> drop)                          00000101     00001111   cut off: this is the `floor` code
//     (codes >> (drop - 1)) & 1                 00000001     00000001   epsilon, the top dropped bit
//     their sum                                 00000110     00010000   at most 2^width, and width is at most 7 here:
//                                                                       no sum leaves its byte
//     (sum >> width) & 1                        00000000     00000001   1 only where the sum is 2^width,
//     sum minus that                            00000110     00001111   which has no code: the highest one instead
//
// A signed code first has its top bit flipped, which adds 128 and turns -128..127 into 0..255 in the same order;
// rounding does not mind, as 128 is a multiple of 2^drop. At the end 2^(width-1) is subtracted in every byte. A
// subtraction could borrow from the neighbour, so 128 - 2^(width-1) is added (the sum stays below 192) and the top
// bit flipped again, which subtracts the 128. Width 8 leaves a code as it is.
//
// *Why always from the master.* With `floor`, (q >> c) >> d is q >> (c + d): every path of switches ends at the
// same code. `half_up` rounds each time: 24 is 2 at width 4 (1.5 rounds up) and that is 1 at width 2 (0.5 rounds
// up), but 24 itself is 0.375 steps of width 2, and rounds to 0. So a half_up code is made from the 8-bit master.
#include "common.cuh"

constexpr int PER_THREAD = 16;

extern "C" __global__ void switch_codes(const Code* codes, Code* out, long long n, int width) {
    long long first = PER_THREAD * (blockIdx.x * (long long)blockDim.x + threadIdx.x);
    if (first + PER_THREAD <= n && aligned16(codes) && aligned16(out)) {
        uint4 four_words = *(const uint4*)(codes + first);
        four_words.x = switch4(four_words.x, width, x_signed);
        four_words.y = switch4(four_words.y, width, x_signed);
        four_words.z = switch4(four_words.z, width, x_signed);
        four_words.w = switch4(four_words.w, width, x_signed);
        *(uint4*)(out + first) = four_words;
        return;
    }
    for (long long i = first; i < n && i < first + PER_THREAD; i++)
        out[i] = Code(switch4((unsigned char)codes[i], width, x_signed));
}

// ---- The usual way, through floats ----
// What a switch costs where a code is only meaningful after it is multiplied by its step. Written with the same
// care, so that the comparison is fair: neighbouring threads touch neighbouring memory, and the float array is read
// and written 16 bytes at a time. Where step is a power of two every product is exact and the codes are those
// of half_up; elsewhere a product is rounded, and a tie may go the other way.

__device__ inline float real(unsigned word, int byte, float step) {
    return __fmul_rn(float(Code(word >> 8 * byte)), step);
}

__device__ inline unsigned nearest(float x, float inverse_step, int lo, int hi) {
    float code = floorf(__fadd_rn(__fmul_rn(x, inverse_step), 0.5f));
    return (unsigned char)int(fminf(fmaxf(code, float(lo)), float(hi)));
}

// x = step * code. Four codes a thread: four bytes read, one 16-byte write.
extern "C" __global__ void dequantize(const Code* codes, float* x, float step, long long n) {
    long long first = 4 * (blockIdx.x * (long long)blockDim.x + threadIdx.x);
    if (first + 4 <= n && aligned16(codes) && aligned16(x)) {
        unsigned word = *(const unsigned*)(codes + first);
        *(float4*)(x + first) =
            make_float4(real(word, 0, step), real(word, 1, step), real(word, 2, step), real(word, 3, step));
        return;
    }
    for (long long i = first; i < n && i < first + 4; i++) x[i] = real((unsigned char)codes[i], 0, step);
}

// code = clamp(floor(x * inverse_step + 1/2), lo, hi), where inverse_step = 1 / (step * 2^drop).
extern "C" __global__ void requantize_float(const float* x, Code* out, float inverse_step, int lo, int hi,
                                            long long n) {
    long long first = 4 * (blockIdx.x * (long long)blockDim.x + threadIdx.x);
    if (first + 4 <= n && aligned16(x) && aligned16(out)) {
        float4 four = *(const float4*)(x + first);
        *(unsigned*)(out + first) = nearest(four.x, inverse_step, lo, hi) | nearest(four.y, inverse_step, lo, hi) << 8 |
                                    nearest(four.z, inverse_step, lo, hi) << 16 |
                                    nearest(four.w, inverse_step, lo, hi) << 24;
        return;
    }
    for (long long i = first; i < n && i < first + 4; i++) out[i] = Code(nearest(x[i], inverse_step, lo, hi));
}

// Both in one pass, the floats never leaving registers: as much memory traffic as switch_codes, more arithmetic.
extern "C" __global__ void dequantize_requantize(const Code* codes, Code* out, float step, float inverse_step, int lo,
                                                 int hi, long long n) {
    long long first = PER_THREAD * (blockIdx.x * (long long)blockDim.x + threadIdx.x);
    if (first + PER_THREAD <= n && aligned16(codes) && aligned16(out)) {
        uint4 four_words = *(const uint4*)(codes + first);
        unsigned* words = (unsigned*)&four_words;
        for (int w = 0; w < 4; w++) {
            unsigned switched = 0;
            for (int byte = 0; byte < 4; byte++)
                switched |= nearest(real(words[w], byte, step), inverse_step, lo, hi) << 8 * byte;
            words[w] = switched;
        }
        *(uint4*)(out + first) = four_words;
        return;
    }
    for (long long i = first; i < n && i < first + PER_THREAD; i++)
        out[i] = Code(nearest(real((unsigned char)codes[i], 0, step), inverse_step, lo, hi));
}
