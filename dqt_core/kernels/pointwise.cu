// pointwise.cu: everything between the convolutions. All of it moves bytes rather than computes; each kernel reads
// and writes neighbouring bytes with neighbouring threads.
//
// Arguments and grids, blocks of 256 threads unless it says otherwise; "a thread a value" needs blocks for `count`:
//   lookup       x (count) bytes, table (rows, 256) codes, out (count) codes, count int64, rows: a thread a value;
//                a row for every channel, or one
//   copy_channels x (pixels, C) codes, out (pixels, OC), count int64, C, OC, first: a thread a value of x
//   product      x (count) codes, kind, y codes, kind, out (count) int32, count int64, values of an image, C, values of
//                an image's y, all or C: a thread a value. kind: 1 uint8, 2 int8
//   max_pool     x (N, H, W, C) codes, out (N, OH, OW, C), N H W C kernel stride padding OH OW: a thread for every
//                VECTOR values of out
//   sum_pool     x (N, pixels, C) codes, out (N, C) int32, N, pixels, C: N * ceil(C / 64) blocks
//   requantize   three terms (common.cuh) that may be absent, r, lo, hi, out (count) codes, count int64, pixels, C: a
//                thread a value
//   scale        x (count) int32, multiplier (C) int32, offset (C) int64, out (count) int64, count int64, C: a
//                thread a value
//   choose       logits (N, layers, K) int64, picks (N, layers) int32, N, layers, K: a thread a pick
//   group_images picks (N, L) int32, N, L, K, columns (L, N), order (L, N), starts (L, K + 1) int32: a block of 32
//                threads for every layer
// max_pool and sum_pool load VECTOR channels at once: 4 where C is a multiple of 4, else 1.
#include "common.cuh"
#ifndef VECTOR
#define VECTOR 1
#endif

__device__ inline long long global_thread() { return blockIdx.x * (long long)blockDim.x + threadIdx.x; }

// VECTOR neighbouring codes, one a byte.
__device__ inline unsigned read(const Code* codes) {
    return VECTOR == 4 ? *reinterpret_cast<const unsigned*>(codes) : static_cast<unsigned char>(*codes);
}

// Bytes by a table, or by that of their channel: image bytes to codes, or any function of a code.
extern "C" __global__ void lookup(const void* __restrict__ x, const void* __restrict__ table,
                                  void* __restrict__ out, long long count, int rows) {
    long long i = global_thread();
    if (i >= count) return;
    // i % rows, in 32 bits
    int row = (blockIdx.x % rows * (blockDim.x % rows) + threadIdx.x) % rows;
    int byte = static_cast<const unsigned char*>(x)[i];
    static_cast<unsigned char*>(out)[i] = static_cast<const unsigned char*>(table)[256 * row + byte];
}

// A value's channels to their place among those of a concatenation.
extern "C" __global__ void copy_channels(const void* __restrict__ x, void* __restrict__ out, long long count, int C,
                                         int OC, int first) {
    long long i = global_thread();
    if (i >= count) return;
    static_cast<unsigned char*>(out)[i / C * OC + first + i % C] = static_cast<const unsigned char*>(x)[i];
}

// Codes times codes; the other factor may be one pixel of every image.
extern "C" __global__ void product(const void* __restrict__ x, int x_kind, const void* __restrict__ y, int y_kind,
                                   int* __restrict__ out, long long count, int size, int C, int y_size) {
    long long i = global_thread();
    if (i >= count) return;
    long long j = y_size == size ? i : i / size * C + i % C;
    out[i] = code_at(x, x_kind, i) * code_at(y, y_kind, j);
}

// The larger code of every byte. Setting a's high bits and clearing b's, the difference of two bytes never borrows
// from the next, and its high bit says which low seven bits are larger; where the high bits differ, they decide.
__device__ inline unsigned larger4(unsigned a, unsigned b) {
    unsigned low_decides = (a | 0x80 * EACH_BYTE) - (b & 0x7F * EACH_BYTE);
    unsigned high_decides = x_signed ? ~a & b : a & ~b;
    unsigned a_wins = (high_decides | (~(a ^ b) & low_decides)) >> 7 & EACH_BYTE;
    unsigned mask = a_wins * 0xFF;
    return (a & mask) | (b & ~mask);
}

// Largest code of every window; taps outside the image do not take part.
extern "C" __global__ void max_pool(const Code* __restrict__ x, Code* __restrict__ out, int N, int H, int W, int C,
                                    int kernel, int stride, int padding, int OH, int OW) {
    int vectors = C / VECTOR;
    long long i = global_thread(), pixel = i / vectors;
    if (pixel >= (long long)N * OH * OW) return;
    int column = int(pixel % OW) * stride - padding, row = int(pixel / OW % OH) * stride - padding;
    const Code* image = x + pixel / (OH * OW) * H * W * C + i % vectors * VECTOR;
    unsigned largest = x_signed ? 0x80 * EACH_BYTE : 0;
    for (int y = max(row, 0); y < min(row + kernel, H); y++)
        for (int z = max(column, 0); z < min(column + kernel, W); z++) {
            const Code* codes = image + ((long long)y * W + z) * C;
            largest = larger4(largest, read(codes));
        }
    Code* to = out + pixel * C + i % vectors * VECTOR;
    if (VECTOR == 4) *reinterpret_cast<unsigned*>(to) = largest;
    else *to = Code(largest);
}

// Sums of channels over all pixels. A block adds 64 channels of one image: 64 / VECTOR neighbouring threads read the
// channels of a pixel, the groups of so many threads share the pixels, and shared memory brings their sums together.
extern "C" __global__ void sum_pool(const Code* __restrict__ x, int* __restrict__ out, int N, int pixels, int C) {
    constexpr int ACROSS = 64 / VECTOR, GROUPS = 256 / ACROSS;
    __shared__ int parts[GROUPS][64];
    int tiles = (C + 63) / 64, image = blockIdx.x / tiles, first = blockIdx.x % tiles * 64;
    int group = threadIdx.x / ACROSS, column = threadIdx.x % ACROSS * VECTOR;
    const Code* codes = x + (long long)image * pixels * C + first + column;
    int sums[VECTOR] = {};
    if (first + column < C) {
#pragma unroll 8
        for (int pixel = group; pixel < pixels; pixel += GROUPS) {
            unsigned word = read(codes + (long long)pixel * C);
            for (int i = 0; i < VECTOR; i++) sums[i] += Code(word >> 8 * i);
        }
    }
    for (int i = 0; i < VECTOR; i++) parts[group][column + i] = sums[i];
    __syncthreads();
    int mine = threadIdx.x, sum = 0;
    if (mine >= 64 || first + mine >= C) return;
    for (int i = 0; i < GROUPS; i++) sum += parts[i][mine];
    out[(long long)image * C + first + mine] = sum;
}

// The one rounding, of up to three terms, where no convolution could take it along.
extern "C" __global__ void requantize(const Term first, const Term second, const Term third, int r, int lo, int hi,
                                      void* __restrict__ out, long long count, int pixels, int C) {
    long long i = global_thread();
    if (i >= count) return;
    int channel = int(i % C), image = int(i / C / pixels);
    long long total = value_at(first, i, image, channel, C) + value_at(second, i, image, channel, C) +
                      value_at(third, i, image, channel, C);
    static_cast<unsigned char*>(out)[i] = static_cast<unsigned char>(rounded(total, r, lo, hi));
}

// Logits at a common scale, in 64 bits.
extern "C" __global__ void scale(const int* __restrict__ x, const int* __restrict__ multiplier,
                                 const long long* __restrict__ offset, long long* __restrict__ out, long long count,
                                 int C) {
    long long i = global_thread();
    if (i < count) out[i] = scaled(x[i], 0, multiplier[i % C]) + offset[i % C];
}

// The controller's decision for the last of all L layers: the largest logit, the first of equals, which is the
// narrowest.
extern "C" __global__ void choose(const long long* __restrict__ logits, int* __restrict__ picks, int N, int layers,
                                  int K, int L) {
    long long i = global_thread();
    if (i >= (long long)N * layers) return;
    int best = 0;
    for (int k = 1; k < K; k++)
        if (logits[i * K + k] > logits[i * K + best]) best = k;
    picks[i / layers * L + L - layers + i % layers] = best;
}

// Sort the images of a layer by choice, equal ones in their order. A thread counts the images of its choice, adds up
// where its group begins, and writes its images there: it alone writes to its group, so nothing depends on timing.
extern "C" __global__ void group_images(const int* __restrict__ picks, int N, int L, int K, int* columns, int* order,
                                        int* starts) {
    int layer = blockIdx.x, *column = columns + (long long)layer * N, *group_starts = starts + layer * (K + 1);
    for (int n = threadIdx.x; n < N; n += blockDim.x) column[n] = picks[(long long)n * L + layer];
    __syncthreads();
    for (int choice = threadIdx.x; choice <= K; choice += blockDim.x) {
        int start = 0;
        for (int n = 0; n < N; n++) start += column[n] < choice;
        group_starts[choice] = start;
        int* next = order + (long long)layer * N + start;
        for (int n = 0; n < N; n++)
            if (column[n] == choice) *next++ = n;
    }
}
