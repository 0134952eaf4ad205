// grouped.cu: a convolution in groups of channels (a Convolution of common.cuh), one thread for every output.
//
// Groups of a few channels leave nothing for a matrix unit to do: each weight meets one pixel once. The thread
// finds its image by the image's place in `order`, its choice by where that place lies in `starts`, and switches
// weight and activation in registers, as the large kernels do.
#include "common.cuh"

// One code switched to `width` bits.
__device__ inline int switched(unsigned char code, int width, bool is_signed) {
    unsigned char result = (unsigned char)switch4(code, width, is_signed);
    return is_signed ? int((signed char)result) : int(result);
}

extern "C" __global__ void grouped(const Convolution c) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    long long values = (long long)c.OH * c.OW * c.O;  // of one image
    if (i >= c.N * values) return;
    int place = int(i / values), o = int(i % c.O);
    int pixel = int(i % values / c.O), out_y = pixel / c.OW, out_x = pixel % c.OW;
    int choice = 0, image = c.order[place];
    while (place >= c.starts[choice + 1]) choice++;
    int weight_bits = c.bits[2 * choice], x_bits = c.bits[2 * choice + 1];

    int inputs = c.C / c.groups, first = o / (c.O / c.groups) * inputs;
    const signed char* kernel = c.weight + (long long)o * c.kh * c.kw * inputs;
    int sum = 0, window = 0;
    for (int ky = 0; ky < c.kh; ky++)
        for (int kx = 0; kx < c.kw; kx++) {
            int y = out_y * c.stride + ky - c.padding, x = out_x * c.stride + kx - c.padding;
            if (y < 0 || y >= c.H || x < 0 || x >= c.W) continue;  // padding is code 0
            long long at = (((long long)image * c.H + y) * c.W + x) * c.C + first;
            for (int k = 0; k < inputs; k++) {
                int code = switched((unsigned char)c.x[at + k], x_bits, x_signed);
                sum += code * switched((unsigned char)kernel[(ky * c.kw + kx) * inputs + k], weight_bits, true);
                window += code;
            }
        }
    finish(c, sum, window, choice, image, ((long long)image * c.OH * c.OW + pixel) * c.O + o, o);
}
