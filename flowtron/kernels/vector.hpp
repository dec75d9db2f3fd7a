// What the kernels share: vectors of floats, exp and friends on them, a team of threads, a small matrix product.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace flowtron {

constexpr int LANES = 8;
typedef float Vec __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));
typedef int32_t IntVec __attribute__((vector_size(LANES * sizeof(int32_t)), aligned(4)));

inline Vec load(const float* p) { return *(const Vec*)p; }
inline void store(float* p, Vec v) { *(Vec*)p = v; }
inline Vec splat(float x) { return x - Vec{}; }
inline Vec smaller(Vec a, Vec b) { return a < b ? a : b; }
inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

inline float sum(Vec v) {
    const float a = v[0] + v[4], b = v[1] + v[5], c = v[2] + v[6], d = v[3] + v[7];
    return (a + c) + (b + d);
}

// exp to two units in the last place: 2^n · exp(r), |r| <= ln(2)/2, the polynomial being exp's Taylor series.
inline Vec exp(Vec x) {
    x = larger(smaller(x, splat(88.0f)), splat(-87.0f));
    const Vec magic = splat(12582912.0f);  // 1.5 · 2^23: adding it rounds to an integer
    const Vec shifted = x * 1.44269504f + magic;
    const Vec n = shifted - magic;
    const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
    Vec p = r * (1 / 5040.0f) + (1 / 720.0f);
    p = p * r + (1 / 120.0f);
    p = p * r + (1 / 24.0f);
    p = p * r + (1 / 6.0f);
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    const IntVec exponent = ((IntVec)shifted - (IntVec)magic + 127) << 23;
    return p * (Vec)exponent;
}

inline Vec sigmoid(Vec x) { return 1 / (1 + exp(-x)); }
inline Vec tanh(Vec x) { return 1 - 2 / (1 + exp(2 * x)); }

// Threads that meet at a barrier. They spin at first, since steps take microseconds, then yield: cores may be shared.
class Barrier {
   public:
    explicit Barrier(int size) : size_(size) {}

    void wait() {
        if (size_ == 1) return;
        const int round = round_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
            if (spins > 4000) std::this_thread::yield();
        }
    }

   private:
    const int size_;
    std::atomic<int> arrived_{0};
    std::atomic<int> round_{0};
};

// Run task(member) on a team of threads, the caller being member 0.
template <typename Task>
void run_team(int size, Task task) {
    std::vector<std::thread> team;
    for (int member = 1; member < size; ++member) team.emplace_back([&task, member] { task(member); });
    task(0);
    for (auto& member : team) member.join();
}

// Run task(i) for every i < count, each on whichever thread is free.
template <typename Task>
void parallel(int64_t count, int threads, Task task) {
    std::atomic<int64_t> next{0};
    run_team((int)std::max<int64_t>(1, std::min<int64_t>(threads, count)), [&](int) {
        for (int64_t i; (i = next.fetch_add(1)) < count;) task(i);
    });
}

// The share [first, last) of `count` that falls to a member of a team.
struct Share {
    int64_t first, last;
    Share(int64_t count, int member, int size) : first(count * member / size), last(count * (member + 1) / size) {}
};

constexpr int PANEL = 2 * LANES;  // columns of a packed panel of weights
constexpr int TILE = 6;           // rows whose sums fit the registers together with a row of a panel

// Keep a vector in its register, where a compiler would rather load it again for every row.
inline void pin(Vec& v) {
#if defined(__x86_64__) && defined(__AVX__)
    asm("" : "+x"(v));
#else
    (void)v;
#endif
}

// sums (M, PANEL) += a (M, K; rows lda apart) · panel (K, PANEL).
template <int M>
inline void multiply_tile(const float* a, int64_t lda, const float* panel, int64_t K, float* sums) {
    Vec left[M], right[M];
    for (int m = 0; m < M; ++m) {
        left[m] = load(sums + m * PANEL);
        right[m] = load(sums + m * PANEL + LANES);
    }
    for (int64_t k = 0; k < K; ++k) {
        Vec w = load(panel + k * PANEL), v = load(panel + k * PANEL + LANES);
        pin(w);
        pin(v);
        for (int m = 0; m < M; ++m) {
            const float x = a[m * lda + k];
            left[m] += x * w;
            right[m] += x * v;
        }
    }
    for (int m = 0; m < M; ++m) {
        store(sums + m * PANEL, left[m]);
        store(sums + m * PANEL + LANES, right[m]);
    }
}

// As multiply_tile, for any number of rows, shared evenly by the fewest tiles.
inline void multiply(const float* a, int64_t lda, const float* panel, int64_t M, int64_t K, float* sums) {
    for (int64_t tiles = (M + TILE - 1) / TILE; tiles > 0; --tiles) {
        const int64_t rows = M / tiles;
        switch (rows) {
            case 6: multiply_tile<6>(a, lda, panel, K, sums); break;
            case 5: multiply_tile<5>(a, lda, panel, K, sums); break;
            case 4: multiply_tile<4>(a, lda, panel, K, sums); break;
            case 3: multiply_tile<3>(a, lda, panel, K, sums); break;
            case 2: multiply_tile<2>(a, lda, panel, K, sums); break;
            default: multiply_tile<1>(a, lda, panel, K, sums); break;
        }
        M -= rows;
        a += rows * lda;
        sums += rows * PANEL;
    }
}

}  // namespace flowtron
