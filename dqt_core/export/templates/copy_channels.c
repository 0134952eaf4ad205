/* A value's channels to their place among those of a concatenation. */
static void copy_channels(const uint8_t *x, int32_t pixels, int32_t channels, int32_t depth, uint8_t *out)
{
    int32_t i, c;
    for (i = 0; i < pixels; i++)
        for (c = 0; c < channels; c++)
            out[i * depth + c] = x[i * channels + c];
}
