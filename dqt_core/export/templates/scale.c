/* Logits: the sums of one term as they are. */
static void scale(const Step *s, const uint8_t *choice, int64_t *out)
{
    int32_t row, column, output;
    for (row = 0; row < s->height; row++) {
        read_inputs(s, choice, row);
        for (output = 0; output < s->depth; output++) {
            read_filters(s, choice, output);
            for (column = 0; column < s->width; column++)
                out[(row * s->width + column) * s->depth + output] =
                    term_value(s, 0, choice, row, column, output);
        }
    }
}
