/* BERT for a batch of texts without padding, in one call: embeddings, layers, mean over the tokens, unit length (Devlin et al.
 * 2019; Reimers and Gurevych 2019). The products with weights are those of rounded.c; everything else is float32. Nothing
 * that a text's vector depends on comes from the other texts of the batch, so its bits do not depend on them. */
#if defined(__AVX2__)
#include "ordered.h"
#include "export.h"
#include "rounded.h"
#include <stdlib.h>

#define QUERIES (W == 16 ? 8 : 4)
#define COLUMNS 2 /* registers */

typedef struct {
  const float *scale, *bias;
} Norm;

typedef struct {
  Matrix qkv, out, wide, back; /* the queries of qkv are scaled by 1 / sqrt(dim / heads) */
  const float *qkv_bias, *out_bias, *wide_bias, *back_bias;
  Norm attended, finished;
} Layer;

typedef struct {
  const float *words, *positions; /* [words, dim], [most tokens, dim] */
  const Layer *layers;
  Norm embedded;
  int64_t depth, dim, heads;
  float epsilon;
} Bert;

typedef struct {
  float *x, *y, *wide, *queries, *keys, *values, *scores;
  Rounded rounded;
} Room;

static int64_t up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

/* y [QUERIES, COLUMNS registers] = a [QUERIES, depth] b [depth, ...]. */
INLINE void tile(const float *a, int64_t a_stride, const float *b, int64_t b_stride, int64_t depth, float *y, int64_t y_stride) {
  floats sums[QUERIES][COLUMNS] = {0};
  for (int64_t k = 0; k < depth; k++, b += b_stride) {
    floats row[COLUMNS];
    UNROLL for (int c = 0; c < COLUMNS; c++) row[c] = *(const loose_floats *)(b + c * W);
    UNROLL for (int q = 0; q < QUERIES; q++)
      UNROLL for (int c = 0; c < COLUMNS; c++) sums[q][c] += row[c] * a[q * a_stride + k];
  }
  UNROLL for (int q = 0; q < QUERIES; q++)
    UNROLL for (int c = 0; c < COLUMNS; c++) *(loose_floats *)(y + q * y_stride + c * W) = sums[q][c];
}

static void layer_norm(const float *x, int64_t width, Norm norm, float epsilon, float *y) {
  float mean = total(x, width) / (float)width;
  for (int64_t i = 0; i < width; i++) y[i] = x[i] - mean;
  float inverse = 1 / sqrtf(total_of_squares(y, width) / (float)width + epsilon);
  for (int64_t i = 0; i < width; i++) y[i] = y[i] * inverse * norm.scale[i] + norm.bias[i];
}

/* By hand, because compilers do not reorder comparisons as they reorder sums. */
static float largest(const float *x, int64_t n) {
  floats most = all(-INFINITY);
  int64_t i = 0;
  for (; i + W <= n; i += W) most = larger(most, load(x + i, W));
  float found = largest_lane(most);
  for (; i < n; i++) found = x[i] > found ? x[i] : found;
  return found;
}

/* Logits to weights; returns their sum, by which they are to be divided. */
static float weights_of(float *logits, int64_t n) {
  float most = largest(logits, n);
  for (int64_t i = 0; i < n; i += W) store(logits + i, exponential(load(logits + i, n - i) - most), n - i);
  return total(logits, n);
}

/* One head of one text: qkv [length, 3 dim], from its first number of the head; out [length, dim]. */
static void attend_head(const float *qkv, int64_t length, int64_t dim, int64_t key, const Room *room, float *out) {
  int64_t places = up(length, COLUMNS * W), columns = up(key, COLUMNS * W);
  for (int64_t t = 0; t < length; t++) {
    const float *from = qkv + t * 3 * dim;
    for (int64_t i = 0; i < key; i++) {
      room->queries[t * key + i] = from[i];
      room->keys[i * places + t] = from[dim + i];
      room->values[t * columns + i] = from[2 * dim + i];
    }
  }
  for (int64_t t = 0; t < length; t += QUERIES) {
    int64_t n = length - t < QUERIES ? length - t : QUERIES;
    float mixed[QUERIES * columns];
    for (int64_t p = 0; p < places; p += COLUMNS * W)
      tile(room->queries + t * key, key, room->keys + p, places, key, room->scores + p, places);
    float sums[QUERIES];
    for (int64_t q = 0; q < n; q++) sums[q] = weights_of(room->scores + q * places, length);
    for (int64_t c = 0; c < columns; c += COLUMNS * W)
      tile(room->scores, places, room->values + c, columns, length, mixed + c, columns);
    for (int64_t q = 0; q < n; q++)
      for (int64_t i = 0; i < key; i++) out[(t + q) * dim + i] = mixed[q * columns + i] / sums[q];
  }
}

static void attend(const Bert *bert, const float *qkv, const int64_t *lengths, int64_t texts, const Room *room, float *out) {
  int64_t key = bert->dim / bert->heads;
  for (int64_t n = 0; n < texts; qkv += lengths[n] * 3 * bert->dim, out += lengths[n] * bert->dim, n++)
    for (int64_t head = 0; head < bert->heads; head++)
      attend_head(qkv + head * key, lengths[n], bert->dim, key, room, out + head * key);
}

/* Rounds x [count, width]; x becomes what is rounded. */
static void round_all(float *x, int64_t count, int64_t width, const Room *room) {
  for (int64_t n = 0; n < count; n++) rounded_from(x + n * width, width, &room->rounded, n);
}

/* x = norm(x + y); y = x, rounded. */
static void add_and_norm(const Bert *bert, Norm norm, int64_t count, const Room *room) {
  int64_t dim = bert->dim;
  for (int64_t n = 0; n < count; n++) {
    float *x = room->x + n * dim, *y = room->y + n * dim;
    for (int64_t i = 0; i < dim; i++) y[i] += x[i];
    layer_norm(y, dim, norm, bert->epsilon, x);
    memcpy(y, x, sizeof(float) * dim);
    rounded_from(y, dim, &room->rounded, n);
  }
}

static void run_layer(const Bert *bert, const Layer *layer, const int64_t *lengths, int64_t texts, int64_t count,
                      const Room *room) {
  rounded_product(&layer->qkv, &room->rounded, count, layer->qkv_bias, room->wide);
  attend(bert, room->wide, lengths, texts, room, room->y);
  round_all(room->y, count, bert->dim, room);
  rounded_product(&layer->out, &room->rounded, count, layer->out_bias, room->y);
  add_and_norm(bert, layer->attended, count, room);
  int64_t wide = layer->wide.rows;
  rounded_product(&layer->wide, &room->rounded, count, layer->wide_bias, room->wide);
  for (int64_t n = 0; n < count; n++) {
    gelu(room->wide + n * wide, wide, room->wide + n * wide);
    rounded_from(room->wide + n * wide, wide, &room->rounded, n);
  }
  rounded_product(&layer->back, &room->rounded, count, layer->back_bias, room->y);
  add_and_norm(bert, layer->finished, count, room);
}

static void embed(const Bert *bert, const int32_t *ids, const int64_t *lengths, int64_t texts, const Room *room) {
  int64_t dim = bert->dim, at = 0;
  for (int64_t n = 0; n < texts; n++)
    for (int64_t t = 0; t < lengths[n]; t++, at++) {
      const float *word = bert->words + ids[at] * dim, *position = bert->positions + t * dim;
      float *x = room->x + at * dim, *y = room->y + at * dim;
      for (int64_t i = 0; i < dim; i++) y[i] = word[i] + position[i];
      layer_norm(y, dim, bert->embedded, bert->epsilon, x);
      memcpy(y, x, sizeof(float) * dim);
      rounded_from(y, dim, &room->rounded, at);
    }
}

static void pool(const Bert *bert, const float *x, const int64_t *lengths, int64_t texts, float *rows) {
  int64_t dim = bert->dim;
  for (int64_t n = 0; n < texts; n++, rows += dim) {
    memset(rows, 0, sizeof(float) * dim);
    for (int64_t t = 0; t < lengths[n]; t++, x += dim)
      for (int64_t i = 0; i < dim; i++) rows[i] += x[i];
    float size = at_least(sqrtf(total_of_squares(rows, dim)), LEAST_NORM);
    for (int64_t i = 0; i < dim; i++) rows[i] /= size;
  }
}

#define PLACE(array, size) array = (void *)(base + at), at += up((size) * (int64_t)sizeof *(array), 64)

/* Gives each array of the room its place behind `base`; returns the number of bytes. */
static int64_t lay_out(const Bert *bert, int64_t count, int64_t longest, uintptr_t base, Room *room) {
  int64_t dim = bert->dim, key = dim / bert->heads, widest = 3 * dim, at = 0;
  int64_t places = up(longest, COLUMNS * W), columns = up(key, COLUMNS * W);
  for (int64_t n = 0; n < bert->depth; n++) widest = bert->layers[n].wide.rows > widest ? bert->layers[n].wide.rows : widest;
  PLACE(room->x, count * dim);
  PLACE(room->y, count * dim);
  PLACE(room->wide, count * widest);
  PLACE(room->queries, up(longest, QUERIES) * key);
  PLACE(room->keys, key * places);
  PLACE(room->values, longest * columns);
  PLACE(room->scores, QUERIES * places);
  PLACE(room->rounded.codes, count * widest);
  PLACE(room->rounded.scales, count);
  PLACE(room->rounded.offsets, count);
  return at;
}

/* rows [texts, dim] of ids [the sum of lengths]. Returns 0 where memory is lacking. */
EXPORT int32_t nextvec_bert_encode(const Bert *bert, const int32_t *ids, const int64_t *lengths, int64_t texts, float *rows) {
  int64_t count = 0, longest = 0;
  for (int64_t n = 0; n < texts; n++) {
    count += lengths[n];
    longest = lengths[n] > longest ? lengths[n] : longest;
  }
  Room room;
  char *memory = calloc(lay_out(bert, count, longest, 0, &room) + 64, 1);
  if (!memory) return 0;
  lay_out(bert, count, longest, ((uintptr_t)memory + 63) / 64 * 64, &room);
  embed(bert, ids, lengths, texts, &room);
  for (int64_t n = 0; n < bert->depth; n++) run_layer(bert, bert->layers + n, lengths, texts, count, &room);
  pool(bert, room.x, lengths, texts, rows);
  free(memory);
  return 1;
}
#endif
