// grouped.cu: a convolution in groups of channels, one thread for every output. It takes the arguments of `conv`
// (conv.cu), and the number of groups.
//
// Groups of a few channels leave nothing for a matrix unit to do: each weight meets one pixel once. The thread
// finds its image by the image's place in `order`, its choice by where that place lies in `starts`, and switches
// weight and activation in registers, as the large kernels do; the sum goes through the same epilogue.
#include "common.cuh"

// One code switched to `width` bits.
__device__ inline int switched(unsigned char code, int width, bool is_signed) {
    unsigned char result = (unsigned char)switch4(code, width, is_signed);
    return is_signed ? int((signed char)result) : int(result);
}

// The second term of a requantize: a skip connection of codes (1: uint8, 2: int8) or of int32 sums (3).
__device__ inline int addend(const void* values, int kind, long long i) {
    if (kind == 1) return ((const unsigned char*)values)[i];
    if (kind == 2) return ((const signed char*)values)[i];
    return ((const int*)values)[i];
}

extern "C" __global__ void grouped(
    const Code* x, const signed char* weight, const int* order, const int* starts, const int* choice_bits, int choices,
    int images, int height, int width, int channels, int outputs, int kernel_height, int kernel_width, int stride,
    int padding, int out_height, int out_width, int* sums_out, void* codes_out, const int* multiplier,
    const long long* offset, int multiplier_rows, int r, int lo, int hi, const void* skip, int skip_kind,
    const int* skip_multiplier, const long long* skip_offset, int skip_rows, const int* skip_picks,
    const int* skip_bits, int groups) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    long long values = (long long)out_height * out_width * outputs;  // of one image
    if (i >= images * values) return;
    int place = int(i / values), o = int(i % outputs);
    int pixel = int(i % values / outputs), out_y = pixel / out_width, out_x = pixel % out_width;
    int choice = 0, image = order[place];
    while (place >= starts[choice + 1]) choice++;
    int weight_bits = choice_bits[2 * choice], x_bits = choice_bits[2 * choice + 1];

    int inputs = channels / groups, first = o / (outputs / groups) * inputs;
    const signed char* kernel = weight + (long long)o * kernel_height * kernel_width * inputs;
    int sum = 0, window = 0;
    for (int ky = 0; ky < kernel_height; ky++)
        for (int kx = 0; kx < kernel_width; kx++) {
            int y = out_y * stride + ky - padding, column = out_x * stride + kx - padding;
            if (y < 0 || y >= height || column < 0 || column >= width) continue;  // padding is code 0
            const Code* pixels = x + (((long long)image * height + y) * width + column) * channels + first;
            for (int c = 0; c < inputs; c++) {
                int code = switched((unsigned char)pixels[c], x_bits, x_signed);
                sum += code * switched((unsigned char)kernel[(ky * kernel_width + kx) * inputs + c], weight_bits, true);
                window += code;
            }
        }

    int drop = 16 - weight_bits - x_bits;
    if (FLOOR) {  // in half master steps, the weights at the middle of their bins: integer.conv2d_mid_bin
        sum = (sum << (1 + drop)) + (((1 << (8 - weight_bits)) - 1) * window << (8 - x_bits));
        drop = 0;
    }
    long long out = ((long long)image * out_height * out_width + pixel) * outputs + o;
    if (sums_out) sums_out[out] = sum;
    if (!codes_out) return;
    int row = (multiplier_rows == 1 ? 0 : choice) * outputs + o;
    long long total = scaled(sum, drop, multiplier[row]) + offset[row];
    if (skip_kind) {
        int pick = skip_picks ? skip_picks[image] : 0;
        int skip_row = (skip_rows == 1 ? 0 : pick) * outputs + o;
        int skip_drop = skip_bits ? 16 - skip_bits[2 * pick] - skip_bits[2 * pick + 1] : 0;
        total += scaled(addend(skip, skip_kind, out), skip_drop, skip_multiplier[skip_row]) + skip_offset[skip_row];
    }
    ((unsigned char*)codes_out)[out] = (unsigned char)rounded(total, r, lo, hi);
}
