/* The largest code of every window; what lies outside never wins. */
static void max_pool(const uint8_t *x, int32_t height, int32_t width, int32_t depth, int32_t is_signed,
                     int32_t kernel, int32_t stride, int32_t padding, int32_t rows, int32_t columns,
                     uint8_t *out)
{
    int32_t top, left, c, k, l;
    for (top = -padding; top < rows * stride - padding; top += stride)
        for (left = -padding; left < columns * stride - padding; left += stride)
            for (c = 0; c < depth; c++) {
                int32_t largest = -129;
                for (k = top; k < top + kernel; k++)
                    for (l = left; l < left + kernel; l++)
                        if (k >= 0 && k < height && l >= 0 && l < width) {
                            int32_t code = code_of(x[(k * width + l) * depth + c], is_signed);
                            largest = code > largest ? code : largest;
                        }
                *out++ = (uint8_t)(largest & 255);
            }
}
