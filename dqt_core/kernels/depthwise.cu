// depthwise.cu: convolution of every channel with its own kernel (groups == channels), each image at its own widths.
//
// Every output is nine products or so, so there is nothing for tensor cores: the kernel is as fast as it reads. A block
// makes 64 channels of 32 pixels of one image; a thread four neighbouring channels, whose codes are one 32-bit load,
// and every eighth pixel. The weights of the block are switched once, on their way to shared memory.
//
// Arguments: those of conv.cu, in the same order; O == C, weight (C, kh, kw, 1), kh * kw <= 49, C a multiple of
// VECTOR. Grid: N * ceil(C / 64) * ceil(OH * OW / 32) blocks along x, 128 threads.
#include "common.cuh"
#ifndef VECTOR
#define VECTOR 4  // channels of a load: 4 or 1
#endif

constexpr int THREADS = 128, CHANNELS = 64, PIXELS = 32, MOST_TAPS = 49;
constexpr int PIXELS_AT_ONCE = THREADS / (CHANNELS / 4);

// Codes of four channels, of which `count` are there.
__device__ inline unsigned read4(const Code* codes, int count) {
    if (VECTOR == 4) return __ldg(reinterpret_cast<const unsigned*>(codes));
    unsigned four = 0;
    for (int i = 0; i < 4 && i < count; i++) four |= unsigned((unsigned char)codes[i]) << 8 * i;
    return four;
}

__device__ inline int addend(const void* skip, int kind, long long at) {
    if (kind == 1) return static_cast<const unsigned char*>(skip)[at];
    if (kind == 2) return static_cast<const signed char*>(skip)[at];
    return static_cast<const int*>(skip)[at];
}

extern "C" __global__ void __launch_bounds__(THREADS) depthwise(
    const Code* __restrict__ x, const signed char* __restrict__ weight, const int* __restrict__ order,
    const int* __restrict__ starts, const int* __restrict__ choice_bits, int choices, int N, int H, int W, int C,
    int O, int kh, int kw, int stride, int padding, int OH, int OW, int* acc_out, void* codes_out,
    const int* __restrict__ multiplier, const long long* __restrict__ offset, int multiplier_rows, int r, int lo,
    int hi, const void* skip, int skip_kind, const int* __restrict__ skip_multiplier,
    const long long* __restrict__ skip_offset, int skip_rows, const int* __restrict__ skip_picks,
    const int* __restrict__ skip_bits) {
    __shared__ int weights[MOST_TAPS][CHANNELS];

    int channel_tiles = (C + CHANNELS - 1) / CHANNELS, pixel_tiles = (OH * OW + PIXELS - 1) / PIXELS;
    int first_channel = blockIdx.x % channel_tiles * CHANNELS;
    int first_pixel = blockIdx.x / channel_tiles % pixel_tiles * PIXELS;
    int place = blockIdx.x / channel_tiles / pixel_tiles, image = order[place], choice = 0;
    while (place >= starts[choice + 1]) choice++;
    int weight_bits = choice_bits[2 * choice], input_bits = choice_bits[2 * choice + 1];

    for (int i = threadIdx.x; i < kh * kw * CHANNELS; i += THREADS) {
        int tap = i / CHANNELS, column = i % CHANNELS, channel = first_channel + column;
        int master = channel < C ? weight[channel * kh * kw + tap] : 0;
        weights[tap][column] = static_cast<signed char>(switch4(master & 0xFF, weight_bits, true));
    }
    __syncthreads();

    int column = threadIdx.x % (CHANNELS / 4) * 4, channel = first_channel + column, count = min(4, C - channel);
    int last_pixel = min(first_pixel + PIXELS, OH * OW);
    int pixel = count > 0 ? first_pixel + int(threadIdx.x) / (CHANNELS / 4) : last_pixel;
    for (; pixel < last_pixel; pixel += PIXELS_AT_ONCE) {
        int row = pixel / OW * stride - padding, left = pixel % OW * stride - padding;
        int sums[4] = {}, windows[4] = {};
        for (int ky = max(0, -row); ky < min(kh, H - row); ky++)
            for (int kx = max(0, -left); kx < min(kw, W - left); kx++) {
                long long at = (((long long)image * H + row + ky) * W + left + kx) * C + channel;
                unsigned codes = switch4(read4(x + at, count), input_bits, x_signed);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int code = Code(codes >> 8 * i);
                    sums[i] += code * weights[ky * kw + kx][column + i];
                    windows[i] += code;
                }
            }

        long long out = ((long long)image * OH * OW + pixel) * C + channel;
        int drop = 16 - weight_bits - input_bits;
        for (int i = 0; i < count; i++) {
            int sum = sums[i], shift = drop;
            if (FLOOR) {  // half steps of weights at the middle of their bins: integer.conv2d_mid_bin
                sum = (sum << (1 + drop)) + (((1 << (8 - weight_bits)) - 1) * windows[i] << (8 - input_bits));
                shift = 0;
            }
            if (acc_out) acc_out[out + i] = sum;
            if (!codes_out) continue;
            int own = (multiplier_rows > 1 ? choice : 0) * C + channel + i;
            long long total = scaled(sum, shift, multiplier[own]) + offset[own];
            if (skip_kind) {
                int pick = skip_picks ? skip_picks[image] : 0, at = (skip_rows > 1 ? pick : 0) * C + channel + i;
                int skip_drop = skip_bits ? 16 - skip_bits[2 * pick] - skip_bits[2 * pick + 1] : 0;
                total += scaled(addend(skip, skip_kind, out + i), skip_drop, skip_multiplier[at]) + skip_offset[at];
            }
            static_cast<unsigned char*>(codes_out)[out + i] = static_cast<unsigned char>(rounded(total, r, lo, hi));
        }
    }
}
