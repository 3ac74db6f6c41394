#include "recall.h"
#include "vectors.h"

#define ROWS 16 /* of a block, which stays in the first-level cache between its products and its sums */

/* What the rows read so far add up to: the largest logit, and the sum of the shares relative to it. */
typedef struct {
  float most, sum;
} Seen;

/* Replaces the logits of a block by shares relative to the new largest logit; returns the factor of what was added before
 * (Milakov and Gimelshein 2018). */
static float shares_of(float logits[ROWS], Seen *seen) {
  float most = seen->most, sum = 0;
  for (int i = 0; i < ROWS; i++) most = logits[i] > most ? logits[i] : most;
  for (int i = 0; i < ROWS; i += W) store(logits + i, exponential(load(logits + i, W) - most), W);
  for (int i = 0; i < ROWS; i++) sum += logits[i];
  float before = expf(seen->most - most);
  *seen = (Seen){most, seen->sum * before + sum};
  return before;
}

/* out [2, dim] = factors out + the sum over rows of their shares in both heads; `wide` registers of each head at a time. */
INLINE int64_t add_rows(const float *rows, int64_t count, const float *followed, const float *resembled, const float *factors,
                        int64_t start, int64_t dim, const int wide, float *restrict out) {
  int64_t d = start;
  for (; d + (wide > 1 ? wide * W : 1) <= dim; d += wide * W) {
    floats sums[2][4];
    int64_t left = wide > 1 ? W : dim - d;
    for (int i = 0; i < wide; i++)
      for (int h = 0; h < 2; h++) sums[h][i] = factors[h] * load(out + h * dim + d + i * W, left);
    for (int64_t j = 0; j < count; j++)
      for (int i = 0; i < wide; i++) {
        floats x = load(rows + j * dim + d + i * W, left);
        sums[0][i] += followed[j] * x, sums[1][i] += resembled[j] * x;
      }
    for (int i = 0; i < wide; i++)
      for (int h = 0; h < 2; h++) store(out + h * dim + d + i * W, sums[h][i], left);
  }
  return d;
}

void recall(const float *query, const float *rows, const float *written, const uint8_t *filled, Heads heads, int64_t places,
            int64_t dim, float *restrict out) {
  Seen seen[2] = {{heads.sinks[0], 1}, {heads.sinks[1], 1}};
  memset(out, 0, sizeof(float) * 2 * dim);
  for (int64_t p = 0; p < places - 1; p += ROWS) {
    int64_t count = places - 1 - p < ROWS ? places - 1 - p : ROWS;
    /* A row is the key of two values: of itself, and of the row after it, whose share therefore lies one place later. */
    float shares[2][ROWS + 1];
    float *followed = shares[0] + 1, *resembled = shares[1];
    for (int64_t i = 0; i < ROWS; i++) {
      followed[i] = resembled[i] = -INFINITY;
      if (i >= count || !filled[p + i]) continue;
      float alike = dot(query, rows + (p + i) * dim, dim), lag = (float)(places - 1 - p - i);
      followed[i] = heads.sharpness[0] * alike - heads.fading[0] * (lag - 1) + written[p + i + 1];
      resembled[i] = heads.sharpness[1] * alike - heads.fading[1] * lag + written[p + i];
    }
    float factors[2] = {shares_of(followed, seen), shares_of(resembled, seen + 1)};
    shares[0][0] = resembled[count] = 0;
    int64_t d = add_rows(rows + p * dim, count + 1, shares[0], resembled, factors, 0, dim, 4, out);
    add_rows(rows + p * dim, count + 1, shares[0], resembled, factors, d, dim, 1, out);
  }
  for (int h = 0; h < 2; h++)
    for (int64_t d = 0; d < dim; d++) out[h * dim + d] /= seen[h].sum;
}
