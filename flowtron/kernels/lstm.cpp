// One LSTM layer over a sequence, forward and backward through time. The products with the inputs and the gradients
// of the weights are whole-sequence matrix products and the caller's; here is what has to go frame by frame.
//
// Layout: rows are (B, T), so frame t of item b is row b T + t. Gates are i, f, g, o as in torch.
#include "vector.hpp"

using namespace flowtron;

extern "C" {

// gates (B, T, 4H): in, input projections with biases; out, activated gates. weight (4H, H). h0, c0 (B, H).
// hidden, cell (B, T, H): out. H is a multiple of PANEL.
void lstm_forward(float* gates, const float* weight, const float* h0, const float* c0, float* hidden, float* cell,
                  int64_t B, int64_t T, int64_t H, int threads) {
    const int64_t groups = H / LANES;
    // Two panels for every eight units: (i, f), then (g, o).
    std::vector<float> packed(4 * H * H);
    parallel(groups, threads, [&](int64_t group) {
        for (int gate = 0; gate < 4; ++gate) {
            float* panel = &packed[(group * 2 + gate / 2) * H * PANEL + gate % 2 * LANES];
            for (int lane = 0; lane < LANES; ++lane) {
                const float* row = weight + (gate * H + group * LANES + lane) * H;
                for (int64_t k = 0; k < H; ++k) panel[k * PANEL + lane] = row[k];
            }
        }
    });
    threads = (int)std::min<int64_t>(threads, groups);
    Barrier barrier(threads);
    run_team(threads, [&](int member) {
        const Share share(groups, member, threads);
        std::vector<float> scratch(2 * B * PANEL);
        float* sums[2] = {scratch.data(), scratch.data() + B * PANEL};
        for (int64_t t = 0; t < T; ++t) {
            const float* h = t ? hidden + (t - 1) * H : h0;
            const float* c = t ? cell + (t - 1) * H : c0;
            const int64_t stride = t ? T * H : H;
            for (int64_t group = share.first; group < share.last; ++group) {
                const int64_t unit = group * LANES;
                for (int half = 0; half < 2; ++half) {
                    for (int64_t b = 0; b < B; ++b) {
                        const float* row = gates + (b * T + t) * 4 * H + unit;
                        store(sums[half] + b * PANEL, load(row + 2 * half * H));
                        store(sums[half] + b * PANEL + LANES, load(row + (2 * half + 1) * H));
                    }
                    multiply(h, stride, &packed[(group * 2 + half) * H * PANEL], B, H, sums[half]);
                }
                for (int64_t b = 0; b < B; ++b) {
                    float* row = gates + (b * T + t) * 4 * H + unit;
                    const Vec i = sigmoid(load(sums[0] + b * PANEL)), f = sigmoid(load(sums[0] + b * PANEL + LANES));
                    const Vec g = tanh(load(sums[1] + b * PANEL)), o = sigmoid(load(sums[1] + b * PANEL + LANES));
                    const Vec next = f * load(c + b * stride + unit) + i * g;
                    store(row, i);
                    store(row + H, f);
                    store(row + 2 * H, g);
                    store(row + 3 * H, o);
                    store(cell + (b * T + t) * H + unit, next);
                    store(hidden + (b * T + t) * H + unit, o * tanh(next));
                }
            }
            barrier.wait();
        }
    });
}

// gates, cell: from forward. grad_hidden (B, T, H), grad_h, grad_c (B, H): in, gradients of the outputs; grad_h and
// grad_c out, of h0 and c0. grad_gates (B, T, 4H): out, gradients before the activations.
void lstm_backward(const float* gates, const float* cell, const float* c0, const float* weight,
                   const float* grad_hidden, float* grad_h, float* grad_c, float* grad_gates, int64_t B, int64_t T,
                   int64_t H, int threads) {
    const int64_t groups = H / PANEL;
    std::vector<float> packed(4 * H * H);
    parallel(groups, threads, [&](int64_t group) {
        for (int64_t k = 0; k < 4 * H; ++k)
            std::memcpy(&packed[(group * 4 * H + k) * PANEL], weight + k * H + group * PANEL, PANEL * sizeof(float));
    });
    threads = (int)std::min<int64_t>(threads, groups);
    Barrier barrier(threads);
    run_team(threads, [&](int member) {
        const Share share(groups, member, threads);
        std::vector<float> sums(B * PANEL);
        for (int64_t t = T - 1; t >= -1; --t) {
            for (int64_t group = share.first; group < share.last; ++group) {
                const int64_t unit = group * PANEL;
                // What comes from the next frame; at the last one, from whoever used the final state.
                for (int64_t b = 0; b < B; ++b) {
                    for (int64_t j = 0; j < PANEL; j += LANES) {
                        Vec d = t == T - 1 ? load(grad_h + b * H + unit + j) : Vec{};
                        if (t >= 0) d += load(grad_hidden + (b * T + t) * H + unit + j);
                        store(&sums[b * PANEL + j], d);
                    }
                }
                if (t < T - 1)
                    multiply(grad_gates + (t + 1) * 4 * H, T * 4 * H, &packed[group * 4 * H * PANEL], B, 4 * H,
                             sums.data());
                for (int64_t b = 0; b < B; ++b) {
                    for (int64_t j = 0; j < PANEL; j += LANES) {
                        const Vec dh = load(&sums[b * PANEL + j]);
                        const int64_t u = unit + j;
                        if (t < 0) {
                            store(grad_h + b * H + u, dh);
                            continue;
                        }
                        const float* row = gates + (b * T + t) * 4 * H + u;
                        float* out = grad_gates + (b * T + t) * 4 * H + u;
                        const Vec i = load(row), f = load(row + H), g = load(row + 2 * H), o = load(row + 3 * H);
                        const Vec squashed = tanh(load(cell + (b * T + t) * H + u));
                        const Vec before = load(t ? cell + (b * T + t - 1) * H + u : c0 + b * H + u);
                        const Vec dc = load(grad_c + b * H + u) + dh * o * (1 - squashed * squashed);
                        store(out, dc * g * i * (1 - i));
                        store(out + H, dc * before * f * (1 - f));
                        store(out + 2 * H, dc * i * (1 - g * g));
                        store(out + 3 * H, dh * squashed * o * (1 - o));
                        store(grad_c + b * H + u, dc * f);
                    }
                }
            }
            barrier.wait();
        }
    });
}
}
