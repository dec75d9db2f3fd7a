// Scores of additive attention and their gradient, without the (B, T, N, A) tensor.
//
// With Q = exp(2 query), K = exp(2 key) and u = 1 / (1 + Q K):  tanh(query + key) = 1 - 2u, its derivative 4u(1 - u).
// The inner loops so have one reciprocal and no exponential. Rows are padded to a multiple of LANES channels; a padded
// channel has score 0.
#include "vector.hpp"

using namespace flowtron;

// Four vectors of gradients stay in registers, and a token's share of K and of its gradient in the first cache.
constexpr int BLOCK = 4;

extern "C" {

// Q (B, T, A), K (B, N, A), score (A,) -> scores (B, T, N).
void additive_scores_forward(const float* Q, const float* K, const float* score, float* scores, int64_t B, int64_t T,
                             int64_t N, int64_t A, int threads) {
    float total = 0;
    for (int64_t a = 0; a < A; ++a) total += score[a];
    constexpr int64_t ROWS = 16;
    const int64_t tiles = (T + ROWS - 1) / ROWS;
    parallel(B * tiles, threads, [&](int64_t tile) {
        const int64_t b = tile / tiles, first = tile % tiles * ROWS;
        for (int64_t t = first; t < std::min(T, first + ROWS); ++t) {
            const int64_t row = b * T + t;
            const float* q = Q + row * A;
            float* e = scores + row * N;
            for (int64_t n = 0; n < N; ++n)
                e[n] = total - 2 * weighted_reciprocals(q, K + (b * N + n) * A, score, A);
        }
    });
}

// Gradients of query (B, T, A), of key (B, N, A), of score per item (B, A), from that of the scores (B, T, N).
void additive_scores_backward(const float* Q, const float* K, const float* score, const float* grad,
                              float* grad_query, float* grad_key, float* grad_score, int64_t B, int64_t T, int64_t N,
                              int64_t A, int threads) {
    const int64_t vectors = A / LANES, blocks = (vectors + BLOCK - 1) / BLOCK;
    parallel(B * blocks, threads, [&](int64_t tile) {
        const int64_t b = tile / blocks, first = tile % blocks * BLOCK;
        const int width = (int)std::min<int64_t>(BLOCK, vectors - first);
        // K and its gradient lie together here, whole blocks, so that the loop over channels has a constant length.
        std::vector<float> keys(N * BLOCK * LANES, 0.f), grads(N * BLOCK * LANES, 0.f);
        for (int64_t n = 0; n < N; ++n)
            std::memcpy(&keys[n * BLOCK * LANES], K + (b * N + n) * A + first * LANES, width * LANES * sizeof(float));
        Vec weight[BLOCK] = {}, slope_sum[BLOCK] = {};
        for (int j = 0; j < width; ++j) weight[j] = *(const Vec*)(score + (first + j) * LANES);
        float grad_sum = 0;
        for (int64_t t = 0; t < T; ++t) {
            const int64_t row = b * T + t;
            Vec q[BLOCK] = {}, dq[BLOCK] = {}, du[BLOCK] = {};
            for (int j = 0; j < width; ++j) q[j] = *(const Vec*)(Q + row * A + (first + j) * LANES);
            for (int64_t n = 0; n < N; ++n) {
                const float g = grad[row * N + n];
                const Vec* k = (const Vec*)&keys[n * BLOCK * LANES];
                Vec* dk = (Vec*)&grads[n * BLOCK * LANES];
                grad_sum += g;
                for (int j = 0; j < BLOCK; ++j) {
                    const Vec u = reciprocal(1 + q[j] * k[j]);
                    const Vec gu = g * u;
                    const Vec d = gu - gu * u;
                    dq[j] += d;
                    dk[j] += d;
                    du[j] += gu;
                }
            }
            for (int j = 0; j < width; ++j) {
                *(Vec*)(grad_query + row * A + (first + j) * LANES) = 4 * weight[j] * dq[j];
                slope_sum[j] += du[j];
            }
        }
        for (int64_t n = 0; n < N; ++n)
            for (int j = 0; j < width; ++j)
                *(Vec*)(grad_key + (b * N + n) * A + (first + j) * LANES) =
                    4 * weight[j] * *(Vec*)&grads[(n * BLOCK + j) * LANES];
        for (int j = 0; j < width; ++j)
            *(Vec*)(grad_score + b * A + (first + j) * LANES) = grad_sum - 2 * slope_sum[j];
    });
}
}
