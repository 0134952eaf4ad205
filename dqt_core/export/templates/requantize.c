/* The one rounding: sums of terms to codes. */
static void requantize(const Step *s, const uint8_t *choice, uint8_t *out)
{
    int32_t row, column, output, j;
    for (row = 0; row < s->height; row++) {
        read_inputs(s, choice, row);
        for (output = 0; output < s->depth; output++) {
            read_filters(s, choice, output);
            for (column = 0; column < s->width; column++) {
                int64_t total = (int64_t)1 << (s->r - 1);
                for (j = 0; j < s->count; j++)
                    total += term_value(s, j, choice, row, column, output);
                total = shift_right(total, s->r);
                total = total < s->lo ? s->lo : total > s->hi ? s->hi : total;
                out[(row * s->width + column) * s->depth + output] = (uint8_t)(total & 255);
            }
        }
    }
}
