/* One step of the model `pooled` (models/pooled.py): the map of its space, the means, the recall of the working memory, the
 * gates and the queries. A step reads the weights and the state once. It copies no rows: it appends the newest to the log of
 * its passage. The passages of a batch lie apart from each other in memory, each where its session keeps it. */
#include "export.h"
#include "recall.h"
#include "vectors.h"
#include "weights.h"
#include <stdlib.h>

#define HEADS 2

/* The structures of kernels/pooled.py, field by field. */
typedef struct {
  Matrix space;        /* [dim, width]: the map of the vectors read; its codes are NULL where there is none */
  const float *centre; /* [width], subtracted before the map */
  const float *decays, *weights, *lag_logits;           /* [means], [mixed], [lags]; mixed = means + 1 + HEADS */
  const float *inner, *inner_bias, *outer, *outer_bias; /* [hidden, features], [outputs, hidden]; NULL: no gates */
  Heads heads;
  int64_t dim, means, lags, size, hidden; /* size: of the working memory */
  float amplitude, spread, shortest, absent;
} Pooled;

/* The rows that a passage has read, with their write gates and whether their places are filled. The states of the passage
 * share them: no row changes after it was appended. */
typedef struct {
  int64_t used, places; /* rows appended; rows that there is memory for */
  char line[48];
  float rows[]; /* [places, dim]; then the write gates [places], then whether a place is filled [places], one byte each */
} Log;

/* A state besides its rows, which are first : first + held of its log. */
typedef struct {
  int64_t first, held;
  float read; /* number of vectors read */
  char line[44];
  float sums[]; /* means [means, dim], total [dim] */
} State;

typedef struct {
  const State *before;
  State *after;
  Log *log, *moved;       /* of the state before; new memory for its rows, or NULL */
  int64_t places, waits;  /* of the new memory; whether the step needs it */
} Passage;

/* Rows side by side, the newest last. */
typedef struct {
  float *rows, *written;
  uint8_t *filled;
  int64_t count;
} Held;

/* Working memory of a step. */
typedef struct {
  float *recalled, *features, *hidden, *gates, *mixture, *scales;
} Scratch;

static Held held_from(Log *log, int64_t first, int64_t count, int64_t dim) {
  float *written = log->rows + log->places * dim;
  return (Held){log->rows + first * dim, written + first, (uint8_t *)(written + log->places) + first, count};
}

/* Whether there was a place behind the rows of the state, which now is that of this step: an atomic operation, because
 * sessions that share a state may step in several threads. */
static int claim(Log *log, const State *state) {
  int64_t end = state->first + state->held;
  return end < log->places && __atomic_compare_exchange_n(&log->used, &end, end + 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

/* The rows of the state and the place of the newest, in new memory if there is some; `after` gets their numbers. */
static Held rows_of(const Passage *p, int64_t size, int64_t dim) {
  Held held = held_from(p->log, p->before->first, p->before->held, dim);
  p->after->first = p->before->first;
  if (p->moved) {
    p->moved->used = held.count + 1, p->moved->places = p->places, p->after->first = 0;
    Held copy = held_from(p->moved, 0, held.count, dim);
    memcpy(copy.rows, held.rows, sizeof(float) * held.count * dim);
    memcpy(copy.written, held.written, sizeof(float) * held.count);
    memcpy(copy.filled, held.filled, held.count);
    held = copy;
  }
  held.written[held.count] = 0, held.filled[held.count] = 1;
  held.count++;
  p->after->held = held.count < size ? held.count : size;
  p->after->first += held.count - p->after->held;
  return held;
}

static void to_unit(float *x, int64_t dim) {
  float scale = 1 / at_least(norm(x, dim), LEAST_NORM);
  for (int64_t d = 0; d < dim; d++) x[d] *= scale;
}

/* A vector that is mixed, and its length and cosine with the newest one as the gates read them; returns the factor that
 * scales it to unit length. */
static float relate(const Pooled *m, const float *x, const float *newest, float *length, float *cosine) {
  float size = norm(x, m->dim), scale = 1 / at_least(size, m->shortest);
  if (length) *length = size * 2 - 1;
  *cosine = dot(x, newest, m->dim) * scale * m->spread - 1;
  return scale;
}

static void layer(const float *w, const float *bias, const float *x, int64_t rows, int64_t width, float *y) {
  for (int64_t r = 0; r < rows; r++) y[r] = dot(w + r * width, x, width) + bias[r];
}

/* gates [outputs]: added to the weights of the mixture, to those of the lags and to the amplitude; zeros without gates. */
static void set_gates(const Pooled *m, const Scratch *s, int64_t features, int64_t outputs) {
  if (!m->inner) {
    memset(s->gates, 0, sizeof(float) * outputs);
    return;
  }
  layer(m->inner, m->inner_bias, s->features, m->hidden, features, s->hidden);
  for (int64_t i = 0; i < m->hidden; i += W)
    store(s->hidden + i, tangent(load(s->hidden + i, m->hidden - i)), m->hidden - i);
  layer(m->outer, m->outer_bias, s->hidden, outputs, m->hidden, s->gates);
}

static const float *row_before(const Held *held, int64_t lag, int64_t dim) {
  return lag < held->count ? held->rows + (held->count - 1 - lag) * dim : NULL;
}

/* The sums after the newest vector, and what the gates read. */
static void update(const Pooled *m, const Passage *p, const Held *held, const Scratch *s) {
  int64_t dim = m->dim;
  const float *newest = row_before(held, 0, dim), *before = p->before->sums;
  float *lengths = s->features + 1, *cosines = lengths + m->means, *sums = p->after->sums, *scale = s->scales;
  p->after->read = p->before->read + 1;
  s->features[0] = logf(p->after->read) / 2 - 1;
  for (int64_t k = 0; k <= m->means; k++, sums += dim, before += dim) {
    float keep = k < m->means ? m->decays[k] : 1, add = k < m->means ? 1 - keep : 1; /* the last is the total */
    for (int64_t d = 0; d < dim; d++) sums[d] = keep * before[d] + add * newest[d];
    *scale++ = relate(m, sums, newest, k < m->means ? lengths++ : NULL, cosines++);
  }
  recall(newest, held->rows, held->written, held->filled, m->heads, held->count, dim, s->recalled);
  for (int64_t h = 0; h < HEADS; h++) *scale++ = relate(m, s->recalled + h * dim, newest, NULL, cosines++);
  for (int64_t l = 0; l < m->lags; l++) {
    const float *row = row_before(held, l, dim);
    *cosines++ = (row ? dot(row, newest, dim) : 0) * m->spread - 1;
  }
}

static void mix(const Pooled *m, const Passage *p, const Scratch *s) {
  memset(s->mixture, 0, sizeof(float) * m->dim);
  for (int64_t v = 0; v < m->means + 1 + HEADS; v++) {
    const float *x = v <= m->means ? p->after->sums + v * m->dim : s->recalled + (v - m->means - 1) * m->dim;
    float weight = (m->weights[v] + s->gates[v]) * s->scales[v];
    for (int64_t d = 0; d < m->dim; d++) s->mixture[d] += weight * x[d];
  }
}

/* The queries and their log weights (models/pooling.py): y [lags * (dim + 1)]; with fewer than two, one unit vector [dim]. */
static void pool(const Pooled *m, const Held *held, const Scratch *s, float *y) {
  const float *gates = s->gates + m->means + 1 + HEADS;
  float amplitude = m->amplitude + gates[m->lags], *log_weights = y + m->lags * m->dim, most = -INFINITY, sum = 0;
  if (!m->lags) memcpy(y, s->mixture, sizeof(float) * m->dim);
  for (int64_t l = 0; l < m->lags; l++) {
    const float *row = row_before(held, l, m->dim);
    for (int64_t d = 0; d < m->dim; d++) y[l * m->dim + d] = s->mixture[d] + (row ? amplitude * row[d] : 0);
  }
  if (m->lags < 2) {
    to_unit(y, m->dim);
    return;
  }
  for (int64_t l = 0; l < m->lags; l++) {
    int there = l < held->count && held->filled[held->count - 1 - l];
    log_weights[l] = there ? m->lag_logits[l] + gates[l] : -INFINITY;
    most = log_weights[l] > most ? log_weights[l] : most;
  }
  for (int64_t l = 0; l < m->lags; l++) sum += expf(log_weights[l] - most);
  for (int64_t l = 0; l < m->lags; l++) log_weights[l] = at_least(log_weights[l] - most - logf(sum), m->absent);
}

/* x [batch, width]; y [batch, output]. Returns 1; 0 where passages that `wait` need new memory, before anything was written;
 * -1 where memory is lacking. */
EXPORT int32_t nextvec_pooled_step(const Pooled *m, Passage *passages, int64_t batch, const float *x, float *y) {
  int64_t dim = m->dim, mixed = m->means + 1 + HEADS, features = 1 + m->means + mixed + m->lags, outputs = mixed + m->lags + 1;
  int64_t width = m->space.codes ? m->space.width : 0, output = m->lags < 2 ? dim : m->lags * (dim + 1), waiting = 0;
  for (Passage *p = passages; p < passages + batch; p++)
    if (p->waits && !p->moved) waiting += p->waits = !claim(p->log, p->before);
  if (waiting) return 0;
  int64_t own = (HEADS + 1) * dim + features + m->hidden + outputs + mixed;
  float *room = malloc(sizeof(float) * (own + (width ? batch * (width + dim) : 0)));
  if (!room) return -1;
  Scratch s = {.recalled = room, .mixture = room + HEADS * dim, .features = room + (HEADS + 1) * dim};
  s.hidden = s.features + features, s.gates = s.hidden + m->hidden, s.scales = s.gates + outputs;
  int done = 1;
  if (width) {
    float *centred = room + own, *mapped = centred + batch * width;
    for (int64_t b = 0; b < batch; b++)
      for (int64_t d = 0; d < width; d++) centred[b * width + d] = x[b * width + d] - m->centre[d];
    done = weights_product(&m->space, (Vectors){centred, width, batch}, NULL, mapped);
    x = mapped;
  }
  for (int64_t b = 0; done && b < batch; b++, x += dim, y += output) {
    Held held = rows_of(passages + b, m->size, dim);
    float *newest = held.rows + (held.count - 1) * dim;
    memcpy(newest, x, sizeof(float) * dim);
    to_unit(newest, dim);
    update(m, passages + b, &held, &s);
    set_gates(m, &s, features, outputs);
    mix(m, passages + b, &s);
    pool(m, &held, &s, y);
  }
  free(room);
  return done ? 1 : -1;
}
