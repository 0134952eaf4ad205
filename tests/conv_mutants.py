"""Small, plausible mistakes in conv.cu, depthwise.cu and pointwise.cu.

Each is a text that occurs once, its replacement, and a name: the kernel's, a colon, the mistake.
"""

MUTANTS = {
    "conv.cu": [
        ("((1 << drop) >> 1) * EACH_BYTE", "(1 << drop & 0xFF) * EACH_BYTE", "conv: epsilon one bit up"),
        ("unsigned sum = codes + (codes & to.half);", "unsigned sum = codes;", "conv: no epsilon"),
        ("(sum ^ spread_high_bits(ran_over)) & to.kept", "sum & to.kept", "conv: epsilon overflows"),
        (
            "(sum ^ spread_high_bits(ran_over)) & to.kept",
            "sum ^ spread_high_bits(ran_over)",
            "conv: dropped bits stay",
        ),
        ("is_signed ? ~codes & sum : codes & ~sum", "codes & ~sum", "conv: signed codes clamped as unsigned"),
        ("(0xFF << drop & 0xFF) * EACH_BYTE", "0xFF << drop & 0xFF", "conv: one code of four kept"),
        (
            "= switch_chunk<true>(staged.weight[i], weight_to)",
            "= switch_chunk<true>(staged.weight[i], x_to)",
            "conv: weights at the width of the input",
        ),
        (
            "tiles[step % 2] + places.store, staged, x_to, weight_to);\n        __syncthreads();",
            "tiles[step % 2] + places.store, staged, x_to, weight_to);",
            "conv: no barrier after a step",
        ),
        (
            "    store_step(memory.tiles[0] + places.store, staged, x_to, weight_to);\n    __syncthreads();",
            "    store_step(memory.tiles[0] + places.store, staged, x_to, weight_to);",
            "conv: no barrier after the first step",
        ),
        (
            "    __syncthreads();  // the operands have been read",
            "    // the operands",
            "conv: results over operands in use",
        ),
        ("if (part) __syncthreads();", "", "conv: no barrier before the next part of the results"),
        (
            "share_sums(results, sums, part, own);\n        __syncthreads();",
            "share_sums(results, sums, part, own);",
            "conv: sums read before they are there",
        ),
        ("min(taps, size - first)", "min(taps, size - first - 1)", "conv: last tap of the image left out"),
        ("max(0, -first)", "max(0, -first - 1)", "conv: a tap outside the image"),
        ("max(0, -first)", "max(0, 1 - first)", "conv: first tap of the image left out"),
        ("c.OW * c.stride - c.padding, x", "c.OW * c.stride, x", "conv: no padding above"),
        (
            "term.offset += (c.W - c.kw) * c.C;",
            "term.offset += (c.W - c.kw + 1) * c.C;",
            "conv: next row one pixel off",
        ),
        ("if (++term.kx == c.kw) {", "if (++term.kx >= c.kh) {", "conv: rows of taps as long as columns"),
        ("if (ky >= kh) return 0;", "", "conv: terms past the last"),
        ("if (at >= terms) at = 0;", "", "conv: reads past the last weight"),
        (
            "min(first_column + my_row + ROWS_APART * i, c.O - 1)",
            "(first_column + my_row + ROWS_APART * i)",
            "conv: reads kernels that are not there",
        ),
        (
            "(images * pixels + TILE_M - 1) / TILE_M",
            "images * pixels / TILE_M",
            "conv: a group's last rows lost",
        ),
        (
            "c.order[group.first + place / pixels]",
            "(group.first + place / pixels)",
            "conv: images not in their group's order",
        ),
        (
            "c.own.rows > 1 ? (long long)group.choice * c.O : 0",
            "0",
            "conv: every group takes the first row of multipliers",
        ),
        (
            "c.skip.picks && inside ? c.skip.picks[image] : 0",
            "group.choice",
            "conv: skip at the convolution's own choice",
        ),
        (
            "if (info.skip_choice != scales.choice) read",
            "if (scales.choice < 0) read",
            "conv: all images take the first one's skip scales",
        ),
        ("16 - __ldg(c.skip.bits", "15 - __ldg(c.skip.bits", "conv: skip shifted by one less"),
        (
            "c.skip.kind == 2 ? int(static_cast<signed",
            "false ? int(static_cast<signed",
            "conv: signed skip as unsigned",
        ),
        ("if (column >= c.O) return;", "", "conv: columns without a channel written"),
        ("+ (1ll << (c.r - 1));  // ties up", ";", "conv: rounds down"),
        ("if (c.r >= 31) {", "if (true) {", "conv: 32 bits of a shifted sum that has more"),
        ("max(min(codes[i], c.hi), c.lo) & 0xFF", "codes[i] & 0xFF", "conv: no clamp"),
        ("SWITCH ? 8 - weight_bits : 0", "8 - weight_bits", "conv: shifted though not switched"),
        ("a[i] << s.drop, s.skip_multiplier", "a[i], s.skip_multiplier", "conv: skip not shifted"),
        ("s.offset[i] += __ldg(c.skip.offset + at);", "", "conv: no offset of the skip"),
        ("mma_16x8x32<x_signed>(sums.windows[i], a[i], ones);", ";", "conv: no sums of windows in floor"),
        (
            "((1 << own.weight_drop) - 1) * sums.windows",
            "(1 << own.weight_drop) * sums.windows",
            "conv: middle of the bin half a step high",
        ),
        (
            "FLOOR ? 0 : own.weight_drop + own.input_drop, *to",
            "FLOOR ? 0 : own.weight_drop, *to",
            "conv: sums at the master's scale",
        ),
        ("(terms + STEP - 1) / STEP", "max(terms / STEP, 1)", "conv: last step left out"),
        (
            "column + i < c.O; i++) to[i] = sums",
            "true; i++) to[i] = sums",
            "conv: sums written past the last channel",
        ),
        (
            "column + i < c.O; i++) to[i] = (unsigned char)",
            "true; i++) to[i] = (unsigned char)",
            "conv: codes written past the last channel",
        ),
        ("if (info.output < 0) continue;", "", "conv: rows without a pixel written"),
    ],
    "depthwise.cu": [
        ("    __syncthreads();\n", "", "depthwise: no barrier after the weights"),
        (
            "ky < min(c.kh, c.H - row)",
            "ky < min(c.kh, c.H - row - 1)",
            "depthwise: last row of the image left out",
        ),
        (
            "int kx = max(0, -left)",
            "int kx = max(0, 1 - left)",
            "depthwise: first column of the image left out",
        ),
        ("while (place >= c.starts[choice + 1]) choice++;", "", "depthwise: every image at the first choice"),
        ("image = c.order[place]", "image = place", "depthwise: images not in their group's order"),
        ("min(first_pixel + PIXELS, c.OH * c.OW)", "first_pixel + PIXELS", "depthwise: pixels past the last"),
        ("count = min(4, c.C - channel)", "count = c.C - channel", "depthwise: channels of the next thread"),
        ("channel < c.C ? c.weight[", "true ? c.weight[", "depthwise: reads kernels that are not there"),
        (
            "switch4(master & 0xFF, weight_bits, true)",
            "switch4(master & 0xFF, input_bits, true)",
            "depthwise: weights at the width of the input",
        ),
        ("windows[i] += code;", "", "depthwise: no sums of windows in floor"),
        ("windows[i], choice, image", "windows[i], image, choice", "depthwise: choice and image exchanged"),
    ],
    "pointwise.cu": [
        (
            "% rows * (blockDim.x % rows) + threadIdx.x) % rows",
            "+ threadIdx.x) % rows % 2",
            "lookup: third channel by the first's table",
        ),
        (
            "blockIdx.x % rows * (blockDim.x % rows) + threadIdx.x",
            "threadIdx.x",
            "lookup: every block begins with a first channel",
        ),
        (
            "    if (i >= count) return;\n    // i % rows",
            "    // i % rows",
            "lookup: bytes past the last",
        ),
        (
            "[i / C * OC + first + i % C]",
            "[i / C * OC + i % C]",
            "copy_channels: all parts in the first's place",
        ),
        (
            "[i / C * OC + first + i % C]",
            "[i / C * C + first + i % C]",
            "copy_channels: pixels of the part's channels",
        ),
        ("y_size == size ? i :", "y_size == size ? i % y_size :", "product: the first image's factor"),
        ("i / size * C + i % C", "i % C", "product: the first image's pixel"),
        ("i / size * C + i % C", "i / size * C", "product: the first channel's factor"),
        ("y < min(row + kernel, H)", "y < min(row + kernel, H - 1)", "max_pool: last row left out"),
        ("int z = max(column, 0)", "int z = max(column + 1, 0)", "max_pool: first column left out"),
        ("x_signed ? 0x80 * EACH_BYTE : 0", "0", "max_pool: padding wins over negative codes"),
        ("(~(a ^ b) & low_decides)", "low_decides", "max_pool: high bits do not decide"),
        ("(a | 0x80 * EACH_BYTE) - (b & 0x7F * EACH_BYTE)", "a - b", "max_pool: borrows from the neighbour"),
        (
            "    __syncthreads();\n    int mine",
            "    int mine",
            "sum_pool: no barrier before the parts are added",
        ),
        (
            "pixel < pixels; pixel += GROUPS",
            "pixel < pixels - 1; pixel += GROUPS",
            "sum_pool: last pixel left out",
        ),
        (
            "if (mine >= 64 || first + mine >= C) return;",
            "if (mine >= 64) return;",
            "sum_pool: channels past the last",
        ),
        (
            "sums[i] += Code(word >> 8 * i);",
            "sums[i] += (unsigned char)(word >> 8 * i);",
            "sum_pool: signed codes as unsigned",
        ),
        ("image = int(i / C / pixels)", "image = int(i / C)", "requantize: a pixel taken for an image"),
        (
            "value_at(second, i, image, channel, C)",
            "value_at(first, i, image, channel, C)",
            "requantize: the first term twice",
        ),
        (
            "scaled(x[i], 0, multiplier[i % C]) + offset[i % C]",
            "x[i] * multiplier[i % C] + offset[i % C]",
            "scale: products of 32 bits",
        ),
        (
            "if (i < count) out[i] = scaled(x[i], 0,",
            "if (i <= count) out[i] = scaled(x[i], 0,",
            "scale: one logit too many",
        ),
        (
            "logits[i * K + k] > logits[i * K + best]",
            "logits[i * K + k] >= logits[i * K + best]",
            "choose: ties to the wider",
        ),
        ("for (int k = 1; k < K; k++)", "for (int k = 1; k < K - 1; k++)", "choose: the widest never chosen"),
        (
            "column[n] = picks[(long long)n * L + layer];\n    __syncthreads();",
            "column[n] = picks[(long long)n * L + layer];",
            "group_images: no barrier before counting",
        ),
        (
            "start += column[n] < choice;",
            "start += column[n] <= choice;",
            "group_images: begins after itself",
        ),
        (
            "if (column[n] == choice) *next++ = n;",
            "if (column[n] == choice) *next++ = N - 1 - n;",
            "group_images: images in reverse",
        ),
        (
            "choice <= K; choice += blockDim.x",
            "choice < K; choice += blockDim.x",
            "group_images: the end of the last group not written",
        ),
    ],
}

#: Of common.cuh: what becomes of sums, alone and in a convolution that is no tile's.
ROUNDING_MUTANTS = [
    ("(term.rows > 1 ? choice : 0) * C", "choice * C", "requantize: rows of a table of one"),
    ("(term.rows > 1 ? choice : 0) * C", "0 * C", "requantize: first row for all"),
    ("int drop = term.bits ? 16 -", "int drop = term.bits ? 15 -", "requantize: shifted by one less"),
    ("term.picks ? term.picks[image] : 0", "0", "requantize: all images at the first choice"),
    ("if (!term.kind) return 0;", "", "requantize: a term that is not there"),
    (
        "kind == 2 ? int(__ldg(static_cast<const signed char*>",
        "kind == 2 ? int(__ldg(static_cast<const unsigned char*>",
        "requantize, product: signed codes as unsigned",
    ),
    ("        drop = 0;\n", "", "grouped: floor shifted twice"),
    (
        "((1 << weight_drop) - 1) * window",
        "(1 << weight_drop) * window",
        "depthwise: middle of the bin half high",
    ),
    (
        "value_of(c.own, sum, drop, choice, o",
        "value_of(c.own, sum, drop, 0, o",
        "depthwise: first row for all",
    ),
    ("+ value_at(c.skip, i, image, o, c.O)", "", "depthwise: no skip"),
    ("if (c.sums) c.sums[i] = sum;", "c.sums[i] = sum;", "grouped: sums that nobody asked for"),
    ("    if (!c.codes) return;\n", "", "grouped: codes that nobody asked for"),
    (
        "(long long)a * multiplier << drop",
        "(long long)(a * multiplier) << drop",
        "requantize: products of 32 bits",
    ),
    ("(long long)a * multiplier << drop", "(long long)a * multiplier", "requantize: no shift"),
    ("(sum + (1ll << (r - 1))) >> r", "sum >> r", "requantize: rounds down"),
    ("(sum + (1ll << (r - 1))) >> r", "(sum + (1 << (r - 1))) >> r", "requantize: half of 32 bits"),
    ("(sum + (1ll << (r - 1))) >> r", "(sum + (1ll << (r - 1)) - 1) >> r", "requantize: ties down"),
    ("shifted < lo ? lo : shifted > hi ? hi : int(shifted)", "int(shifted)", "requantize: no clamp"),
    (
        "shifted < lo ? lo : shifted > hi ? hi",
        "int(shifted) < lo ? lo : int(shifted) > hi ? hi",
        "requantize: clamp of 32 bits",
    ),
]
