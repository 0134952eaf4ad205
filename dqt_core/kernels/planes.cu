// planes.cu: master codes as eight bit planes, and a matrix-vector product that reads only the planes it needs.
//
// The layout is that of nested.to_planes: a row of codes becomes ceil(length / 8) bytes in each plane, plane 0
// holds the most significant bits, and the first code of a byte lies in its top bit. The planes of a matrix
// (rows, length) are (8, rows, ceil(length / 8)); a reader of b bits touches the first b of them, b/8 of the bytes.
#include "common.cuh"

// Bits to bytes and back by one multiplication: with m = 2^27 + 2^18 + 2^9 + 1, bit 8j of a word lands on bit 27 - j
// of word * m, and bit i of a nibble lands on bit 27 - 8i of nibble * m. No two products meet, so nothing carries.
constexpr unsigned GATHER = 0x08040201u;

// Bit `bit` of four codes, the first code in the highest of four bits.
__device__ inline unsigned gathered(unsigned codes, int bit) {
    return ((codes >> bit & EACH_BYTE) * GATHER >> 24) & 15;
}

// The other way: each of four bits in the lowest bit of a byte of its own, the highest bit in the first byte.
__device__ inline unsigned scattered(unsigned nibble) { return (nibble * GATHER >> 3) & EACH_BYTE; }

// Eight codes of a row that ends after `left` codes; zeros beyond. `whole`: rows start at multiples of 8 bytes.
__device__ inline uint2 load_eight(const Code* codes, int left, bool whole) {
    if (whole && left >= 8) return *(const uint2*)codes;
    unsigned words[2] = {};
    for (int j = 0; j < 8 && j < left; j++) words[j / 4] |= unsigned((unsigned char)codes[j]) << 8 * (j % 4);
    return make_uint2(words[0], words[1]);
}

__device__ inline void store_eight(Code* codes, uint2 eight, int left, bool whole) {
    if (whole && left >= 8) {
        *(uint2*)codes = eight;
        return;
    }
    for (int j = 0; j < 8 && j < left; j++) codes[j] = Code((j < 4 ? eight.x : eight.y) >> 8 * (j % 4));
}

// A thread takes eight codes of a row, and gives every plane one byte: ceil(length / 8) threads a row.
extern "C" __global__ void pack_planes(const Code* codes, unsigned char* planes, int rows, int length) {
    int row_bytes = (length + 7) / 8;
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x, plane_bytes = (long long)rows * row_bytes;
    if (i >= plane_bytes) return;
    int column = int(i % row_bytes) * 8;
    bool whole = length % 8 == 0 && aligned16(codes);
    uint2 eight = load_eight(codes + i / row_bytes * length + column, length - column, whole);
    for (int plane = 0; plane < 8; plane++) {
        int bit = 7 - plane;
        planes[plane * plane_bytes + i] = (unsigned char)(gathered(eight.x, bit) << 4 | gathered(eight.y, bit));
    }
}

// The codes of a width from the first planes; half_up reads one plane more, which holds the top dropped bit.
// A thread takes one byte of each plane, and gives eight codes.
extern "C" __global__ void unpack_planes(const unsigned char* planes, Code* codes, int rows, int length, int width) {
    int row_bytes = (length + 7) / 8, needed = FLOOR || width == 8 ? width : width + 1;
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x, plane_bytes = (long long)rows * row_bytes;
    if (i >= plane_bytes) return;
    uint2 eight = make_uint2(0, 0);  // master codes, with zeros where no plane is read
    for (int plane = 0; plane < needed; plane++) {
        unsigned byte = planes[plane * plane_bytes + i];
        eight.x |= scattered(byte >> 4) << (7 - plane);
        eight.y |= scattered(byte & 15) << (7 - plane);
    }
    eight.x = switch4(eight.x, width, x_signed);
    eight.y = switch4(eight.y, width, x_signed);
    int column = int(i % row_bytes) * 8;
    bool whole = length % 8 == 0 && aligned16(codes);
    store_eight(codes + i / row_bytes * length + column, eight, length - column, whole);
}

// ---- y[n][o] = sum over k of code_b(weight[o][k]) * x[n][k], reading b planes of the weights ----
//
// With one input vector a weight is used once, so the time is that of reading the weights: b/8 of it remains.
// A warp computes one output at a time. Each lane loads 16 bytes of every plane, 512 in a row by the warp, which
// are the bits of 128 weights; 4096 weights a warp are one *chunk*.
//
// *Bits to codes.* In a 32-bit word of a plane, byte j holds the bits of weights 8j to 8j+7, the first on top. So
// (word >> s) & 0x01010101 is one bit of each of the four weights 8j + 7 - s: one byte a weight, as a product of
// four bytes (dp4a) wants them, but eight weights apart. Weights are many and inputs few: the weights stay in this
// order, and the inputs are put into the same order, once, in shared memory.
//
// *No sign, no rounding.* Plane p goes to bit 7 - p of the byte. The byte is then the master with its low bits
// zero, code_b << drop, as a signed number; the sum is shifted right by drop at the end, and that is exact.
#ifndef BATCH
#define BATCH 1  // input vectors, of which the weights are read once; `batch` says how many there are
#endif
constexpr int CHUNK = 4096, LANE_CODES = CHUNK / 32, WARPS = 8;

__device__ inline unsigned word_of(uint4 words, int i) {
    return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
}

// Byte c of four words, c = 3 (in .x) to 0 (in .w): the transpose of a 4 x 4 matrix of bytes, last row first.
__device__ inline uint4 columns_from_last(unsigned a, unsigned b, unsigned c, unsigned d) {
    unsigned low_ab = __byte_perm(a, b, 0x5140), low_cd = __byte_perm(c, d, 0x5140);    // a0 b0 a1 b1, c0 d0 c1 d1
    unsigned high_ab = __byte_perm(a, b, 0x7362), high_cd = __byte_perm(c, d, 0x7362);  // a2 b2 a3 b3, c2 d2 c3 d3
    return make_uint4(__byte_perm(high_ab, high_cd, 0x7632), __byte_perm(high_ab, high_cd, 0x5410),
                      __byte_perm(low_ab, low_cd, 0x7632), __byte_perm(low_ab, low_cd, 0x5410));
}

// 16 bytes of a row that ends after `left` more; zeros beyond. `whole`: rows start at multiples of 16 bytes.
__device__ inline uint4 sixteen(const unsigned char* bytes, int left, bool whole) {
    if (whole && left >= 16) return *(const uint4*)bytes;
    unsigned words[4];
#pragma unroll
    for (int word = 0; word < 4; word++) {
        words[word] = 0;
#pragma unroll 1
        for (int i = 0; i < 4 && 4 * word + i < left; i++) words[word] |= unsigned(bytes[4 * word + i]) << 8 * i;
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// One block of 256 threads for every 8 outputs; the registers of at least 2 blocks fit a multiprocessor.
extern "C" __global__ void __launch_bounds__(32 * WARPS, 2)
gemv_planes(const unsigned char* planes, const Code* x, int* y, int outputs, int length, int batch, int width) {
    // [vector][word of 32 codes][its upper, its lower half][lane]: a warp reads 512 bytes in a row.
    __shared__ uint4 inputs[BATCH][4][2][32];
    int lane = threadIdx.x % 32, row_bytes = (length + 7) / 8;
    // A warp beyond the last output computes that one again: it must meet the others at the barriers.
    int output = min(int(blockIdx.x) * WARPS + int(threadIdx.x) / 32, outputs - 1);
    const unsigned char* row = planes + (long long)output * row_bytes;
    bool whole_planes = row_bytes % 16 == 0 && aligned16(planes), whole_x = length % 16 == 0 && aligned16(x);
    int sums[BATCH] = {};
    for (int chunk = 0; chunk < length; chunk += CHUNK) {
        // The weights are asked for first; the inputs are put in order while they are on their way.
        uint4 bits[8];
        int byte = chunk / 8 + lane * 16;
#pragma unroll
        for (int plane = 0; plane < 8; plane++)
            if (plane < width)
                bits[plane] = sixteen(row + (long long)plane * outputs * row_bytes + byte, row_bytes - byte, whole_planes);
        for (int i = threadIdx.x; i < BATCH * LANE_CODES; i += blockDim.x) {
            int vector = i / LANE_CODES, word = i % 4, of_lane = i / 4 % 32, code = chunk + (i % LANE_CODES) * 32;
            const unsigned char* from = (const unsigned char*)x + (long long)vector * length + code;
            int left = vector < batch ? length - code : 0;
            uint4 a = sixteen(from, left, whole_x), b = sixteen(from + 16, left - 16, whole_x);
            inputs[vector][word][0][of_lane] = columns_from_last(a.y, a.w, b.y, b.w);  // bytes 7 to 4 of each eight
            inputs[vector][word][1][of_lane] = columns_from_last(a.x, a.z, b.x, b.z);  // bytes 3 to 0
        }
        __syncthreads();
#pragma unroll
        for (int half_word = 0; half_word < 8; half_word++) {
            int word = half_word / 2, half = half_word % 2;
            unsigned codes[4] = {};  // 16 weights: the bits that (word >> s) brings, s = 4 * half to 4 * half + 3
#pragma unroll
            for (int plane = 0; plane < 8; plane++) {
                if (plane >= width) break;
                unsigned of_plane = word_of(bits[plane], word), place = EACH_BYTE << (7 - plane);
#pragma unroll
                for (int s = 0; s < 4; s++) {
                    int right = 4 * half + s - (7 - plane);  // from bit s of a byte to bit 7 - plane
                    codes[s] |= (right >= 0 ? of_plane >> right : of_plane << -right) & place;
                }
            }
#pragma unroll
            for (int vector = 0; vector < BATCH; vector++) {
                uint4 factors = inputs[vector][word][half][lane];
                sums[vector] = dot4<x_signed>(codes[0], factors.x, sums[vector]);
                sums[vector] = dot4<x_signed>(codes[1], factors.y, sums[vector]);
                sums[vector] = dot4<x_signed>(codes[2], factors.z, sums[vector]);
                sums[vector] = dot4<x_signed>(codes[3], factors.w, sums[vector]);
            }
        }
        __syncthreads();  // the next chunk overwrites the inputs
    }
#pragma unroll
    for (int vector = 0; vector < BATCH; vector++) {
        for (int apart = 16; apart > 0; apart /= 2) sums[vector] += __shfl_down_sync(~0u, sums[vector], apart);
        if (lane == 0 && vector < batch)
            y[(long long)vector * outputs + output] = sums[vector] >> (8 - width);
    }
}
