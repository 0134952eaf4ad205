// depthwise.cu: convolution of every channel with its own kernel (groups == channels), each image at its own widths.
//
// Every output is nine products or so, so there is nothing for tensor cores: the kernel is as fast as it reads. A block
// makes 64 channels of 32 pixels of one image; a thread four neighbouring channels, whose codes are one 32-bit load,
// and every eighth pixel. The weights of the block are switched once, on their way to shared memory.
//
// Its arguments are a Convolution (common.cuh), with O == C, kh * kw <= 49, C a multiple of VECTOR. The grid has
// N * ceil(C / 64) * ceil(OH * OW / 32) blocks of 128 threads along x.
#include "common.cuh"
#ifndef VECTOR
#define VECTOR 4  // channels of a load: 4 or 1
#endif

constexpr int THREADS = 128, CHANNELS = 64, PIXELS = 32, MOST_TAPS = 49;
constexpr int PIXELS_AT_ONCE = THREADS / (CHANNELS / 4);
constexpr int BLOCKS = 8;  // that a multiprocessor has registers for: half its threads, and nothing is spilled for more

// Codes of four channels, of which `count` are there.
__device__ inline unsigned read4(const Code* codes, int count) {
    if (VECTOR == 4) return __ldg(reinterpret_cast<const unsigned*>(codes));
    unsigned four = 0;
    for (int i = 0; i < 4 && i < count; i++) four |= unsigned((unsigned char)__ldg(codes + i)) << 8 * i;
    return four;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) depthwise(const Convolution c) {
    __shared__ int weights[MOST_TAPS][CHANNELS];

    int channel_tiles = (c.C + CHANNELS - 1) / CHANNELS, pixel_tiles = (c.OH * c.OW + PIXELS - 1) / PIXELS;
    int first_channel = blockIdx.x % channel_tiles * CHANNELS;
    int first_pixel = blockIdx.x / channel_tiles % pixel_tiles * PIXELS;
    int place = blockIdx.x / channel_tiles / pixel_tiles, image = c.order[place], choice = 0;
    while (place >= c.starts[choice + 1]) choice++;
    int weight_bits = c.bits[2 * choice], input_bits = c.bits[2 * choice + 1];

    for (int i = threadIdx.x; i < c.kh * c.kw * CHANNELS; i += THREADS) {
        int tap = i / CHANNELS, column = i % CHANNELS, channel = first_channel + column;
        int master = channel < c.C ? c.weight[channel * c.kh * c.kw + tap] : 0;
        weights[tap][column] = static_cast<signed char>(switch4(master & 0xFF, weight_bits, true));
    }
    __syncthreads();

    int column = threadIdx.x % (CHANNELS / 4) * 4, channel = first_channel + column, count = min(4, c.C - channel);
    int last_pixel = min(first_pixel + PIXELS, c.OH * c.OW);
    int pixel = count > 0 ? first_pixel + int(threadIdx.x) / (CHANNELS / 4) : last_pixel;
    for (; pixel < last_pixel; pixel += PIXELS_AT_ONCE) {
        int row = pixel / c.OW * c.stride - c.padding, left = pixel % c.OW * c.stride - c.padding;
        int sums[4] = {}, windows[4] = {};
        for (int ky = max(0, -row); ky < min(c.kh, c.H - row); ky++)
            for (int kx = max(0, -left); kx < min(c.kw, c.W - left); kx++) {
                long long at = (((long long)image * c.H + row + ky) * c.W + left + kx) * c.C + channel;
                unsigned codes = switch4(read4(c.x + at, count), input_bits, x_signed);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int code = Code(codes >> 8 * i);
                    sums[i] += code * weights[ky * c.kw + kx][column + i];
                    windows[i] += code;
                }
            }
        long long out = ((long long)image * c.OH * c.OW + pixel) * c.C + channel;
        for (int i = 0; i < count; i++) finish(c, sums[i], windows[i], choice, image, out + i, channel + i);
    }
}
