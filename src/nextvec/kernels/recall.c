#include "recall.h"
#include "vectors.h"
#include "fold.h"

#define ROWS 16 /* of a block, which stays in the first-level cache between its products and its sums */

/* One head, after the rows read so far: the largest logit, and the lanes of the sum of the shares relative to it. */
typedef struct {
  float most;
  floats sums;
} Head;

/* The products of a block of rows with the query; those of missing rows are 0. */
static void products(const float *query, const float *rows, int64_t count, int64_t dim, float *out) {
  for (int64_t r = 0; r < ROWS; r += W) {
    floats s[W] = {0};
    for (int64_t j = 0; j < W && r + j < count; j++) s[j] = lane_sums(query, rows + (r + j) * dim, dim);
    FOLDS
    store(out + r, s[0], W);
  }
}

/* Replaces the logits of a block by shares relative to the new largest logit; returns the factor of what was added before
 * (Milakov and Gimelshein 2018). */
static float shares_of(floats logits[ROWS / W], Head *head) {
  floats most = all(head->most);
  UNROLL for (int i = 0; i < ROWS / W; i++) most = larger(logits[i], most);
  float before = head->most;
  head->most = largest_of(most);
  float factor = before == head->most ? 1 : exponential(all(before - head->most))[0];
  head->sums *= factor;
  UNROLL for (int i = 0; i < ROWS / W; i++) head->sums += logits[i] = exponential(logits[i] - head->most);
  return factor;
}

/* out [2, dim] = factors out + the sums of rows times their shares in both heads; `wide` registers of each head at a time.
 * Returns where it has stopped. */
INLINE int64_t add_rows(const float *rows, int64_t count, const float *followed, const float *resembled, const float *factors,
                        int64_t start, int64_t dim, const int wide, float *restrict out) {
  int64_t d = start;
  for (; d < dim && (wide == 1 || d + wide * W <= dim); d += wide * W) {
    floats sums[2][wide];
    int64_t left = wide == 1 ? dim - d : W;
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
  static const float numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  Head followed = {heads.sinks[0], {1}}, resembled = {heads.sinks[1], {1}};
  memset(out, 0, sizeof(float) * 2 * dim);
  for (int64_t p = 0; p < places - 1; p += ROWS, rows += ROWS * dim) {
    int64_t count = places - 1 - p < ROWS ? places - 1 - p : ROWS;
    float alike[ROWS], gates[ROWS + 1] = {0};
    int32_t there[ROWS] = {0};
    products(query, rows, count, dim, alike);
    memcpy(gates, written + p, sizeof(float) * (count + 1));
    for (int64_t i = 0; i < count; i++) there[i] = -(filled[p + i] != 0);
    floats logits[2][ROWS / W];
    UNROLL for (int i = 0; i < ROWS / W; i++) {
      floats x = load(alike + i * W, W), lag = (float)(places - 1 - p) - load(numbers + i * W, W);
      ints known = *(const loose_ints *)(there + i * W);
      /* A row is the key of two values: of the row after it, and of itself. */
      floats after = heads.sharpness[0] * x - heads.fading[0] * (lag - 1) + load(gates + i * W + 1, W);
      floats own = heads.sharpness[1] * x - heads.fading[1] * lag + load(gates + i * W, W);
      logits[0][i] = choose(known, after, all(-INFINITY)), logits[1][i] = choose(known, own, all(-INFINITY));
    }
    float factors[2] = {shares_of(logits[0], &followed), shares_of(logits[1], &resembled)};
    float shares[2][ROWS + 1] = {{0}};
    memcpy(shares[0] + 1, logits[0], sizeof logits[0]);
    memcpy(shares[1], logits[1], sizeof logits[1]);
    shares[1][count] = 0;
    int64_t done = add_rows(rows, count + 1, shares[0], shares[1], factors, 0, dim, 4, out);
    add_rows(rows, count + 1, shares[0], shares[1], factors, done, dim, 1, out);
  }
  float scales[2] = {1 / sum_of(followed.sums), 1 / sum_of(resembled.sums)};
  for (int h = 0; h < 2; h++)
    for (int64_t d = 0; d < dim; d++) out[h * dim + d] *= scales[h];
}
