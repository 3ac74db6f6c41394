/* The operations of a step besides its matrix products: exponential means, their mixture, attention of one query. Each
 * function replaces about ten operations of torch, whose call overhead exceeds their work. */
#include "export.h"
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

#define ABSENT -1e9f /* as in models/working_memory.py */

/* Recall at the last place of each passage (models/working_memory.py): the rows that followed similar rows, and the similar
 * rows themselves.
 *
 *   queries [batch, dim]; rows [batch, places, dim]; written, filled [batch, places]; size: places of the memory
 *   sharpness, fading, sinks [2]; out [batch, 2, dim]
 */
EXPORT int32_t nextvec_steps_recall(const float *queries, const float *rows, const float *written, const uint8_t *filled,
                                    const float *sharpness, const float *fading, const float *sinks, int64_t batch,
                                    int64_t places, int64_t size, int64_t dim, float *restrict out) {
  float *followed = malloc(sizeof(float) * 2 * places);
  if (!followed) return 0;
  float *resembled = followed + places;
  for (int64_t b = 0; b < batch; b++, queries += dim, rows += places * dim, out += 2 * dim, written += places, filled += places) {
    for (int64_t p = 0; p < places; p++) {
      /* The key of a value is the row one place earlier. */
      float alike = dot(queries, rows + p * dim, dim), lag = (float)(places - 1 - p);
      if (p + 1 < places)
        followed[p + 1] = filled[p] && places - 2 - p < size ? sharpness[0] * alike - fading[0] * (lag - 1) + written[p + 1] : ABSENT;
      resembled[p] = filled[p] && p < places - 1 && places - 1 - p <= size ? sharpness[1] * alike - fading[1] * lag + written[p] : ABSENT;
    }
    followed[0] = ABSENT;
    softmax(followed, places, sinks[0]);
    softmax(resembled, places, sinks[1]);
    memset(out, 0, sizeof(float) * 2 * dim);
    for (int64_t p = 0; p < places; p++)
      for (int64_t d = 0; d < dim; d++) {
        out[d] += followed[p] * rows[p * dim + d];
        out[dim + d] += resembled[p] * rows[p * dim + d];
      }
  }
  free(followed);
  return 1;
}

/* The vector that was read `age` positions ago; NULL where fewer were read. */
static const float *read_before(const float *newest, const float *before, int64_t places, int64_t age, int64_t dim) {
  return age == 0 ? newest : age <= places ? before + (places - age) * dim : NULL;
}

/* The vectors that the model `pooled` mixes, and what its gates read, after one vector of each passage (models/pooled.py).
 *
 *   newest [batch, dim]; before [batch, places, dim]: unit vectors; counts [batch]: vectors read
 *   means [batch, count, dim]; total [batch, dim]; recalled [batch, heads, dim]
 *   mixed [batch, count + 1 + heads, dim]; features [batch, 1 + count + (count + 1 + heads) + lags]
 */
EXPORT void nextvec_steps_relate(const float *newest, const float *before, const float *counts, const float *means,
                                 const float *total, const float *recalled, float spread, float least, int64_t batch,
                                 int64_t places, int64_t lags, int64_t count, int64_t heads, int64_t dim,
                                 float *restrict mixed, float *restrict features) {
  for (int64_t b = 0; b < batch; b++, newest += dim, before += places * dim) {
    *features++ = logf(counts[b]) / 2 - 1;
    float *cosines = features + count;
    for (int64_t v = 0; v < count + 1 + heads; v++, mixed += dim) {
      const float *x = v < count ? means + (b * count + v) * dim : v == count ? total + b * dim : recalled + (b * heads + v - count - 1) * dim;
      float size = norm(x, dim), scale = 1 / at_least(size, least);
      for (int64_t d = 0; d < dim; d++) mixed[d] = x[d] * scale;
      if (v < count) features[v] = size * 2 - 1;
      *cosines++ = dot(mixed, newest, dim) * spread - 1;
    }
    for (int64_t l = 0; l < lags; l++) {
      const float *x = read_before(newest, before, places, l, dim);
      *cosines++ = (x ? dot(x, newest, dim) : 0) * spread - 1;
    }
    features = cosines;
  }
}

/* The queries of the model `pooled` and their log weights (models/pooling.py).
 *
 *   mixed [batch, count, dim], weights [batch, count]: of the mixture; newest, before: as above; filled [batch, places]
 *   logits [batch, lags]; amplitudes [batch]; out [batch, lags * dim + lags]
 */
EXPORT void nextvec_steps_pool(const float *mixed, const float *weights, const float *newest, const float *before,
                               const uint8_t *filled, const float *logits, const float *amplitudes, float absent, int64_t batch,
                               int64_t count, int64_t places, int64_t lags, int64_t dim, float *restrict out) {
  for (int64_t b = 0; b < batch; b++, newest += dim, before += places * dim, filled += places, logits += lags) {
    float *mixture = out, *log_weights = out + lags * dim, most = -INFINITY, sum = 0;
    memset(mixture, 0, sizeof(float) * dim);
    for (int64_t v = 0; v < count; v++, mixed += dim)
      for (int64_t d = 0; d < dim; d++) mixture[d] += weights[b * count + v] * mixed[d];
    for (int64_t l = lags - 1; l >= 0; l--) { /* the mixture lies where the first query is written last */
      const float *x = read_before(newest, before, places, l, dim);
      int there = l == 0 || (x && filled[places - l]);
      for (int64_t d = 0; d < dim; d++) out[l * dim + d] = mixture[d] + (x ? amplitudes[b] * x[d] : 0);
      log_weights[l] = there ? logits[l] : -INFINITY;
      most = log_weights[l] > most ? log_weights[l] : most;
    }
    for (int64_t l = 0; l < lags; l++) sum += expf(log_weights[l] - most);
    for (int64_t l = 0; l < lags; l++) log_weights[l] = at_least(log_weights[l] - most - logf(sum), absent);
    out += lags * (dim + 1);
  }
}
