/* The controller's decision for those of its layers that are left to it: the first of the largest scores. */
static void choose(const int64_t *scores, uint8_t *choice)
{
    int32_t layer, k;
    for (layer = 0; layer < DQT_LAYERS - DQT_EARLY; layer++) {
        const int64_t *row = scores + layer * DQT_CHOICES;
        int32_t best = 0;
        for (k = 1; k < DQT_CHOICES; k++)
            if (row[k] > row[best])
                best = k;
        if (choice[layer] == UNDECIDED)
            choice[layer] = (uint8_t)best;
    }
}
