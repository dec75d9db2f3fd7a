// What the kernels share: vectors of floats, exp and friends on them, a team of threads, a small matrix product.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>
#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

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

// 1 / x of a positive finite number: the processor's estimate to 12 bits, which one step of Newton's doubles. A division
// takes five cycles of a core, this two.
inline Vec reciprocal(Vec x) {
#if defined(__AVX2__)
    const Vec estimate = (Vec)_mm256_rcp_ps((__m256)x);
    return estimate + estimate * (1 - x * estimate);
#else
    return 1 / x;
#endif
}

// exp to two units in the last place: 2^n · exp(r), |r| <= ln(2)/2, the polynomial being exp's Taylor series.
inline Vec exp(Vec x) {
    x = larger(splat(-87.0f), smaller(splat(88.0f), x));  // in this order a NaN stays one
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

inline Vec sigmoid(Vec x) { return reciprocal(1 + exp(-x)); }
inline Vec tanh(Vec x) { return 1 - 2 * reciprocal(1 + exp(2 * x)); }

// Σ_a score_a u_a of A channels, a multiple of LANES, with u = 1 / (1 + q k). With q = exp(2 query) and k = exp(2 key)
// tanh(query + key) is 1 - 2u, so that additive attention takes no exponential for each pair.
inline float weighted_reciprocals(const float* q, const float* k, const float* score, int64_t A) {
    Vec left = {}, right = {};
    int64_t a = 0;
    for (; a + 2 * LANES <= A; a += 2 * LANES) {
        const int64_t c = a + LANES;
        left += load(score + a) * reciprocal(1 + load(q + a) * load(k + a));
        right += load(score + c) * reciprocal(1 + load(q + c) * load(k + c));
    }
    if (a < A) left += load(score + a) * reciprocal(1 + load(q + a) * load(k + a));
    return sum(left + right);
}

// Threads that meet at a barrier. They spin at first, since steps take microseconds, then sleep: where cores are shared,
// a thread that spins keeps away the very one it waits for.
class Barrier {
   public:
    explicit Barrier(int size) : size_(size) {}

    void wait() {
        if (size_ == 1) return;
        const int round = round_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_seq_cst);
            if (sleepers_.load(std::memory_order_seq_cst)) wake();
            return;
        }
        for (int spins = 0; spins < SPINS; ++spins) {
            if (round_.load(std::memory_order_acquire) != round) return;
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        }
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        while (round_.load(std::memory_order_seq_cst) == round) sleep(round);
        sleepers_.fetch_sub(1, std::memory_order_relaxed);
    }

   private:
    static constexpr int SPINS = 4000;

#if defined(__linux__)
    void sleep(int round) { syscall(SYS_futex, &round_, FUTEX_WAIT_PRIVATE, round, nullptr, nullptr, 0); }
    void wake() { syscall(SYS_futex, &round_, FUTEX_WAKE_PRIVATE, size_, nullptr, nullptr, 0); }
#else
    void sleep(int) { std::this_thread::yield(); }
    void wake() {}
#endif

    const int size_;
    std::atomic<int> arrived_{0};
    std::atomic<int> round_{0};
    std::atomic<int> sleepers_{0};
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

// Larger products: panels of WIDTH columns, of floats or narrower numbers.
constexpr int WIDTH = 4 * LANES;

// The widest vectors of floats, and the items whose sums fit the registers together with a row of `TILE_PARTS` vectors
// of a panel: where registers are few, a panel is read one half after the other.
#if defined(__AVX512F__)
constexpr int WIDE = 16, ROWS = 12, TILE_PARTS = 2;
#else
constexpr int WIDE = 8, ROWS = 6, TILE_PARTS = 2;
#endif
constexpr int PARTS = WIDTH / WIDE;
typedef float WideVec __attribute__((vector_size(WIDE * sizeof(float)), aligned(4)));
typedef int32_t WideInt __attribute__((vector_size(WIDE * sizeof(int32_t)), aligned(4)));
typedef int8_t Bytes __attribute__((vector_size(WIDE), aligned(1)));

#if defined(__AVX512F__)
inline void pin(WideVec& v) { asm("" : "+v"(v)); }
#endif

// Columns [WIDE j, WIDE (j + 1)) of a row of a panel.
inline WideVec decode(const float* p, int j) { return *(const WideVec*)(p + j * WIDE); }

// Columns j and j + WIDTH / 2 share a word, the later one in its upper half.
inline WideVec decode(const uint16_t* p, int j) {
    const WideInt pair = *(const WideInt*)(p + j % (PARTS / 2) * 2 * WIDE);
    return (WideVec)(j < PARTS / 2 ? pair << 16 : pair & (int32_t)0xffff0000);
}

inline WideVec decode(const int8_t* p, int j) {
#if defined(__AVX512F__)  // compilers make scalar code of the conversion
    const WideInt whole = (WideInt)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(p + j * WIDE)));
#elif defined(__AVX2__)
    const WideInt whole = (WideInt)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + j * WIDE)));
#else
    const WideInt whole = __builtin_convertvector(*(const Bytes*)(p + j * WIDE), WideInt);
#endif
    return __builtin_convertvector(whole, WideVec);
}

// What a product fetches into the cache for the next one: `bytes` at every row, from `at` on.
struct Ahead {
    const char* at;
    int64_t bytes;
};

// *sum += scale · total, scale 1 where there is none.
inline void add_scaled(WideVec total, const float* scale, float* sum) {
    if (scale) total *= *(const WideVec*)scale;
    pin(total);  // or a compiler would fuse product and sum for some numbers of items
    *(WideVec*)sum += total;
}

// Vectors [first, first + P) of sums (M, WIDTH) += scale · (x (M, K; rows stride apart) · panel (K, WIDTH)).
template <int M, int P, typename Weight>
inline void multiply_columns(const float* x, int64_t stride, const Weight* panel, int first, int64_t K,
                             const float* scale, float* sums, Ahead ahead) {
    WideVec total[M][P] = {};
    for (int64_t k = 0; k < K; ++k) {
        const Weight* row = panel + k * WIDTH;
        __builtin_prefetch(ahead.at + k * ahead.bytes);
        if (ahead.bytes > 64) __builtin_prefetch(ahead.at + k * ahead.bytes + 64);
        WideVec w[P];
        for (int j = 0; j < P; ++j) {
            w[j] = decode(row, first + j);
            pin(w[j]);
        }
        for (int m = 0; m < M; ++m) {
            WideVec input = x[m * stride + k] - WideVec{};
            pin(input);
            for (int j = 0; j < P; ++j) total[m][j] += input * w[j];
        }
    }
    for (int m = 0; m < M; ++m) {
        for (int j = 0; j < P; ++j) {
            const int64_t at = (first + j) * WIDE;
            add_scaled(total[m][j], scale ? scale + at : nullptr, sums + m * WIDTH + at);
        }
    }
}

// As multiply_columns, all of the panel.
template <int M, typename Weight>
inline void multiply_rows(const float* x, int64_t stride, const Weight* panel, int64_t K, const float* scale,
                          float* sums, Ahead ahead) {
    constexpr int P = M <= 2 ? PARTS : TILE_PARTS, PASSES = PARTS / P;
    ahead.bytes = (ahead.bytes + PASSES - 1) / PASSES;
    for (int first = 0; first < PARTS; first += P, ahead.at += K * ahead.bytes)
        multiply_columns<M, P>(x, stride, panel, first, K, scale, sums, ahead);
}

// sums (2, WIDTH) += scale · (x (K) · panel (K, WIDTH)), of two panels: the sums of one alone are too few chains of
// additions to keep a core busy. Panels lie `apart` numbers from each other, their scales `scale_apart`.
template <typename Weight>
inline void multiply_pair(const float* x, const Weight* panel, int64_t apart, int64_t K, const float* scale,
                          int64_t scale_apart, float* sums) {
    constexpr int AHEAD = 4096 / sizeof(Weight), LINE = 64 / sizeof(Weight);
    WideVec total[2][PARTS] = {};
    for (int64_t k = 0; k < K; ++k) {
        const WideVec input = x[k] - WideVec{};
        for (int p = 0; p < 2; ++p) {
            const Weight* row = panel + p * apart + k * WIDTH;
            for (int at = 0; at < WIDTH; at += LINE) __builtin_prefetch(row + AHEAD + at);
            for (int j = 0; j < PARTS; ++j) total[p][j] += input * decode(row, j);
        }
    }
    for (int p = 0; p < 2; ++p) {
        for (int j = 0; j < PARTS; ++j) {
            const int64_t at = j * WIDE;
            add_scaled(total[p][j], scale ? scale + p * scale_apart + at : nullptr, sums + p * WIDTH + at);
        }
    }
}

// A bfloat16, and pairs of them: consecutive inputs of one column share a word, the later one in its upper half.
typedef uint16_t Half;
typedef uint16_t HalfVec __attribute__((vector_size(LANES * sizeof(Half)), aligned(2)));

inline Vec load(const Half* p) { return (Vec)(__builtin_convertvector(*(const HalfVec*)p, IntVec) << 16); }

inline IntVec half_bits(Vec v) {
    const IntVec bits = (IntVec)v;
    const IntVec rounded = (IntVec)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    return (v == v ? rounded : IntVec{} + 0x7fc0) & 0xffff;
}

inline void store(Half* p, Vec v) { *(HalfVec*)p = __builtin_convertvector(half_bits(v), HalfVec); }

// sums (M, WIDTH) += x (M, 2 K; rows stride apart) · panel (K, WIDTH) of pairs.
template <int M>
inline void multiply_rows(const Half* x, int64_t stride, const uint32_t* panel, int64_t K, const float*, float* sums,
                          Ahead) {
    WideVec total[M][PARTS] = {};
    for (int64_t k = 0; k < K; ++k) {
        const uint32_t* row = panel + k * WIDTH;
        for (int at = 0; at < WIDTH; at += 16) __builtin_prefetch(row + 1024 + at);
        WideInt w[PARTS];
        for (int j = 0; j < PARTS; ++j) w[j] = *(const WideInt*)(row + j * WIDE);
        for (int m = 0; m < M; ++m) {
            int32_t pair;
            std::memcpy(&pair, x + m * stride + 2 * k, sizeof(pair));
            for (int j = 0; j < PARTS; ++j) {
#if defined(__AVX512BF16__)
                total[m][j] = (WideVec)_mm512_dpbf16_ps((__m512)total[m][j], (__m512bh)w[j],
                                                        (__m512bh)_mm512_set1_epi32(pair));
#else
                const WideInt both = pair - WideInt{};
                total[m][j] += (WideVec)(both << 16) * (WideVec)(w[j] << 16);
                total[m][j] += (WideVec)(both & (int32_t)0xffff0000) * (WideVec)(w[j] & (int32_t)0xffff0000);
#endif
            }
        }
    }
    for (int m = 0; m < M; ++m)
        for (int j = 0; j < PARTS; ++j) *(WideVec*)(sums + m * WIDTH + j * WIDE) += total[m][j];
}

// As multiply_rows for a number of items that is known only now, M at most.
template <int M, typename Input, typename Weight>
void multiply_some(int64_t rows, const Input* x, int64_t stride, const Weight* panel, int64_t K, const float* scale,
                   float* sums, Ahead ahead) {
    if (rows == M) multiply_rows<M>(x, stride, panel, K, scale, sums, ahead);
    else if constexpr (M > 1) multiply_some<M - 1>(rows, x, stride, panel, K, scale, sums, ahead);
}

// As multiply_rows, for any number of items, shared evenly by the fewest tiles; so is the fetching of what lies after
// `next`, `bytes` a row.
template <typename Input, typename Weight>
void multiply_few(const Input* x, int64_t stride, const Weight* panel, int64_t B, int64_t K, const float* scale,
                  float* sums, const void* next = nullptr, int64_t bytes = WIDTH * sizeof(Weight)) {
    int64_t tiles = (B + ROWS - 1) / ROWS;
    Ahead ahead{next ? (const char*)next : (const char*)(panel + K * WIDTH), (bytes + tiles - 1) / tiles};
    for (; tiles > 0; --tiles, ahead.at += K * ahead.bytes) {
        const int64_t rows = B / tiles;
        multiply_some<ROWS>(rows, x, stride, panel, K, scale, sums, ahead);
        B -= rows;
        x += rows * stride;
        sums += rows * WIDTH;
    }
}

}  // namespace flowtron
