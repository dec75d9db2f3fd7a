// Free-running inference of one step of flow: all frames in one call, on one team of threads.
//
// A team's members own output columns of every matrix, so each weight is read once a frame, by one core, in the order
// in which it lies, for all items of the batch. Letters: B items, T frames, N tokens, D mel channels, H hidden, A
// attention, V value channels, L decoder LSTM layers.
#include <cmath>

#include "vector.hpp"

using namespace flowtron;

namespace {

constexpr int64_t BLOCK = 128;    // rows of a panel taken at a time: 16 KB of floats, in the first cache
constexpr int64_t GROUP = 32;     // rows that share a scale in int8; step_weights.py has the same
constexpr int64_t APART = 16;     // floats between items: rows a power of two apart would share a place in the cache

enum Kind : int64_t { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2 };

}  // namespace

extern "C" {

// (K, columns) packed in panels (K, WIDTH) of one kind of number; factors (groups of rows, WIDTH) of a panel or null.
struct Matrix {
    const void* panels;
    const float* scale;
    int64_t K, columns, kind;
};

// Columns are grouped by eight units, four gates each. `context` has no panels but in the first decoder layer.
struct Layer {
    Matrix below, context, recurrent;
    const float* bias;
};

// Tokens that a frame may attend to: from `back` before an item's position to `ahead` after it, `direction` being 1 for
// a text read from its start and -1 from its end, 0 for no window. The position follows the strongest token, never
// back, and moves on after `patience` frames; the gate counts once the last token is in the window, and an item ends
// after `tail` frames at it, 0 for never.
struct Window {
    int64_t direction, back, ahead, patience, tail;
};

struct Step {
    int64_t B, T, N, D, H, A, V, L, threads;
    double temperature, gate_threshold;  // NaN: never stop
    Window window;
    Layer attention_lstm;
    const Layer* lstm;  // (L)
    Matrix query, dense0, dense1, output;
    const float *dense0_bias, *dense1_bias, *output_bias;
    const float *score, *keys, *values;  // (A), (B, N, A): exp(2 key), (B, N, V)
    const float *gate, *gate_bias;    // (H + V), (1), or null
    const uint8_t* mask;              // (B, N), true at tokens
    const float *prior, *given;       // (B, T, N) or null: multiplied into the attention; in place of it
    const float* z;                   // (B, T, D)
    float *x, *attention, *gate_logits;  // (B, T, D), (B, T, N), (B, T): out, zero from the start
    int64_t* lengths;                    // (B): in, the most frames; out, frames after stopping
};

}

namespace {

// A member's share of one product: sums (count, B, WIDTH) of a panel and those after it, one or, of a single item, two.
class Multiplier {
   public:
    explicit Multiplier(int64_t B) : B_(B), decoded_(BLOCK * WIDTH) {}

    void add(const Matrix& matrix, int64_t panel, int64_t count, const float* x, int64_t stride, float* sums) {
        const int64_t at = panel * matrix.K * WIDTH;
        const int64_t groups = (matrix.K + GROUP - 1) / GROUP;
        const float* scale = matrix.scale ? matrix.scale + panel * groups * WIDTH : nullptr;
        if (matrix.kind == FLOAT32) add_panels((const float*)matrix.panels + at, count, matrix.K, scale, x, stride, sums);
        if (matrix.kind == BFLOAT16)
            add_panels((const uint16_t*)matrix.panels + at, count, matrix.K, scale, x, stride, sums);
        if (matrix.kind == INT8) add_panels((const int8_t*)matrix.panels + at, count, matrix.K, scale, x, stride, sums);
    }

    // How many panels of the `left` ones to take at once.
    int64_t count(int64_t left) const { return B_ == 1 && left > 1 ? 2 : 1; }

   private:
    // Rows are taken BLOCK at a time for every batch, so that an item's sums are the same alone and among others. Where
    // the registers hold few items, narrow weights are decoded once for all rather than once for each tile of items.
    template <typename Weight>
    void add_panels(const Weight* panel, int64_t count, int64_t K, const float* scale, const float* x, int64_t stride,
                    float* sums) {
        const bool decodes = sizeof(Weight) < sizeof(float) && ROWS < 8 && B_ > ROWS;
        const int64_t most = scale ? GROUP : BLOCK;
        for (int64_t k = 0; k < K; k += most) {
            const int64_t rows = std::min(most, K - k);
            const Weight* block = panel + k * WIDTH;
            const float* factors = scale ? scale + k / GROUP * WIDTH : nullptr;
            if (count == 2) {
                multiply_pair(x + k, block, K * WIDTH, rows, factors, (K + GROUP - 1) / GROUP * WIDTH, sums);
                continue;
            }
            if (!decodes) {
                multiply_few(x + k, stride, block, B_, rows, factors, sums);
                continue;
            }
            for (int64_t r = 0; r < rows; ++r)
                for (int j = 0; j < PARTS; ++j)
                    *(WideVec*)&decoded_[r * WIDTH + j * WIDE] = decode(block + r * WIDTH, j);
            multiply_few(x + k, stride, decoded_.data(), B_, rows, factors, sums, block + rows * WIDTH,
                         WIDTH * sizeof(Weight));
        }
    }

    const int64_t B_;
    std::vector<float> decoded_;
};

class Runner {
   public:
    explicit Runner(const Step& s)
        : s(s),
          barrier_((int)s.threads),
          hidden_((s.L + 1) * 2 * s.B * (s.H + APART)),
          cell_((s.L + 1) * s.B * s.H),
          asked_(s.B * s.A),
          energy_(s.B * s.N),
          context_(s.B * (s.V + APART)),
          first_(s.B * (s.H + WIDTH + APART)),
          second_(s.B * (s.H + WIDTH + APART)),
          coupling_(s.B * (2 * s.D + WIDTH)) {}

    void run() {
        run_team((int)s.threads, [this](int member) { work(member); });
    }

   private:
    // Hidden state of LSTM `layer`, 0 being the attention's, after frame t. Frames alternate between two buffers: a
    // member writes its units while others still read the last frame's.
    float* hidden(int64_t layer, int64_t t) { return &hidden_[(layer * 2 + (t & 1)) * s.B * (s.H + APART)]; }

    void run_layer(int64_t index, int64_t t, const Layer& layer, const float* below, int64_t stride, int member,
                   Multiplier& multiplier, std::vector<float>& sums) {
        const int64_t B = s.B, H = s.H;
        const Share share(H / LANES, member, (int)s.threads);
        for (int64_t first = share.first, count; first < share.last; first += count) {
            count = multiplier.count(share.last - first);
            for (int64_t row = 0; row < count * B; ++row)
                std::memcpy(&sums[row * WIDTH], layer.bias + (first + row / B) * WIDTH, WIDTH * sizeof(float));
            multiplier.add(layer.below, first, count, below, stride, sums.data());
            if (layer.context.panels)
                multiplier.add(layer.context, first, count, context_.data(), s.V + APART, sums.data());
            multiplier.add(layer.recurrent, first, count, hidden(index, t - 1), H + APART, sums.data());
            for (int64_t each = 0; each < count * B; ++each) {
                const int64_t group = first + each / B, b = each % B;
                const float* row = &sums[each * WIDTH];
                const Vec i = sigmoid(load(row)), f = sigmoid(load(row + LANES));
                const Vec g = tanh(load(row + 2 * LANES)), o = sigmoid(load(row + 3 * LANES));
                float* c = &cell_[(index * B + b) * H + group * LANES];
                const Vec next = f * load(c) + i * g;
                store(c, next);
                store(hidden(index, t) + b * (H + APART) + group * LANES, o * tanh(next));
            }
        }
        barrier_.wait();
    }

    enum Activation { NONE, TANH };

    // out (B, padded columns) = activation(x · matrix + bias).
    void run_dense(const Matrix& matrix, const float* bias, const float* x, int64_t stride, float* out,
                   int64_t out_stride, Activation activation, int member, Multiplier& multiplier,
                   std::vector<float>& sums) {
        const Share share((matrix.columns + WIDTH - 1) / WIDTH, member, (int)s.threads);
        for (int64_t first = share.first, count; first < share.last; first += count) {
            count = multiplier.count(share.last - first);
            for (int64_t row = 0; row < count * s.B; ++row) {
                const float* start = bias ? bias + (first + row / s.B) * WIDTH : nullptr;
                for (int j = 0; j < WIDTH; ++j) sums[row * WIDTH + j] = start ? start[j] : 0.f;
            }
            multiplier.add(matrix, first, count, x, stride, sums.data());
            for (int64_t row = 0; row < count * s.B; ++row) {
                const int64_t column = (first + row / s.B) * WIDTH, b = row % s.B;
                const int64_t columns = std::min<int64_t>(WIDTH, out_stride - column);
                for (int64_t j = 0; j < columns; j += LANES) {
                    const Vec y = load(&sums[row * WIDTH + j]);
                    store(out + b * out_stride + column + j, activation == TANH ? tanh(y) : y);
                }
            }
        }
        barrier_.wait();
    }

    void score_tokens(int member) {
        float total = 0;
        for (int64_t a = 0; a < s.A; ++a) total += s.score[a];
        const Share share(s.B * s.N, member, (int)s.threads);
        for (int64_t row = share.first; row < share.last; ++row) {
            if (!s.mask[row]) continue;
            const float *q = &asked_[row / s.N * s.A], *k = s.keys + row * s.A;
            energy_[row] = total - 2 * weighted_reciprocals(q, k, s.score, s.A);
        }
        barrier_.wait();
    }

    // Where an item is in its text, in tokens from where its reading starts, and since how many frames.
    struct Place {
        int64_t tokens, position, still;
    };

    bool allowed(const Place& place, int64_t n) const {
        if (!s.window.direction) return true;
        const int64_t ahead = (s.window.direction > 0 ? n : place.tokens - 1 - n) - place.position;
        return ahead >= -s.window.back && ahead <= s.window.ahead;
    }

    void move(Place& place, const float* attention) const {
        const int64_t n = std::max_element(attention, attention + place.tokens) - attention;
        const int64_t peak = s.window.direction > 0 ? n : place.tokens - 1 - n;
        ++place.still;
        if (peak > place.position) place = {place.tokens, peak, 0};
        else if (place.still >= s.window.patience && place.position < place.tokens - 1)
            place = {place.tokens, place.position + 1, 0};
    }

    // Every member computes all weights, in a buffer of its own: cheaper than meeting once more.
    void attend(int64_t t, std::vector<Place>& places, float* attention) {
        for (int64_t b = 0; b < s.B; ++b) {
            float* out = attention + b * s.N;
            if (s.given) {
                std::memcpy(out, s.given + (b * s.T + t) * s.N, s.N * sizeof(float));
                continue;
            }
            Place& place = places[b];
            const float* e = &energy_[b * s.N];
            const uint8_t* mask = s.mask + b * s.N;
            float highest = -INFINITY;
            for (int64_t n = 0; n < s.N; ++n)
                if (mask[n] && allowed(place, n)) highest = std::max(highest, e[n]);
            double total = 0;
            for (int64_t n = 0; n < s.N; ++n) {
                const bool takes_part = mask[n] && allowed(place, n);
                out[n] = takes_part ? std::exp((e[n] - highest) / (float)s.temperature) : 0.f;
                total += out[n];
            }
            if (s.prior) {
                const float* prior = s.prior + (b * s.T + t) * s.N;
                double sum = 0;
                for (int64_t n = 0; n < s.N; ++n)
                    if (mask[n] && allowed(place, n)) sum += (out[n] / total + 1e-20) * (prior[n] + 1e-20);
                for (int64_t n = 0; n < s.N; ++n) {
                    const bool takes_part = mask[n] && allowed(place, n);
                    out[n] = takes_part ? (float)((out[n] / total + 1e-20) * (prior[n] + 1e-20) / sum) : 0.f;
                }
            } else {
                for (int64_t n = 0; n < s.N; ++n) out[n] = (float)(out[n] / total);
            }
            if (s.window.direction) move(place, out);
        }
    }

    static float dot(const float* a, const float* b, int64_t size) {
        Vec total = {};
        int64_t i = 0;
        for (; i + LANES <= size; i += LANES) total += load(a + i) * load(b + i);
        float rest = 0;
        for (; i < size; ++i) rest += a[i] * b[i];
        return sum(total) + rest;
    }

    // Shorten the items whose gate fires at frame t, or that have said their last token.
    void stop(int64_t t, const std::vector<Place>& places, std::vector<int64_t>& lengths, bool writes) {
        for (int64_t b = 0; b < s.B; ++b) {
            bool stops = s.window.tail && s.window.direction && places[b].position == places[b].tokens - 1 &&
                         places[b].still >= s.window.tail;
            if (s.gate) {
                const float logit = dot(s.gate, hidden(0, t) + b * (s.H + APART), s.H) +
                                    dot(s.gate + s.H, &context_[b * (s.V + APART)], s.V) + s.gate_bias[0];
                if (writes && t < lengths[b]) s.gate_logits[b * s.T + t] = logit;
                const bool may_end = !s.window.direction || places[b].position + s.window.ahead >= places[b].tokens - 1;
                stops = stops || (may_end && 1 / (1 + std::exp(-(double)logit)) > s.gate_threshold);
            }
            if (stops && lengths[b] > t) lengths[b] = t + 1;
        }
    }

    void work(int member) {
        const int64_t B = s.B, H = s.H, D = s.D;
        const bool first = member == 0;
        Multiplier multiplier(B);
        std::vector<float> sums(std::max<int64_t>(B, 2) * WIDTH), previous(B * D), attention(B * s.N);
        std::vector<int64_t> lengths(s.lengths, s.lengths + B);
        std::vector<Place> places(B, Place{});
        for (int64_t b = 0; b < B; ++b) places[b].tokens = std::count(s.mask + b * s.N, s.mask + (b + 1) * s.N, 1);
        barrier_.wait();
        const int64_t dense = (H + WIDTH - 1) / WIDTH * WIDTH + APART, coupling = (2 * D + WIDTH - 1) / WIDTH * WIDTH;
        for (int64_t t = 0; t < s.T; ++t) {
            if (*std::max_element(lengths.begin(), lengths.end()) <= t) break;
            run_layer(0, t, s.attention_lstm, previous.data(), D, member, multiplier, sums);
            const float* asking = hidden(0, t);
            if (!s.given) {
                run_dense(s.query, nullptr, asking, H + APART, asked_.data(), s.A, NONE, member, multiplier, sums);
                exponential(member);
                score_tokens(member);
            }
            attend(t, places, attention.data());
            attend_values(attention.data(), member);
            barrier_.wait();
            stop(t, places, lengths, first);
            for (int64_t layer = 0; layer < s.L; ++layer)
                run_layer(layer + 1, t, s.lstm[layer], hidden(layer, t), H + APART, member, multiplier, sums);
            run_dense(s.dense0, s.dense0_bias, hidden(s.L, t), H + APART, first_.data(), dense, TANH, member, multiplier,
                      sums);
            run_dense(s.dense1, s.dense1_bias, first_.data(), dense, second_.data(), dense, TANH, member, multiplier,
                      sums);
            run_dense(s.output, s.output_bias, second_.data(), dense, coupling_.data(), coupling, NONE, member,
                      multiplier, sums);
            for (int64_t b = 0; b < B; ++b) {
                const float *log_scale = &coupling_[b * coupling], *shift = log_scale + D;
                const float* z = s.z + (b * s.T + t) * D;
                for (int64_t d = 0; d < D; ++d) previous[b * D + d] = (z[d] - shift[d]) * std::exp(-log_scale[d]);
                if (!first || t >= lengths[b]) continue;
                std::memcpy(s.x + (b * s.T + t) * D, &previous[b * D], D * sizeof(float));
                std::memcpy(s.attention + (b * s.T + t) * s.N, &attention[b * s.N], s.N * sizeof(float));
            }
        }
        barrier_.wait();
        if (first) std::copy(lengths.begin(), lengths.end(), s.lengths);
    }

    // exp(2 query) in place; see attention.cpp.
    void exponential(int member) {
        const Share share(s.B * s.A / LANES, member, (int)s.threads);
        for (int64_t i = share.first * LANES; i < share.last * LANES; i += LANES)
            store(&asked_[i], exp(2 * larger(smaller(load(&asked_[i]), splat(20)), splat(-20))));
        barrier_.wait();
    }

    void attend_values(const float* attention, int member) {
        const Share share(s.V, member, (int)s.threads);
        for (int64_t b = 0; b < s.B; ++b) {
            float* out = &context_[b * (s.V + APART)];
            std::fill(out + share.first, out + share.last, 0.f);
            for (int64_t n = 0; n < s.N; ++n) {
                const float weight = attention[b * s.N + n];
                if (weight < 1e-12f) continue;
                const float* row = s.values + (b * s.N + n) * s.V;
                for (int64_t v = share.first; v < share.last; ++v) out[v] += weight * row[v];
            }
        }
    }

    const Step& s;
    Barrier barrier_;
    std::vector<float> hidden_, cell_, asked_, energy_, context_, first_, second_, coupling_;
};

}  // namespace

extern "C" void run_step(const Step* step) { Runner(*step).run(); }
