/* The operations of a step besides its matrix products: exponential means, their mixture, attention of one query. Each
 * function replaces about ten operations of torch, whose call overhead exceeds their work. */
#include "export.h"
#include "recall.h"
#include "vectors.h"
#include <stdlib.h>

/* x, centred [batch, length, dim]; carried [batch, count, dim]; means [batch, length, count, dim]. */
EXPORT void nextvec_steps_means(const float *x, const float *centre, const float *decays, const float *carried, int64_t batch,
                                int64_t length, int64_t count, int64_t dim, float *restrict centred, float *restrict means) {
  for (int64_t b = 0; b < batch; b++) {
    const float *before = carried + b * count * dim;
    for (int64_t t = 0; t < length; t++) {
      for (int64_t d = 0; d < dim; d++) centred[d] = x[d] - centre[d];
      for (int64_t k = 0; k < count; k++)
        for (int64_t d = 0; d < dim; d++)
          means[k * dim + d] = decays[k] * before[k * dim + d] + (1 - decays[k]) * centred[d];
      before = means, x += dim, centred += dim, means += count * dim;
    }
  }
}

/* features [positions, 3 count - 1]: cosines of the centred vector with each mean, of neighbouring means, and norms. */
EXPORT void nextvec_steps_features(const float *centred, const float *means, int64_t positions, int64_t count, int64_t dim,
                                   float *features) {
  for (int64_t t = 0; t < positions; t++, centred += dim, means += count * dim, features += 3 * count - 1) {
    float size = at_least(norm(centred, dim), LEAST_NORM);
    float *between = features + count - 1, *norms = features + 2 * count - 1;
    for (int64_t k = 0; k < count; k++) {
      const float *mean = means + k * dim;
      norms[k] = norm(mean, dim);
      features[k] = dot(mean, centred, dim) / at_least(norms[k], LEAST_NORM) / size;
      if (k)
        between[k] = dot(mean, mean - dim, dim) / at_least(norms[k], LEAST_NORM) / at_least(norms[k - 1], LEAST_NORM);
    }
  }
}

/* mixed [positions, dim] = bias + the sum over means of gate weight mean; gates [positions, count], or NULL for ones. */
EXPORT void nextvec_steps_mix(const float *means, const float *weights, const float *gates, const float *bias,
                              int64_t positions, int64_t count, int64_t dim, float *restrict mixed) {
  for (int64_t t = 0; t < positions; t++, means += count * dim, mixed += dim) {
    memcpy(mixed, bias, sizeof(float) * dim);
    for (int64_t k = 0; k < count; k++) {
      float gate = gates ? gates[t * count + k] : 1;
      for (int64_t d = 0; d < dim; d++) mixed[d] += gate * weights[k * dim + d] * means[k * dim + d];
    }
  }
}

/* y [positions, dim]: the unit vector along (mixed / |mixed| + residual) scale. */
EXPORT void nextvec_steps_finish(const float *mixed, const float *residual, const float *scale, int64_t positions, int64_t dim,
                                 float *restrict y) {
  for (int64_t t = 0; t < positions; t++, mixed += dim, residual += dim, y += dim) {
    float size = at_least(norm(mixed, dim), LEAST_NORM);
    for (int64_t d = 0; d < dim; d++) y[d] = (mixed[d] / size + residual[d]) * scale[d];
    size = at_least(norm(y, dim), LEAST_NORM);
    for (int64_t d = 0; d < dim; d++) y[d] /= size;
  }
}

/* The mean score of every lane over the vectors read (LaneScores).
 *
 *   x [batch, length, dim]; anchors [count, dim]; prices [count]; keep: weight of a row relative to the next row
 *   sums [batch, count], weights [batch]: of the vectors read before; updated in place
 *   means [batch, length, count]
 */
EXPORT void nextvec_steps_lanes(const float *x, const float *anchors, const float *prices, float keep, int64_t batch,
                                int64_t length, int64_t dim, int64_t count, float *restrict sums, float *restrict weights,
                                float *restrict means) {
  for (int64_t b = 0; b < batch; b++, sums += count, weights++)
    for (int64_t t = 0; t < length; t++, x += dim, means += count) {
      *weights = keep * *weights + 1;
      for (int64_t e = 0; e < count; e++) {
        sums[e] = keep * sums[e] + dot(x, anchors + e * dim, dim) - prices[e];
        means[e] = sums[e] / *weights;
      }
    }
}

/* The choice of active experts (Routing): logits, probabilities, weights [positions, count]; top < count. */
EXPORT void nextvec_steps_choose(const float *logits, int64_t positions, int64_t count, int64_t top,
                                 float *restrict probabilities, float *restrict weights) {
  for (int64_t n = 0; n < positions; n++, logits += count, probabilities += count, weights += count) {
    memcpy(probabilities, logits, sizeof(float) * count);
    softmax(probabilities, count, -INFINITY);
    float active = 0, least = INFINITY; /* least becomes the best of those that are not chosen */
    memcpy(weights, probabilities, sizeof(float) * count);
    for (int64_t k = 0; k <= top; k++) {
      int64_t best = 0;
      for (int64_t e = 1; e < count; e++)
        if (weights[e] > weights[best]) best = e;
      least = weights[best], weights[best] = -1;
      if (k < top) active += least;
    }
    for (int64_t e = 0; e < count; e++) weights[e] = probabilities[e] > least ? (probabilities[e] - least) / active : 0;
  }
}

/* Attention of one query per passage over its places; the last place is its own (models/window_attention.py).
 *
 *   queries [batch, heads * key]; keys [batch, places, heads * key]; values [batch, places, heads * value]
 *   filled [batch, places], or NULL where all are; slopes [heads]: what a score loses for every place of distance
 *   out [batch, heads * value]
 */
EXPORT int32_t nextvec_steps_attend(const float *queries, const float *keys, const float *values, const uint8_t *filled,
                                    const float *slopes, int64_t batch, int64_t places, int64_t heads, int64_t key,
                                    int64_t value, float *restrict out) {
  float *logits = malloc(sizeof(float) * heads * places);
  if (!logits) return 0;
  float scale = 1 / sqrtf((float)key);
  for (int64_t b = 0; b < batch; b++, queries += heads * key, out += heads * value) {
    for (int64_t p = 0; p < places; p++, keys += heads * key)
      for (int64_t n = 0; n < heads; n++) {
        float score = scale * dot(queries + n * key, keys + n * key, key) - slopes[n] * (float)(places - 1 - p);
        logits[n * places + p] = filled && !filled[b * places + p] ? -INFINITY : score;
      }
    for (int64_t n = 0; n < heads; n++) softmax(logits + n * places, places, -INFINITY);
    memset(out, 0, sizeof(float) * heads * value);
    for (int64_t p = 0; p < places; p++)
      for (int64_t n = 0; n < heads; n++, values += value) {
        float share = logits[n * places + p];
        for (int64_t i = 0; i < value; i++) out[n * value + i] += share * values[i];
      }
  }
  free(logits);
  return 1;
}

/* Recall at the last place of each passage (recall.h).
 *
 *   queries [batch, dim]; rows [batch, places, dim]; written, filled [batch, places]; sharpness, fading, sinks [2]
 *   out [batch, 2, dim]
 */
EXPORT void nextvec_steps_recall(const float *queries, const float *rows, const float *written, const uint8_t *filled,
                                 const float *sharpness, const float *fading, const float *sinks, int64_t batch,
                                 int64_t places, int64_t dim, float *restrict out) {
  Heads heads = {sharpness, fading, sinks};
  for (int64_t b = 0; b < batch; b++)
    recall(queries + b * dim, rows + b * places * dim, written + b * places, filled + b * places, heads, places, dim,
           out + b * 2 * dim);
}
