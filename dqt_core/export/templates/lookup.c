/* Bytes by a table, or by that of their channel. */
static void lookup(const uint8_t *x, const int8_t *table, int32_t count, int32_t rows, uint8_t *out)
{
    int32_t i;
    for (i = 0; i < count; i++)
        out[i] = (uint8_t)table[256 * (i % rows) + x[i]];
}
