// One LSTM layer over a sequence, forward and backward through time. The products with the inputs and the gradients
// of the weights are whole-sequence matrix products and the caller's; here is what has to go frame by frame.
//
// Sequences are of floats or of bfloat16, which the recurrent products then are too; their sums, the running cell and
// its gradient are floats always. Layout: rows are (B, T), so frame t of item b is row b T + t. Gates are i, f, g, o as
// in torch.
#include "vector.hpp"

using namespace flowtron;

namespace {

constexpr int64_t APART = 32;  // numbers between items: rows a power of two apart would share a place in the cache

inline float rounded(float x, float) { return x; }
inline Half rounded(float x, Half) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return x == x ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0;
}

// Recurrent weights (K, columns), read by panels of WIDTH columns.
template <typename Number>
struct Weights;

template <>
struct Weights<float> {
    Weights(int64_t K, int64_t panels) : K(K), numbers(panels * K * WIDTH) {}
    void set(int64_t panel, int64_t k, int column, float x) { numbers[(panel * K + k) * WIDTH + column] = x; }
    void multiply(const float* x, int64_t stride, int64_t panel, int64_t B, float* sums) const {
        multiply_few(x, stride, &numbers[panel * K * WIDTH], B, K, nullptr, sums);
    }
    int64_t K;
    std::vector<float> numbers;
};

template <>
struct Weights<Half> {
    Weights(int64_t K, int64_t panels) : K(K), pairs(panels * K / 2 * WIDTH) {}
    void set(int64_t panel, int64_t k, int column, float x) {
        pairs[(panel * K + k) / 2 * WIDTH + column] |= (uint32_t)rounded(x, Half()) << (k % 2 * 16);
    }
    void multiply(const Half* x, int64_t stride, int64_t panel, int64_t B, float* sums) const {
        multiply_few(x, stride, &pairs[panel * K / 2 * WIDTH], B, K / 2, nullptr, sums);
    }
    int64_t K;
    std::vector<uint32_t> pairs;
};

template <typename Number>
void forward(Number* gates, const float* bias, const float* weight, const float* h0, const float* c0, Number* hidden,
             Number* cell, float* last_h, float* last_c, int64_t B, int64_t T, int64_t H, int threads) {
    const int64_t groups = H / LANES, stride = H + APART;
    // A panel for every eight units, their four gates side by side.
    Weights<Number> packed(H, groups);
    parallel(groups, threads, [&](int64_t group) {
        for (int column = 0; column < WIDTH; ++column) {
            const float* row = weight + (column / LANES * H + group * LANES + column % LANES) * H;
            for (int64_t k = 0; k < H; ++k) packed.set(group, k, column, row[k]);
        }
    });
    // The last frame's and this one's hidden states: a member writes its units while others still read all.
    std::vector<Number> states(2 * B * stride);
    for (int64_t b = 0; b < B; ++b) {
        std::memcpy(last_c + b * H, c0 + b * H, H * sizeof(float));
        for (int64_t k = 0; k < H; ++k) states[b * stride + k] = rounded(h0[b * H + k], Number());
    }
    threads = (int)std::min<int64_t>(threads, groups);
    Barrier barrier(threads);
    run_team(threads, [&](int member) {
        const Share share(groups, member, threads);
        std::vector<float> sums(B * WIDTH);
        for (int64_t t = 0; t < T; ++t) {
            const Number* before = &states[t % 2 * B * stride];
            Number* now = &states[(t + 1) % 2 * B * stride];
            for (int64_t group = share.first; group < share.last; ++group) {
                const int64_t unit = group * LANES;
                for (int gate = 0; gate < 4; ++gate) {
                    const int64_t at = gate * H + unit;
                    const Vec offset = bias ? load(bias + at) : Vec{};
                    for (int64_t b = 0; b < B; ++b)
                        store(&sums[b * WIDTH + gate * LANES], load(gates + (b * T + t) * 4 * H + at) + offset);
                }
                packed.multiply(before, stride, group, B, sums.data());
                for (int64_t b = 0; b < B; ++b) {
                    Number* row = gates + (b * T + t) * 4 * H + unit;
                    // The next frame's: a processor does not look ahead from one page of memory to another.
                    for (int gate = 0; gate < 4; ++gate) __builtin_prefetch(row + (4 + gate) * H);
                    __builtin_prefetch(cell + (b * T + t + 1) * H + unit, 1);
                    __builtin_prefetch(hidden + (b * T + t + 1) * H + unit, 1);
                    const float* sum = &sums[b * WIDTH];
                    const Vec i = sigmoid(load(sum)), f = sigmoid(load(sum + LANES));
                    const Vec g = tanh(load(sum + 2 * LANES)), o = sigmoid(load(sum + 3 * LANES));
                    const Vec next = f * load(last_c + b * H + unit) + i * g, h = o * tanh(next);
                    store(row, i);
                    store(row + H, f);
                    store(row + 2 * H, g);
                    store(row + 3 * H, o);
                    store(last_c + b * H + unit, next);
                    store(cell + (b * T + t) * H + unit, next);
                    store(hidden + (b * T + t) * H + unit, h);
                    store(now + b * stride + unit, h);
                    if (t == T - 1) store(last_h + b * H + unit, h);
                }
            }
            barrier.wait();
        }
    });
}

template <typename Number>
void backward(const Number* gates, const Number* cell, const float* c0, const float* weight, const Number* grad_hidden,
              float* grad_h, float* grad_c, Number* grad_gates, float* grad_bias, int64_t B, int64_t T, int64_t H,
              int threads) {
    const int64_t panels = (H + WIDTH - 1) / WIDTH, stride = 4 * H + APART;
    Weights<Number> packed(4 * H, panels);
    parallel(panels, threads, [&](int64_t panel) {
        const int width = (int)std::min<int64_t>(WIDTH, H - panel * WIDTH);
        for (int64_t k = 0; k < 4 * H; ++k)
            for (int column = 0; column < width; ++column)
                packed.set(panel, k, column, weight[k * H + panel * WIDTH + column]);
    });
    std::vector<Number> ahead(2 * B * stride);  // gradients of the next frame's gates and of this one's
    threads = (int)std::min<int64_t>(threads, panels);
    Barrier barrier(threads);
    run_team(threads, [&](int member) {
        const Share share(panels, member, threads);
        std::vector<float> sums(B * WIDTH);
        for (int64_t t = T - 1; t >= -1; --t) {
            const Number* next = &ahead[(t & 1) * B * stride];
            Number* now = &ahead[(1 - (t & 1)) * B * stride];
            for (int64_t panel = share.first; panel < share.last; ++panel) {
                const int64_t unit = panel * WIDTH;
                const int width = (int)std::min<int64_t>(WIDTH, H - unit);
                // What comes from the next frame; at the last one, from whoever used the final state.
                std::fill(sums.begin(), sums.end(), 0.f);
                for (int64_t b = 0; b < B; ++b) {
                    for (int j = 0; j < width; j += LANES) {
                        Vec d = t == T - 1 ? load(grad_h + b * H + unit + j) : Vec{};
                        if (t >= 0) d += load(grad_hidden + (b * T + t) * H + unit + j);
                        store(&sums[b * WIDTH + j], d);
                    }
                }
                if (t < T - 1) packed.multiply(next, stride, panel, B, sums.data());
                for (int64_t b = 0; b < B; ++b) {
                    for (int j = 0; j < width; j += LANES) {
                        const Vec dh = load(&sums[b * WIDTH + j]);
                        const int64_t u = unit + j;
                        if (t < 0) {
                            store(grad_h + b * H + u, dh);
                            continue;
                        }
                        const int64_t at = (b * T + t) * 4 * H + u;
                        const Number* row = gates + at;
                        for (int gate = 0; gate < 4; ++gate) {  // what the frame before will need, as in `forward`
                            __builtin_prefetch(row - (4 - gate) * H);
                            __builtin_prefetch(grad_gates + at - (4 - gate) * H, 1);
                        }
                        __builtin_prefetch(cell + (b * T + t - 2) * H + u);
                        __builtin_prefetch(grad_hidden + (b * T + t - 1) * H + u);
                        const Vec i = load(row), f = load(row + H), g = load(row + 2 * H), o = load(row + 3 * H);
                        const Vec squashed = tanh(load(cell + (b * T + t) * H + u));
                        const Vec before = t ? load(cell + (b * T + t - 1) * H + u) : load(c0 + b * H + u);
                        const Vec dc = load(grad_c + b * H + u) + dh * o * (1 - squashed * squashed);
                        const Vec grads[4] = {dc * g * i * (1 - i), dc * before * f * (1 - f), dc * i * (1 - g * g),
                                              dh * squashed * o * (1 - o)};
                        for (int gate = 0; gate < 4; ++gate) {
                            store(grad_gates + at + gate * H, grads[gate]);
                            store(now + b * stride + u + gate * H, grads[gate]);
                            float* total = grad_bias + (b * 4 + gate) * H + u;
                            store(total, load(total) + grads[gate]);
                        }
                        store(grad_c + b * H + u, dc * f);
                    }
                }
            }
            barrier.wait();
        }
    });
}

}  // namespace

extern "C" {

// gates (B, T, 4H): in, input projections; out, activated gates. bias (4H) or null. weight (4H, H). h0, c0 (B, H).
// hidden, cell (B, T, H), last_h, last_c (B, H): out. H is a multiple of 16.
void lstm_forward(void* gates, const float* bias, const float* weight, const float* h0, const float* c0, void* hidden,
                  void* cell, float* last_h, float* last_c, int64_t B, int64_t T, int64_t H, int is_half,
                  int threads) {
    if (is_half)
        forward((Half*)gates, bias, weight, h0, c0, (Half*)hidden, (Half*)cell, last_h, last_c, B, T, H, threads);
    else
        forward((float*)gates, bias, weight, h0, c0, (float*)hidden, (float*)cell, last_h, last_c, B, T, H, threads);
}

// gates, cell: from forward. grad_hidden (B, T, H), grad_h, grad_c (B, H): in, gradients of the outputs; grad_h and
// grad_c out, of h0 and c0. grad_gates (B, T, 4H): out, gradients before the activations. grad_bias (B, 4H): their sum
// over frames is added to it.
void lstm_backward(const void* gates, const void* cell, const float* c0, const float* weight, const void* grad_hidden,
                   float* grad_h, float* grad_c, void* grad_gates, float* grad_bias, int64_t B, int64_t T, int64_t H,
                   int is_half, int threads) {
    if (is_half)
        backward((const Half*)gates, (const Half*)cell, c0, weight, (const Half*)grad_hidden, grad_h, grad_c,
                 (Half*)grad_gates, grad_bias, B, T, H, threads);
    else
        backward((const float*)gates, (const float*)cell, c0, weight, (const float*)grad_hidden, grad_h, grad_c,
                 (float*)grad_gates, grad_bias, B, T, H, threads);
}
}
