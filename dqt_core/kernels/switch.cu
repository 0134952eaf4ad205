#include "common.cuh"

extern "C" __global__ void switch_codes(const Code* codes, Code* out, long long n, int width) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i < n) out[i] = Code(switch4((unsigned char)codes[i], width, x_signed));
}
