/* The operations, the same for every program; the tables and the list of steps follow them.
   Codes are bytes, signed ones in two's complement, kept as (height, width, channels). */

typedef struct {
    const uint8_t *x;          /* codes that the term reads */
    const int8_t *weight;      /* master codes (outputs, kernel, kernel, inputs); NULL: no convolution */
    const int32_t *multiplier; /* (rows, channels) */
    const int64_t *offset;     /* (rows, channels) */
    int32_t rows, channels;    /* 1: the same for all choices, or for all channels */
    int32_t layer;             /* whose choice picks the row and the shift; -1: row 0, no shift */
    int32_t conv_layer;        /* whose choice gives weights and input their widths; -1: 8 bits */
    int32_t height, width, depth; /* of x */
    int32_t kernel_height, kernel_width, stride, padding, groups;
    int32_t is_signed;         /* codes of x */
    int32_t is_pool;           /* the term is the sum of x over the image */
    const uint8_t *y;          /* codes that x is multiplied by; NULL: no product */
    int32_t y_pixels, y_is_signed; /* of y: as many as x has, or one for all */
} Term;

typedef struct {
    const Term *terms;
    int32_t count, r, lo, hi;
    int32_t height, width, depth; /* of the result */
} Step;

/* The right shift that rounds down; C99 leaves `>>` of a negative number to the compiler. */
static int64_t shift_right(int64_t t, int32_t r)
{
    return t >= 0 ? t >> r : ~(~t >> r);
}

static int32_t code_of(uint8_t byte, int32_t is_signed)
{
    return is_signed && byte > 127 ? (int32_t)byte - 256 : (int32_t)byte;
}

/* The view of a master code with d bits dropped. */
static int32_t switch_code(int32_t q, int32_t d, int32_t is_signed)
{
    int32_t half = DQT_FLOOR || d == 0 ? 0 : (int32_t)1 << (d - 1);
    int32_t highest = (is_signed ? 127 : 255) >> d;
    int32_t view = (int32_t)shift_right(q + half, d);
    return view < highest ? view : highest;
}

/* What a product reads. With floor an input counts master steps and a weight half of them: its bin's middle. */
static int16_t input_factor(uint8_t byte, int32_t d, int32_t is_signed)
{
    int32_t view = switch_code(code_of(byte, is_signed), d, is_signed);
    return (int16_t)(DQT_FLOOR ? view * ((int32_t)1 << d) : view);
}

static int16_t weight_factor(int8_t q, int32_t d)
{
    int32_t view = switch_code(q, d, 1), unit = (int32_t)1 << d;
    return (int16_t)(DQT_FLOOR ? 2 * view * unit + unit - 1 : view);
}

/* The kernel's rows of the input for one row of the output, switched, with zeros around. */
static void read_rows(const Term *t, int32_t row, int32_t d, int16_t *out)
{
    int32_t k, j, c;
    for (k = 0; k < t->kernel_height; k++) {
        int32_t y = row * t->stride - t->padding + k;
        for (j = -t->padding; j < t->width + t->padding; j++) {
            int32_t inside = y >= 0 && y < t->height && j >= 0 && j < t->width;
            const uint8_t *x = inside ? t->x + (y * t->width + j) * t->depth : t->x;
            for (c = 0; c < t->depth; c++)
                *out++ = inside ? input_factor(x[c], d, t->is_signed) : 0;
        }
    }
}

static int32_t filter_size(const Term *t)
{
    return t->kernel_height * t->kernel_width * (t->depth / t->groups);
}

static void read_filter(const Term *t, int32_t output, int32_t d, int16_t *out)
{
    int32_t i, size = filter_size(t);
    const int8_t *weight = t->weight + output * size;
    for (i = 0; i < size; i++)
        out[i] = weight_factor(weight[i], d);
}

/* The accumulator of one output: the rows and the filter are switched already. */
static int32_t dot(const Term *t, const int16_t *rows, const int16_t *filter, int32_t column, int32_t group)
{
    int32_t inputs = t->depth / t->groups;
    int32_t row_size = (t->width + 2 * t->padding) * t->depth;
    /* Without groups the pixels of a window's row follow each other. */
    int32_t runs = t->groups == 1 ? 1 : t->kernel_width;
    int32_t run = t->groups == 1 ? t->kernel_width * inputs : inputs;
    int32_t k, l, i, sum = 0;
    for (k = 0; k < t->kernel_height; k++)
        for (l = 0; l < runs; l++) {
            const int16_t *x = rows + k * row_size + (column * t->stride + l) * t->depth + group * inputs;
            for (i = 0; i < run; i++)
                sum += (int32_t)x[i] * filter[i];
            filter += run;
        }
    return sum;
}

static int32_t pool_sum(const Term *t, int32_t channel)
{
    int32_t i, sum = 0;
    for (i = 0; i < t->height * t->width; i++)
        sum += code_of(t->x[i * t->depth + channel], t->is_signed);
    return sum;
}

/* Bits that a layer drops of its weights (which = 0) or of its input (1). */
static int32_t dropped(int32_t layer, const uint8_t *choice, int32_t which)
{
    return layer < 0 ? 0 : 8 - choices[choice[layer]][which];
}

/* (a << d) * M + B of one term at one place. */
static int64_t term_value(const Step *s, int32_t place, const uint8_t *choice, int32_t row, int32_t column,
                          int32_t output)
{
    const Term *t = &s->terms[place];
    int32_t table_row = t->rows > 1 && t->layer >= 0 ? choice[t->layer] : 0;
    int32_t entry = table_row * t->channels + (t->channels > 1 ? output : 0);
    int32_t d = DQT_FLOOR ? 0 : dropped(t->layer, choice, 0) + dropped(t->layer, choice, 1);
    int64_t a;
    if (t->weight)
        a = dot(t, row_buffer[place], filter_buffer[place], column, output / (s->depth / t->groups));
    else if (t->is_pool)
        a = pool_sum(t, output);
    else
        a = code_of(t->x[(row * s->width + column) * s->depth + output], t->is_signed);
    if (t->y) {
        int32_t pixel = t->y_pixels > 1 ? row * s->width + column : 0;
        a *= code_of(t->y[pixel * s->depth + output], t->y_is_signed);
    }
    return a * ((int64_t)1 << d) * t->multiplier[entry] + t->offset[entry];
}

/* What all sums of one row, and then of one output, have in common: the operands of their convolutions. */
static void read_inputs(const Step *s, const uint8_t *choice, int32_t row)
{
    int32_t j;
    for (j = 0; j < s->count; j++)
        if (s->terms[j].weight)
            read_rows(&s->terms[j], row, dropped(s->terms[j].conv_layer, choice, 1), row_buffer[j]);
}

static void read_filters(const Step *s, const uint8_t *choice, int32_t output)
{
    int32_t j;
    for (j = 0; j < s->count; j++)
        if (s->terms[j].weight)
            read_filter(&s->terms[j], output, dropped(s->terms[j].conv_layer, choice, 0), filter_buffer[j]);
}
