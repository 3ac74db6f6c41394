#pragma once
#include <stdint.h>

/* The two heads of the working memory (models/working_memory.py); two numbers each. */
typedef struct {
  const float *sharpness, *fading, *sinks;
} Heads;

/* Recall at the last of `places` rows: the rows that followed similar rows, and the similar rows themselves; out [2, dim].
 * Each row is read from memory once. */
void recall(const float *query, const float *rows, const float *written, const uint8_t *filled, Heads heads, int64_t places,
            int64_t dim, float *restrict out);
