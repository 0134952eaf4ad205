
#ifdef DQT_MAIN
/* PROGRAM [WIDTH ...] < IMAGES: raw images to a line each, and the sha256 of all logits as int64.
   No width: the controller decides, or 8 bits where there is none. One: of all layers. A width for each layer
   (for weights and input, where they differ): of these; 0: the controller's. "-": so many bytes come before
   every image. */

#include <stdio.h>
#include <string.h>

typedef struct {
    uint32_t state[8];
    uint64_t bytes;
    uint8_t block[64];
} Sha256;

static const uint32_t sha256_start[8] = {
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
static const uint32_t sha256_rounds[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t rotate(uint32_t x, int n)
{
    return x >> n | x << (32 - n);
}

static void sha256_block(Sha256 *s)
{
    uint32_t w[64], v[8], a, b;
    int i;
    for (i = 0; i < 64; i++) {
        const uint8_t *p = s->block + 4 * (i & 15);
        if (i < 16) {
            w[i] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
            continue;
        }
        a = w[i - 15], b = w[i - 2];
        w[i] = w[i - 16] + (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3);
        w[i] += w[i - 7] + (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
    }
    memcpy(v, s->state, sizeof v);
    for (i = 0; i < 64; i++) {
        a = v[7] + (rotate(v[4], 6) ^ rotate(v[4], 11) ^ rotate(v[4], 25));
        a += ((v[4] & v[5]) ^ (~v[4] & v[6])) + sha256_rounds[i] + w[i];
        b = rotate(v[0], 2) ^ rotate(v[0], 13) ^ rotate(v[0], 22);
        b += (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);
        memmove(v + 1, v, 7 * sizeof v[0]);
        v[4] += a;
        v[0] = a + b;
    }
    for (i = 0; i < 8; i++)
        s->state[i] += v[i];
}

static void sha256_add(Sha256 *s, uint8_t byte)
{
    s->block[s->bytes++ % 64] = byte;
    if (s->bytes % 64 == 0)
        sha256_block(s);
}

static void sha256_print(Sha256 *s)
{
    uint64_t bits = 8 * s->bytes;
    int i, j;
    sha256_add(s, 128);
    while (s->bytes % 64 != 56)
        sha256_add(s, 0);
    for (i = 56; i >= 0; i -= 8)
        sha256_add(s, (uint8_t)(bits >> i & 255));
    for (i = 0; i < 8; i++)
        for (j = 28; j >= 0; j -= 4)
            putchar("0123456789abcdef"[s->state[i] >> j & 15]);
    putchar('\n');
}

/* A space and a number: a small C library may have neither the formats of 64 bits nor their names. */
static void print_number(int64_t number)
{
    char digits[20];
    uint64_t rest = number < 0 ? (uint64_t)0 - (uint64_t)number : (uint64_t)number;
    int i = 0;
    do
        digits[i++] = (char)('0' + rest % 10);
    while (rest /= 10);
    fputs(number < 0 ? " -" : " ", stdout);
    while (i)
        putchar(digits[--i]);
}

/* One line: the class, the widths and the logits. */
static void print_result(const int64_t *logits, const uint8_t *chosen)
{
    int i, best = 0;
    for (i = 1; i < DQT_CLASSES; i++)
        if (logits[i] > logits[best])
            best = i;
    printf("%d |", best);
    for (i = 0; i < DQT_LAYERS * DQT_WIDTHS; i++)
        printf(" %d", chosen[i]);
    printf(" |");
    for (i = 0; i < DQT_CLASSES; i++)
        print_number(logits[i]);
    putchar('\n');
}

static int refuse(const char *reason)
{
    fprintf(stderr, "%s\n", reason);
    return 1;
}

int main(int count, char **arguments)
{
    static uint8_t image[DQT_HEIGHT * DQT_WIDTH * DQT_CHANNELS];
    uint8_t widths[DQT_LAYERS * DQT_WIDTHS + 1] = {0}, chosen[DQT_LAYERS * DQT_WIDTHS + 1];
    int64_t logits[DQT_CLASSES];
    Sha256 sha = {{0}, 0, {0}};
    size_t read;
    int i, j, number = DQT_LAYERS * DQT_WIDTHS, each = count == 2 && !strcmp(arguments[1], "-");
    if (count > 2 && count - 1 != number)
        return refuse("give no width, one, one for each layer (or two, of weights and input), or -");
    for (i = 1; i < count && !each; i++)
        if (arguments[i][0] < '0' || arguments[i][0] > '8' || arguments[i][1]) {
            fprintf(stderr, "a width is \"%s\", expected one digit from 0 to 8\n", arguments[i]);
            return 1;
        }
    for (i = 0; i < number && !each; i++)
        widths[i] = (uint8_t)(count > 1 ? arguments[count > 2 ? 1 + i : 1][0] - '0' : DQT_CONTROLLER ? 0 : 8);
    memcpy(sha.state, sha256_start, sizeof sha.state);
    while ((read = each ? fread(widths, 1, (size_t)number, stdin) : (size_t)number) == (size_t)number) {
        if ((read = fread(image, 1, sizeof image, stdin)) != sizeof image) {
            read += each ? (size_t)number : 0; /* widths without an image are cut short too */
            break;
        }
        if (dqt_run(image, widths, logits, chosen))
            return refuse("this network does not hold such a width");
        print_result(logits, chosen);
        for (i = 0; i < DQT_CLASSES; i++)
            for (j = 0; j < 64; j += 8)
                sha256_add(&sha, (uint8_t)((uint64_t)logits[i] >> j & 255));
    }
    if (read)
        return refuse("the last image is cut short");
    sha256_print(&sha);
    return 0;
}
#endif
