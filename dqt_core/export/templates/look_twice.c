/* Append to an exported file: every layer at `narrow` bits, and at `wide` where the margin is below the threshold.
   Returns the passes that it took, or 0 if the network does not hold such a width. */
int look_twice(const uint8_t *image, uint8_t narrow, uint8_t wide, int64_t threshold, int64_t *logits)
{
    uint8_t widths[DQT_LAYERS * DQT_WIDTHS];
    int64_t first = INT64_MIN, second = INT64_MIN;
    int i, pass, number = (int)sizeof widths;
    for (pass = 1; pass <= 2; pass++) {
        for (i = 0; i < number; i++)
            widths[i] = pass == 1 ? narrow : wide;
        if (dqt_run(image, widths, logits, 0))
            return 0;
        for (i = 0; pass == 1 && i < DQT_CLASSES; i++) {
            second = logits[i] > first ? first : logits[i] > second ? logits[i] : second;
            first = logits[i] > first ? logits[i] : first;
        }
        if (first - second >= threshold)
            return pass;
    }
    return 2;
}
