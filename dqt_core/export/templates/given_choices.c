/* The number of a choice for every layer; returns how many are left to the controller, or -1. */
static int32_t given_choices(const uint8_t *widths, uint8_t *choice)
{
    int32_t layer, k, undecided = 0;
    for (layer = 0; layer < DQT_LAYERS; layer++) {
        int32_t weight = widths ? widths[layer * DQT_WIDTHS] : 0;
        int32_t input = widths ? widths[layer * DQT_WIDTHS + DQT_WIDTHS - 1] : 0;
        choice[layer] = UNDECIDED;
        for (k = 0; k < DQT_CHOICES; k++)
            if (choices[k][0] == weight && choices[k][1] == input)
                choice[layer] = (uint8_t)k;
        if (choice[layer] == UNDECIDED && (weight || input || !DQT_CONTROLLER))
            return -1;
#if DQT_EARLY
        if (choice[layer] == UNDECIDED && layer < DQT_EARLY)
            choice[layer] = early[layer];
#endif
        undecided += choice[layer] == UNDECIDED;
    }
    return undecided;
}
