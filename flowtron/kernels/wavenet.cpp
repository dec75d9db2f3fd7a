// WaveNet sample by sample. Every layer keeps the last inputs that its taps still read in a ring; a new sample costs one
// column of every layer. Items of a batch are shared among threads, and those of one thread read each weight once.
//
// Weights are packed in panels of PANEL outputs: (outputs / PANEL, inputs, PANEL), outputs padded with zeros.
#include <cmath>
#include "vector.hpp"

using namespace flowtron;

namespace {

struct Layer {
    const float* inward;   // panels of (taps R, 2R), oldest tap first
    const float* outward;  // panels of (R, R + S): residual, then skip
    const float* outward_bias;
    float* ring;  // (B, (taps - 1) dilation, R)
    int64_t dilation;
};

struct Net {
    int64_t L, R, S, O, taps, classes, mixtures;  // classes: 0 for a scalar input
    double log_scale_min;
    const Layer* layers;
    const float *first, *first_bias;   // (R) by the sample, or (classes, R) by the class
    const float *hidden, *hidden_bias;  // panels of (S, S)
    const float *output, *output_bias;  // panels of (S, O)
};

int64_t panels(int64_t n) { return (n + PANEL - 1) / PANEL; }

// out (M, padded n) = bias + a (M, K; rows lda apart) · packed; bias may be one row for all or, with `lead`, one each.
void product(const float* a, int64_t lda, const float* packed, const float* bias, int64_t lead, int64_t M, int64_t K,
             int64_t n, float* out, float* sums) {
    for (int64_t p = 0; p < panels(n); ++p) {
        for (int64_t m = 0; m < M; ++m)
            std::memcpy(sums + m * PANEL, bias + m * lead + p * PANEL, PANEL * sizeof(float));
        multiply(a, lda, packed + p * K * PANEL, M, K, sums);
        for (int64_t m = 0; m < M; ++m)
            std::memcpy(out + m * panels(n) * PANEL + p * PANEL, sums + m * PANEL, PANEL * sizeof(float));
    }
}

// Draw a value from the parameters of its distribution: a mixture component or a class by one number from [0, 1), and
// within the component by another.
float draw(const Net& net, const float* parameters, const float* uniform) {
    const int64_t n = net.classes ? net.classes : net.mixtures;
    float highest = parameters[0];
    for (int64_t i = 1; i < n; ++i) highest = std::max(highest, parameters[i]);
    double total = 0;
    for (int64_t i = 0; i < n; ++i) total += std::exp((double)parameters[i] - highest);
    double left = uniform[0] * total;
    int64_t pick = 0;
    for (; pick < n - 1; ++pick) {
        left -= std::exp((double)parameters[pick] - highest);
        if (left < 0) break;
    }
    if (net.classes) return (float)pick;
    const double u = std::min(std::max((double)uniform[1], 1e-5), 1 - 1e-5);
    const double scale = std::exp(std::max((double)parameters[2 * n + pick], net.log_scale_min));
    return (float)std::min(std::max(parameters[n + pick] + scale * (std::log(u) - std::log(1 - u)), -1.0), 1.0);
}

}  // namespace

extern "C" {

// previous (B): the sample or class before the first; out, the last one. given (B, T): teacher forcing, or null to
// draw with uniforms (B, T, 2). conditioning (B, T, L, 2R padded to PANEL) holds the layers' biases too. samples
// (B, T), parameters (B, T, O) or null: out. position: samples that the rings have seen.
void wavenet_run(const Net* net_, float* previous, const float* given, const float* uniforms, const float* conditioning,
                 float* samples, float* parameters, int64_t position, int64_t B, int64_t T, int threads) {
    const Net& net = *net_;
    const int64_t R = net.R, S = net.S, taps = net.taps;
    const int64_t wide = panels(2 * R) * PANEL, outward = panels(R + S) * PANEL, narrow = panels(S) * PANEL;
    const int64_t last = panels(net.O) * PANEL;
    threads = (int)std::min<int64_t>(threads, B);
    run_team(threads, [&](int member) {
        const Share share(B, member, threads);
        const int64_t M = share.last - share.first;
        if (M <= 0) return;
        std::vector<float> h(M * R), inputs(M * taps * R), gates(M * wide), gated(M * R), out(M * outward);
        std::vector<float> skipped(M * S), hidden(M * narrow), result(M * last), sums(M * PANEL);
        for (int64_t t = 0; t < T; ++t) {
            for (int64_t m = 0; m < M; ++m) {
                const float x = previous[share.first + m];
                for (int64_t r = 0; r < R; ++r)
                    h[m * R + r] = net.first_bias[r] + (net.classes ? net.first[(int64_t)x * R + r] : x * net.first[r]);
            }
            std::fill(skipped.begin(), skipped.end(), 0.0f);
            for (int64_t l = 0; l < net.L; ++l) {
                const Layer& layer = net.layers[l];
                const int64_t length = (taps - 1) * layer.dilation, now = position + t;
                for (int64_t m = 0; m < M; ++m) {
                    float* ring = layer.ring + (share.first + m) * length * R;
                    float* row = &inputs[m * taps * R];
                    for (int64_t tap = 0; tap < taps - 1; ++tap)
                        std::memcpy(row + tap * R, ring + (now + tap * layer.dilation) % length * R, R * sizeof(float));
                    std::memcpy(row + (taps - 1) * R, &h[m * R], R * sizeof(float));
                    if (length) std::memcpy(ring + now % length * R, &h[m * R], R * sizeof(float));
                }
                const float* condition = conditioning + ((share.first * T + t) * net.L + l) * wide;
                product(inputs.data(), taps * R, layer.inward, condition, T * net.L * wide, M, taps * R, 2 * R,
                        gates.data(), sums.data());
                for (int64_t m = 0; m < M; ++m) {
                    const float* gate = &gates[m * wide];
                    for (int64_t r = 0; r < R; r += LANES)
                        store(&gated[m * R + r], tanh(load(gate + r)) * sigmoid(load(gate + R + r)));
                }
                product(gated.data(), R, layer.outward, layer.outward_bias, 0, M, R, R + S, out.data(), sums.data());
                for (int64_t m = 0; m < M; ++m) {
                    for (int64_t r = 0; r < R; ++r) h[m * R + r] = (h[m * R + r] + out[m * outward + r]) * 0.70710678f;
                    for (int64_t s = 0; s < S; ++s) skipped[m * S + s] += out[m * outward + R + s];
                }
            }
            const float share_of_skip = 1 / std::sqrt((float)net.L);
            for (float& s : skipped) s = std::max(s * share_of_skip, 0.0f);
            product(skipped.data(), S, net.hidden, net.hidden_bias, 0, M, S, S, hidden.data(), sums.data());
            for (float& x : hidden) x = std::max(x, 0.0f);
            product(hidden.data(), narrow, net.output, net.output_bias, 0, M, S, net.O, result.data(), sums.data());
            for (int64_t m = 0; m < M; ++m) {
                const int64_t at = (share.first + m) * T + t;
                const float* row = &result[m * last];
                if (parameters) std::memcpy(parameters + at * net.O, row, net.O * sizeof(float));
                previous[share.first + m] = samples[at] = given ? given[at] : draw(net, row, uniforms + 2 * at);
            }
        }
    });
}
}
