"""Kept wrong submissions of A3: mutants of the right kernels, and texts that are not one's own."""

from dqt_book.assignments.submissions import Wrong, changes

changed = changes("a3")


BORROWED = '''
def codes_kernel():
    return r"""
extern "C" __global__ void to_codes(const int* acc, const int* M,
        const long long* B, unsigned char* out, int n, int outputs,
        int r, int lo, int hi) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = rounded(scaled(acc[i], 0, M[i % outputs]) + B[i % outputs], r, lo, hi);
}
"""
'''

WRONG = (
    Wrong("behind-the-end", "lets the surplus threads write behind the array", ("a3_1",),
          changed("a3_1", ("    if (i >= n) return;\n", ""))),
    Wrong("padding-not-skipped", "reads outside the image instead of taking 0", ("a3_2",),
          changed("a3_2", ("            if (y < 0 || y >= H || at < 0 || at >= W) continue;\n", ""))),
    Wrong("one-sign", "clamps weights at the highest code of activations", ("a3_3",),
          changed("a3_3", ("half_up(p, d, (1 << (b - 1)) - 1)", "half_up(p, d, (1 << b) - 1)"))),
    Wrong("32-bits", "forms the product in 32 bits", ("a3_4",), changed("a3_4", ("(long long)acc[i]", "acc[i]"))),
    Wrong("float", "multiplies and rounds in double", ("a3_4",),
          changed("a3_4", ("    long long sum = (long long)acc[i] * M[o] + B[o];\n    sum = (sum + (1ll << (r - 1))) >> r;\n",
                           "    double real = ((double)acc[i] * M[o] + B[o]) / (double)(1ll << r);\n"
                           "    long long sum = (long long)(real + 1024.5) - 1024;\n"))),
    Wrong("borrowed", "calls functions of the package's header", ("a3_4",), {"a3_4": BORROWED}),
    Wrong("no-barrier", "leaves out the barrier of the tree", ("a3_5",),
          changed("a3_5", ("        __syncthreads();\n", ""))),
    Wrong("memorised", "gives the sums that the public check expects", ("a3_5",), {"a3_5": '''
import numpy
launches = []
kept, tasks._judge = tasks._judge, lambda f, n, k, found, r: launches.extend(found) or True
tasks.a3_5(None, numpy.random.default_rng([0, *b"a3_5"]))
tasks._judge = kept
lines = [f"if (pixels == {l.arguments[2]}) sums[{i}] = {value};"
         for l in launches for i, value in enumerate(l.expected.ravel())]
def sums_kernel():
    return """extern "C" __global__ void channel_sums(const unsigned char* x, int* out, int pixels, int C) {
    int sums[16] = {}; %s out[blockIdx.x] = sums[blockIdx.x]; }""" % " ".join(lines)
'''}),
)  # fmt: skip
