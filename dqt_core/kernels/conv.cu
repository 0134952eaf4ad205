// conv.cu: convolution of nested codes as one matrix product on tensor cores, the switch done in registers.
//
// The matrix product. Row m of the left matrix is the window under output pixel m, its terms in the order
// (ky, kx, channel); column o of the right one is the kernel of output channel o in the same order. The left matrix
// never exists: every thread works out where its 16 bytes of it lie in the image (implicit GEMM). A block of four
// warps makes TILE_M x TILE_N sums, in steps of 64 terms:
//
//     device memory --16 bytes a thread--> registers --switch--> shared memory --> registers --> tensor cores
//
// Widths for every image. A group is the images that chose the same (weight bits, input bits); `order` lists the
// images group by group, `starts` says where each begins. Rows are taken group by group and a tile never holds two
// groups, so everything about widths is uniform in a block. A batch of random widths costs at most K - 1 more tiles.
// Which images share a tile never changes a sum.
//
// The switch in registers, step by step (`switch_in_place`). A thread holds four master codes in a 32-bit register:
//
//     0b_qqqqqqqq_qqqqqqqq_qqqqqqqq_qqqqqqqq          b bits to keep, d = 8 - b to drop
//
//   1. codes + (codes & half), half = 2^(d-1) in every byte. Adding the top dropped bit to itself carries it into the
//      kept bits: Eq. 4's epsilon. It was 1 and becomes 0, or it was 0 and stays 0: either way 0, so a carry
//      that arrives from the byte below stops there at the latest and never reaches the kept bits.
//   2. A byte may have run over: unsigned, its high bit fell from 1 to 0 (255 rounds to 256); signed, it rose from 0
//      to 1 (127 rounds to 128). One logical operation finds these bytes, one byte permutation spreads the high bit
//      over its byte.
//   3. Where a byte ran over its kept bits are 00..0 (signed: 10..0), and the highest code is 11..1 (signed: 01..1):
//      the complement. So one exclusive or clamps.
//   4. & kept clears the dropped bits.
//
//     to 4 bits, half = 1000   codes       + epsilon      ran over       ^           & 11110000
//     unsigned  88            01011000    01100000        no        01100000    01100000 =  6 << 4
//     unsigned 248            11111000    00000000 carry  1 -> 0    11111111    11110000 = 15 << 4, the clamp
//     signed   124            01111100    10000100        0 -> 1    01111011    01110000 =  7 << 4, the clamp
//     signed    -4            11111100    00000100 carry  no        00000100    00000000 =  0; its carry is step 1's
//
// Five instructions for four codes (floor needs the last alone), and no shift: the code stays where it is, at the
// master's scale, q_b << d. Products and sums come out as acc << (d_w + d_a), which is what requantize multiplies;
// the bound on the sums is the same at every width. Nothing is converted to a real number and back.
//
// What a step of 64 terms costs a block of 128 x 128 sums, in cycles of a multiprocessor:
//     tensor cores    256 mma.m16n8k32, 1,048,576 products: 512 at 2,048 a cycle (sm_80), at least 256 on sm_90
//     integer unit    about 200 instructions of each of the four warps, 64 lanes wide: 400; the switch is 128 of them
//                     (4,096 registers of codes; its additions go to the other integer unit, that of multiplications)
//     issue           about 370 instructions of each warp, one a cycle on each of four schedulers: 370; the switch: 160
//     shared memory   16 KiB written, 32 KiB read, at 128 bytes a cycle: 384
//     device memory   8 KiB of codes and 8 KiB of weights; the weights, read by every row of tiles, come from L2
// These work at the same time: while one warp's products are in the tensor cores another warp switches, and the two
// blocks of a multiprocessor are at different places of their steps. The switch hides behind the products as long as
// the integer unit has less to do than the tensor cores. (Counted in the machine code for sm_90; not yet run on a GPU.)
//
// Its arguments are a Convolution (common.cuh), with groups 1, C a multiple of VECTOR, kh, kw <= 16; N * OH * OW and
// O * kh * kw * C below 2^31 - 128; H * W * C below 2^30 (larger arrays are addressed in 64 bits). Arrays start at
// multiples of 16 bytes. The grid has row_tiles * column_tiles blocks of THREADS threads along x, where row_tiles =
// ceil(N * OH * OW / TILE_M) + K - 1 and column_tiles = ceil(O / TILE_N); blocks without rows leave.
#include "common.cuh"
#ifndef TILE_M
#define TILE_M 128  // rows (pixels) and columns (output channels) of a block's tile: 32, 64 or 128
#endif
#ifndef TILE_N
#define TILE_N 128
#endif
#ifndef VECTOR
#define VECTOR 16   // bytes of a load along the channels: 16, 4 or 1; below 16 with TILE_N <= 64, or sm_75 spills
#endif
#ifndef SWITCH
#define SWITCH 1    // 0: the same kernel at 8 bits, whatever the choices: what the switch is measured against
#endif

constexpr int THREADS = 128;                    // four warps, two by two; each makes a quarter of the tile
constexpr int BLOCKS = TILE_M * TILE_N > 8192 ? 2 : 3;  // that a multiprocessor must have registers for
constexpr int STEP = 64, CHUNK = 16;            // terms in a step; bytes that a thread moves at once
constexpr int CHUNKS = STEP / CHUNK;            // of a row
constexpr int ROWS_APART = THREADS / CHUNKS;    // a thread moves the same chunk of every 32nd row
constexpr int X_CHUNKS = TILE_M / ROWS_APART, W_CHUNKS = TILE_N / ROWS_APART;
constexpr int M_TILES = TILE_M / 32, N_TILES = TILE_N / 16;  // 16 x 8 products of a warp

// Where a row of weights begins. In one register, not two, where the tile's sums leave none over.
#if TILE_N > 64
typedef int Offset;
#else
typedef long long Offset;
#endif
struct Group { int choice, tile, first, images; };  // choice -1: there is no such tile
struct Rounding { unsigned half, kept; };
// The rows of windows that this thread moves: their corners, and as bits ky and 16 + kx the taps inside the image.
struct Rows { long long corner[X_CHUNKS]; unsigned taps[X_CHUNKS]; };
// A place in the sum: its tap, its offset from the window's corner, and as bits the rows whose tap is inside.
struct Cursor { int channel, kx, ky, offset; unsigned inside; };
struct Places { int store, a[2], b[2]; };           // of this thread in a tile of shared memory
struct Staged { unsigned x[X_CHUNKS][4], weight[W_CHUNKS][4]; };
struct Sums {
    int products[M_TILES][N_TILES][4];
#if FLOOR
    int windows[M_TILES][4];  // sums of the codes of every window
#endif
};
struct RowInfo { int output, skip_choice; };        // output pixel, -1 for a row without one

// ---- which rows ----

// The group of a row tile, and the tile's place in it. All loads are independent: one wait, not K.
__device__ inline Group group_of(int tile, const int* starts, int choices, int pixels) {
    Group group = {-1, 0, 0, 0};
#pragma unroll 4
    for (int choice = 0; choice < choices; choice++) {
        int first = __ldg(starts + choice), images = __ldg(starts + choice + 1) - first;
        int tiles = (images * pixels + TILE_M - 1) / TILE_M;
        if (tile >= 0 && tile < tiles) group = {choice, tile, first, images};
        tile -= tiles;
    }
    return group;
}

// Bits i of 0..taps-1 for which first + i lies in 0..size-1.
__device__ inline unsigned taps_inside(int first, int taps, int size) {
    int low = max(0, -first), high = min(taps, size - first);
    return high > low ? (1u << high) - (1u << low) : 0;
}

__device__ inline void set_row(Rows& rows, int i, int image, int pixel, const Convolution& c) {
    int y = pixel / c.OW * c.stride - c.padding, x = pixel % c.OW * c.stride - c.padding;
    rows.corner[i] = (((long long)image * c.H + y) * c.W + x) * c.C;
    rows.taps[i] = taps_inside(y, c.kh, c.H) | taps_inside(x, c.kw, c.W) << 16;
}

// ---- device memory to registers ----

__device__ inline unsigned rows_inside(const Rows& rows, int ky, int kx, int kh) {
    if (ky >= kh) return 0;  // past the last term
    unsigned inside = 0;
#pragma unroll
    for (int i = 0; i < X_CHUNKS; i++) inside |= (rows.taps[i] >> ky & rows.taps[i] >> (16 + kx) & 1) << i;
    return inside;
}

// Go on by some terms. Where the channels end the next tap begins, and its bytes follow; where a row of taps ends,
// the next one begins a row of the image further down. Most steps stay in their tap.
__device__ inline void advance(Cursor& term, int terms, const Rows& rows, const Convolution& c) {
    term.channel += terms;
    term.offset += terms;
    if (term.channel < c.C) return;
    do {
        term.channel -= c.C;
        if (++term.kx == c.kw) {
            term.kx = 0;
            term.ky++;
            term.offset += (c.W - c.kw) * c.C;
        }
    } while (term.channel >= c.C);
    term.inside = rows_inside(rows, term.ky, term.kx, c.kh);
}

// Bytes piece * VECTOR .. of a chunk; zeros where they are outside.
__device__ inline void read_piece(unsigned (&chunk)[4], int piece, const void* from, bool inside) {
#if VECTOR == 16
    uint4 four = make_uint4(0, 0, 0, 0);
    if (inside) four = __ldg(static_cast<const uint4*>(from));
    chunk[0] = four.x, chunk[1] = four.y, chunk[2] = four.z, chunk[3] = four.w;
#elif VECTOR == 4
    chunk[piece] = inside ? __ldg(static_cast<const unsigned*>(from)) : 0;
#else
    unsigned code = inside ? __ldg(static_cast<const unsigned char*>(from)) : 0;
    chunk[piece / 4] = (piece % 4 ? chunk[piece / 4] : 0) | code << 8 * (piece % 4);
#endif
}

// This thread's chunks of a step's windows; `term` moves on to the next step.
__device__ inline void fetch_windows(unsigned (&chunks)[X_CHUNKS][4], const Rows& rows, Cursor& term,
                                     const Convolution& c) {
    Cursor at = term;
#pragma unroll
    for (int piece = 0; piece < CHUNK / VECTOR; piece++) {
        if (piece) advance(at, VECTOR, rows, c);
#pragma unroll
        for (int i = 0; i < X_CHUNKS; i++)
            read_piece(chunks[i], piece, c.x + (rows.corner[i] + at.offset), at.inside >> i & 1);
    }
    advance(term, STEP, rows, c);
}

// The same of the kernels. Terms past the end meet windows of zeros, so any weight will do there: the first.
__device__ inline void fetch_weights(unsigned (&chunks)[W_CHUNKS][4], const Offset (&rows)[W_CHUNKS], int term,
                                     int terms, const Convolution& c) {
#pragma unroll
    for (int piece = 0; piece < CHUNK / VECTOR; piece++) {
        int at = term + VECTOR * piece;
        if (at >= terms) at = 0;
#pragma unroll
        for (int i = 0; i < W_CHUNKS; i++) read_piece(chunks[i], piece, c.weight + (rows[i] + at), true);
    }
}

// ---- the switch, and registers to shared memory ----

__device__ inline Rounding rounding_to(int width) {
    int drop = SWITCH ? 8 - width : 0;
    return {((1 << drop) >> 1) * EACH_BYTE, (0xFF << drop & 0xFF) * EACH_BYTE};
}

// 0xFF in every byte whose high bit is set, else 0x00.
__device__ inline unsigned spread_high_bits(unsigned bytes) {
#ifdef __CUDACC__
    unsigned spread;
    asm("prmt.b32 %0, %1, 0, 0xba98;" : "=r"(spread) : "r"(bytes));
    return spread;
#else
    return (bytes >> 7 & EACH_BYTE) * 0xFF;
#endif
}

// Four master codes switched, each left at the master's scale; the head of this file explains the steps.
template <bool is_signed> __device__ inline unsigned switch_in_place(unsigned codes, Rounding to) {
#if !SWITCH
    return codes;
#elif FLOOR
    return codes & to.kept;
#else
    unsigned sum = codes + (codes & to.half);
    unsigned ran_over = is_signed ? ~codes & sum : codes & ~sum;
    return (sum ^ spread_high_bits(ran_over)) & to.kept;
#endif
}

template <bool is_signed> __device__ inline uint4 switch_chunk(const unsigned (&chunk)[4], Rounding to) {
    return make_uint4(switch_in_place<is_signed>(chunk[0], to), switch_in_place<is_signed>(chunk[1], to),
                      switch_in_place<is_signed>(chunk[2], to), switch_in_place<is_signed>(chunk[3], to));
}

// Where a chunk of a row lies in its tile. Two rows of 64 bytes pass all 32 banks once, so the chunks of rows
// 2, 3; 4, 5; 6, 7 change places: eight rows' chunks of the same number are then in different banks, and so are two
// rows' four chunks. Reads (eight rows at once) and writes (two rows at once) are free of conflicts.
__device__ inline int place_of(int row, int chunk) { return row * CHUNKS + (chunk ^ (row >> 1 & 3)); }

__device__ inline Places places_of_thread() {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int row = warp / 2 * (TILE_M / 2) + lane % 16, column = TILE_M + warp % 2 * (TILE_N / 2) + lane / 16 * 8 + lane % 8;
    return {place_of(threadIdx.x / CHUNKS, threadIdx.x % CHUNKS),
            {place_of(row, lane / 16), place_of(row, 2 + lane / 16)},
            {place_of(column, lane / 8 % 2), place_of(column, 2 + lane / 8 % 2)}};
}

__device__ inline void store_step(uint4* tile, const Staged& staged, Rounding x_to, Rounding weight_to) {
#pragma unroll
    for (int i = 0; i < X_CHUNKS; i++) tile[ROWS_APART * CHUNKS * i] = switch_chunk<x_signed>(staged.x[i], x_to);
#pragma unroll
    for (int i = 0; i < W_CHUNKS; i++)
        tile[(TILE_M + ROWS_APART * i) * CHUNKS] = switch_chunk<true>(staged.weight[i], weight_to);
}

// ---- products ----

// Four 8 x 16-byte matrices from shared memory: lane l names the place of row l % 8 of matrix l / 8, and receives
// bytes 4 * (l % 4).. of row l / 4 of every matrix, the fragments that mma_16x8x32 wants.
__device__ inline void load_matrices(unsigned (&fragments)[4], const uint4* tile, int place) {
#ifdef __CUDACC__
    unsigned address = unsigned(__cvta_generic_to_shared(tile + place));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(fragments[0]), "=r"(fragments[1]), "=r"(fragments[2]), "=r"(fragments[3]) : "r"(address));
#else
    int lane = threadIdx.x % 32;
    for (int i = 0; i < 4; i++) {
        int row = __shfl_sync(~0u, place, 8 * i + lane / 4);
        fragments[i] = reinterpret_cast<const unsigned*>(tile + row)[lane % 4];
    }
#endif
}

// Add a step's products to the warp's quarter of the sums.
__device__ inline void multiply(Sums& sums, const uint4* tile, const Places& places) {
#pragma unroll
    for (int k = 0; k < 2; k++) {  // 32 terms at a time
        unsigned a[M_TILES][4];
#pragma unroll
        for (int i = 0; i < M_TILES; i++) load_matrices(a[i], tile, places.a[k] + 16 * CHUNKS * i);
#pragma unroll
        for (int j = 0; j < N_TILES; j += 2) {
            unsigned b[4];  // of two columns of products
            load_matrices(b, tile, places.b[k] + 8 * CHUNKS * j);
            const unsigned left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
#pragma unroll
            for (int i = 0; i < M_TILES; i++) {
                mma_16x8x32<x_signed>(sums.products[i][j], a[i], left);
                mma_16x8x32<x_signed>(sums.products[i][j + 1], a[i], right);
            }
        }
#if FLOOR
        const unsigned ones[2] = {EACH_BYTE, EACH_BYTE};  // a kernel of ones sums the codes of the window
#pragma unroll
        for (int i = 0; i < M_TILES; i++) mma_16x8x32<x_signed>(sums.windows[i], a[i], ones);
#endif
    }
}

// ---- epilogue: sums to codes ----

// What a block's one group makes of its sums: its row of the convolution's own tables, and what its operands dropped.
struct Own { const int* multiplier; const long long* offset; int weight_drop, input_drop; };
// What makes codes of the sums of four columns; read again where the skip's choice changes. Rows that follow each
// other mostly belong to one image.
struct Scales { int choice, drop, multiplier[4], skip_multiplier[4]; long long offset[4]; };
struct Results {
    int sums[2 * 16][TILE_N + 8];  // a sixteenth of rows of each half of the tile; 8 more keep banks apart
    unsigned skip[TILE_M][TILE_N / 4];
};

// sum + a * b in one instruction.
__device__ inline long long multiply_add(int a, int b, long long sum) {
#ifdef __CUDACC__
    asm("mad.wide.s32 %0, %1, %2, %0;" : "+l"(sum) : "r"(a), "r"(b));
    return sum;
#else
    return sum + (long long)a * b;
#endif
}

__device__ inline void read_scales(Scales& s, const Convolution& c, const Own& own, int choice, int column) {
    s.choice = choice;
    s.drop = c.skip.bits ? 16 - __ldg(c.skip.bits + 2 * choice) - __ldg(c.skip.bits + 2 * choice + 1) : 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (column + i >= c.O) continue;
        s.multiplier[i] = __ldg(own.multiplier + column + i);
        s.offset[i] = __ldg(own.offset + column + i) + (1ll << (c.r - 1));  // ties up
        if (!c.skip.kind) continue;
        long long at = multiply_add(c.skip.rows > 1 ? choice : 0, c.O, column + i);
        s.skip_multiplier[i] = __ldg(c.skip.multiplier + at);
        s.offset[i] += __ldg(c.skip.offset + at);
    }
}

// The skip's codes under the tile. Where O allows they come 16 at a time, all loads on their way before the first
// arrives.
__device__ inline void fetch_skip(Results& results, const unsigned char* skip, const RowInfo* infos, int first_column,
                                  int O) {
    unsigned char* tile = reinterpret_cast<unsigned char*>(results.skip);
    if (O % 16) {
        for (int i = threadIdx.x; i < TILE_M * TILE_N; i += THREADS) {
            int output = infos[i / TILE_N].output, column = first_column + i % TILE_N;
            if (output >= 0 && column < O) tile[i] = __ldg(skip + ((long long)output * O + column));
        }
        return;
    }
    constexpr int ALL = TILE_M * TILE_N / 16, EACH = (ALL + THREADS - 1) / THREADS;
    uint4 chunks[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int at = threadIdx.x + i * THREADS, output = at < ALL ? infos[at / (TILE_N / 16)].output : -1;
        int column = first_column + at % (TILE_N / 16) * 16;
        chunks[i] = make_uint4(0, 0, 0, 0);
        if (output >= 0 && column < O)
            chunks[i] = __ldg(reinterpret_cast<const uint4*>(skip + ((long long)output * O + column)));
    }
#pragma unroll
    for (int i = 0; i < EACH; i++)
        if (threadIdx.x + i * THREADS < ALL) reinterpret_cast<uint4*>(tile)[threadIdx.x + i * THREADS] = chunks[i];
}

// 16 rows of the warp's quarter of the sums to shared memory. With floor they count half steps: a weight stands for
// the middle of its bin (integer.conv2d_mid_bin).
__device__ inline void share_sums(Results& results, const Sums& sums, int i, const Own& own) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int j = 0; j < N_TILES; j++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int left = sums.products[i][j][2 * half], right = sums.products[i][j][2 * half + 1];
#if FLOOR
            int middle = ((1 << own.weight_drop) - 1) * sums.windows[i][2 * half];
            left = 2 * left + middle, right = 2 * right + middle;
#endif
            int row = warp / 2 * 16 + 8 * half + lane / 4, column = warp % 2 * (TILE_N / 2) + 8 * j + lane % 4 * 2;
            *reinterpret_cast<int2*>(&results.sums[row][column]) = make_int2(left, right);
        }
}

// Add the skip's term: codes that fetch_skip brought, or sums. At the master's scale both fit 32 bits.
__device__ inline void add_skip(long long (&total)[4], const Scales& s, const Convolution& c, unsigned codes,
                                long long at, int column) {
    int a[4];
    const int* sums = static_cast<const int*>(c.skip.x) + at;
    if (c.skip.kind < 3) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            a[i] = c.skip.kind == 2 ? int(static_cast<signed char>(codes >> 8 * i)) : int(codes >> 8 * i & 0xFF);
    } else if (c.O % 4 == 0) {
        int4 four = __ldg(reinterpret_cast<const int4*>(sums));
        a[0] = four.x, a[1] = four.y, a[2] = four.z, a[3] = four.w;
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = column + i < c.O ? __ldg(sums + i) : 0;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) total[i] = multiply_add(a[i] << s.drop, s.skip_multiplier[i], total[i]);
}

// What integer.conv2d returns: the sums without the master's scale.
__device__ inline void store_sums(const int (&sums)[4], const Convolution& c, const Own& own, long long at,
                                  int column) {
    int drop = FLOOR ? 0 : own.weight_drop + own.input_drop, *to = c.sums + at;
    if (c.O % 4 == 0)
        *reinterpret_cast<int4*>(to) = make_int4(sums[0] >> drop, sums[1] >> drop, sums[2] >> drop, sums[3] >> drop);
    else
        for (int i = 0; i < 4 && column + i < c.O; i++) to[i] = sums[i] >> drop;
}

// Shift and clamp: the codes. A sum is below 2^62, so from r = 31 on the shifted one fits 32 bits.
__device__ inline void store_codes(const long long (&total)[4], const Convolution& c, long long at, int column) {
    unsigned char* to = static_cast<unsigned char*>(c.codes) + at;
    int codes[4];
    if (c.r >= 31) {
#pragma unroll
        for (int i = 0; i < 4; i++) codes[i] = int(total[i] >> c.r);
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) codes[i] = int(max(min(total[i] >> c.r, (long long)c.hi), (long long)c.lo));
    }
#pragma unroll
    for (int i = 0; i < 4; i++) codes[i] = max(min(codes[i], c.hi), c.lo) & 0xFF;
    unsigned four = codes[0] | codes[1] << 8 | codes[2] << 16 | unsigned(codes[3]) << 24;
    if (c.O % 4 == 0) *reinterpret_cast<unsigned*>(to) = four;
    else for (int i = 0; i < 4 && column + i < c.O; i++) to[i] = (unsigned char)(four >> 8 * i);
}

// Requantize the shared rows: a warp writes TILE_N neighbouring codes of a row (or of several rows) at once.
__device__ inline void finish_rows(const Results& results, int part, const RowInfo* infos, const Convolution& c,
                                   const Own& own, Scales& scales, int first_column) {
    int tile_column = threadIdx.x % (TILE_N / 4) * 4, column = first_column + tile_column;
    if (column >= c.O) return;
#pragma unroll 1
    for (int i = threadIdx.x / (TILE_N / 4); i < 2 * 16; i += THREADS / (TILE_N / 4)) {
        int row = i / 16 * (TILE_M / 2) + 16 * part + i % 16;
        RowInfo info = infos[row];
        if (info.output < 0) continue;
        long long at = multiply_add(info.output, c.O, column);
        int4 four = *reinterpret_cast<const int4*>(&results.sums[i][tile_column]);
        int sums[4] = {four.x, four.y, four.z, four.w};
        if (c.sums) store_sums(sums, c, own, at, column);
        if (!c.codes) continue;
        if (info.skip_choice != scales.choice) read_scales(scales, c, own, info.skip_choice, column);
        long long total[4];
#pragma unroll
        for (int k = 0; k < 4; k++) total[k] = multiply_add(sums[k], scales.multiplier[k], scales.offset[k]);
        if (c.skip.kind) add_skip(total, scales, c, results.skip[row][tile_column / 4], at, column);
        store_codes(total, c, at, column);
    }
}

__device__ inline void finish_tile(Results& results, const Sums& sums, const RowInfo* infos, const Convolution& c,
                                   const Own& own, int first_column) {
    if (c.codes && (c.skip.kind == 1 || c.skip.kind == 2))
        fetch_skip(results, static_cast<const unsigned char*>(c.skip.x), infos, first_column, c.O);
    Scales scales = {-1, 0, {}, {}, {}};
#pragma unroll
    for (int part = 0; part < M_TILES; part++) {
        if (part) __syncthreads();  // the rows of the part before have been read
        share_sums(results, sums, part, own);
        __syncthreads();
        finish_rows(results, part, infos, c, own, scales, first_column);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) conv(const Convolution c) {
    __shared__ union {
        uint4 tiles[2][(TILE_M + TILE_N) * CHUNKS];  // the step that is multiplied and the one that arrives
        Results results;
    } memory;
    __shared__ RowInfo infos[TILE_M];

    // Blocks of neighbouring numbers share their rows, so the codes come from device memory once, then from L2.
    int column_tiles = (c.O + TILE_N - 1) / TILE_N, first_column = blockIdx.x % column_tiles * TILE_N;
    int pixels = c.OH * c.OW;
    Group group = group_of(blockIdx.x / column_tiles, c.starts, c.choices, pixels);
    if (group.choice < 0) return;
    int weight_bits = c.bits[2 * group.choice], input_bits = c.bits[2 * group.choice + 1];
    Rounding x_to = rounding_to(input_bits), weight_to = rounding_to(weight_bits);

    int my_row = threadIdx.x / CHUNKS, my_chunk = threadIdx.x % CHUNKS, terms = c.kh * c.kw * c.C;
    Rows rows;
#pragma unroll
    for (int i = 0; i < X_CHUNKS; i++) {
        int row = my_row + ROWS_APART * i, place = group.tile * TILE_M + row;
        bool inside = place < group.images * pixels;
        int image = inside ? c.order[group.first + place / pixels] : 0, pixel = place % pixels;
        set_row(rows, i, image, pixel, c);
        if (my_chunk == 0)
            infos[row] = {inside ? image * pixels + pixel : -1, c.skip.picks && inside ? c.skip.picks[image] : 0};
    }
    Offset weight_rows[W_CHUNKS];
#pragma unroll
    for (int i = 0; i < W_CHUNKS; i++)  // columns past the last are made from its weights and not kept
        weight_rows[i] = Offset(min(first_column + my_row + ROWS_APART * i, c.O - 1)) * terms;
    Cursor term = {0, 0, 0, 0, rows_inside(rows, 0, 0, c.kh)};
    advance(term, my_chunk * CHUNK, rows, c);
    Places places = places_of_thread();

    Sums sums = {};
    Staged staged;
    fetch_windows(staged.x, rows, term, c);
    fetch_weights(staged.weight, weight_rows, my_chunk * CHUNK, terms, c);
    store_step(memory.tiles[0] + places.store, staged, x_to, weight_to);
    __syncthreads();
    int steps = (terms + STEP - 1) / STEP;
    for (int step = 1; step < steps; step++) {
        fetch_windows(staged.x, rows, term, c);  // on their way while the last step is multiplied
        fetch_weights(staged.weight, weight_rows, step * STEP + my_chunk * CHUNK, terms, c);
        multiply(sums, memory.tiles[(step - 1) % 2], places);
        store_step(memory.tiles[step % 2] + places.store, staged, x_to, weight_to);
        __syncthreads();
    }
    multiply(sums, memory.tiles[(steps - 1) % 2], places);
    __syncthreads();  // the operands have been read; their place is free for the result

    long long table_row = c.own.rows > 1 ? (long long)group.choice * c.O : 0;
    Own own = {c.own.multiplier + table_row, c.own.offset + table_row, SWITCH ? 8 - weight_bits : 0,
               SWITCH ? 8 - input_bits : 0};
    finish_tile(memory.results, sums, infos, c, own, first_column);
}
