/* A gated recurrent unit (Cho et al. 2014, with torch's two biases) and long short-term memory (Hochreiter and
 * Schmidhuber 1997) over whole passages: two products per position, then the gates. */
#include "export.h"
#include "vectors.h"
#include "weights.h"
#include <stdlib.h>
#include <string.h>

typedef struct {
  Matrix input, hidden; /* [gates * size, width], [gates * size, size] */
  const float *input_bias, *hidden_bias;
} Cell;

static void gru_gates(const float *in, const float *hidden, const float *before, int64_t size, float *out) {
  for (int64_t i = 0, left = size; left > 0; i += W, left -= W) {
    floats reset = sigmoid(load(in + i, left) + load(hidden + i, left));
    floats update = sigmoid(load(in + size + i, left) + load(hidden + size + i, left));
    floats fresh = tangent(load(in + 2 * size + i, left) + reset * load(hidden + 2 * size + i, left));
    store(out + i, fresh + update * (load(before + i, left) - fresh), left);
  }
}

static void lstm_gates(const float *in, const float *hidden, float *cell, int64_t size, float *out) {
  for (int64_t i = 0, left = size; left > 0; i += W, left -= W) {
    floats enter = sigmoid(load(in + i, left) + load(hidden + i, left));
    floats keep = sigmoid(load(in + size + i, left) + load(hidden + size + i, left));
    floats fresh = tangent(load(in + 2 * size + i, left) + load(hidden + 2 * size + i, left));
    floats show = sigmoid(load(in + 3 * size + i, left) + load(hidden + 3 * size + i, left));
    floats kept = keep * load(cell + i, left) + enter * fresh;
    store(cell + i, kept, left);
    store(out + i, show * tangent(kept), left);
  }
}

/* One layer over a passage: an LSTM where its cell state `kept` [batch, size] is given, which is updated in place; else a GRU.
 *
 *   x [batch, length, width], or NULL where projected [batch, length, gates * size], x W_inputT + b_input, is given
 *   before, after [batch, size]
 *   out [batch, length, size]
 */
EXPORT int32_t nextvec_weights_run(const Cell *cell, const float *x, const float *projected, int64_t batch, int64_t length,
                                   const float *before, float *kept, float *after, float *out) {
  int64_t size = cell->hidden.width, gates = cell->hidden.rows, positions = batch * length;
  float *room = malloc(sizeof(float) * gates * (batch + (projected ? 0 : positions)));
  int done = room != NULL;
  if (done && !projected) {
    projected = room + batch * gates;
    done = weights_product(&cell->input, (Vectors){x, cell->input.width, positions}, cell->input_bias, room + batch * gates);
  }
  Vectors last = {before, size, batch};
  for (int64_t t = 0; done && t < length; t++) {
    done = weights_product(&cell->hidden, last, cell->hidden_bias, room);
    for (int64_t b = 0; done && b < batch; b++) {
      const float *in = projected + (b * length + t) * gates, *hidden = room + b * gates;
      float *out_b = out + (b * length + t) * size;
      if (kept)
        lstm_gates(in, hidden, kept + b * size, size, out_b);
      else
        gru_gates(in, hidden, last.at + b * last.stride, size, out_b);
    }
    last = (Vectors){out + t * size, length * size, batch};
  }
  for (int64_t b = 0; b < batch; b++) memcpy(after + b * size, last.at + b * last.stride, sizeof(float) * size);
  free(room);
  return done;
}
