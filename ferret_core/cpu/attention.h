// Attention over keys and values in blocks of 16 positions, on AVX512-BF16.
//
// Keys of a block and a head lie as (width / 2, 16, 2), values as (8, width, 2), as weights do in their panels. A position looks
// at 64 others at a time, from the first on, and carries the largest score along: its result depends neither on the piece of
// the prompt it was computed with nor on what other sequences there are.
#pragma once
#include "products.h"

constexpr int BLOCK = 16;          // positions of a block
constexpr int KEYS = 4 * BLOCK;    // positions looked at together
constexpr int MOST_WIDTH = 256;    // of a head

struct Heads {
    int64_t queries, keys, width;
    int64_t shared() const { return queries / keys; }  // query heads of a key head
};

inline bf16* of_head(bf16* cache, int64_t block, int64_t head, const Heads& heads) {
    return cache + (block * heads.keys + head) * BLOCK * heads.width;
}

// Puts the key and the value of a position into their block. What would come next to the last value is cleared.
inline void remember(const float* key, const float* value, int64_t place, bool last, int64_t width, bf16* keys, bf16* values) {
    alignas(64) bf16 row[MOST_WIDTH];
    for (int64_t i = 0; i < width; i += LANES) store(row + i, load(key + i));
    for (int64_t i = 0; i < width; i += 2) std::memcpy(keys + (i / 2 * BLOCK + place) * 2, row + i, 2 * sizeof(bf16));
    for (int64_t i = 0; i < width; i += LANES) store(row + i, load(value + i));
    bf16* pair = values + place / 2 * width * 2 + place % 2;
    for (int64_t i = 0; i < width; i++) pair[2 * i] = row[i];
    if (last && place % 2 == 0)
        for (int64_t i = 0; i < width; i++) pair[2 * i + 1] = 0;
}

// scores (M, 64) of M queries with 64 keys
template <int M>
void score(const bf16* const* queries, const bf16* const* keys, int64_t width, float* scores) {
    __m512 sum[M][4];
    for (int m = 0; m < M; m++)
        for (int j = 0; j < 4; j++) sum[m][j] = _mm512_setzero_ps();
    for (int64_t i = 0; i < width; i += 2) {
        __m512bh key[4];
        for (int j = 0; j < 4; j++) key[j] = (__m512bh)_mm512_loadu_si512(keys[j] + i * BLOCK);
        for (int m = 0; m < M; m++) {
            const auto query = (__m512bh)spread(queries[m] + i);
            for (int j = 0; j < 4; j++) sum[m][j] = _mm512_dpbf16_ps(sum[m][j], key[j], query);
        }
    }
    for (int m = 0; m < M; m++)
        for (int j = 0; j < 4; j++) store(scores + m * KEYS + j * LANES, sum[m][j]);
}

// sums (M, width) = sums * factors + weights (M, 64) x values, of which there are `pairs` pairs
template <int M>
void weigh(const bf16* weights, const bf16* const* values, int64_t pairs, int64_t width, const float* factors, float* sums) {
    for (int64_t start = 0; start < width; start += PANEL) {
        __m512 sum[M][4];
        for (int m = 0; m < M; m++)
            for (int j = 0; j < 4; j++)
                sum[m][j] = _mm512_mul_ps(load(sums + m * width + start + j * LANES), _mm512_set1_ps(factors[m]));
        for (int64_t p = 0; p < pairs; p++) {
            const bf16* at = values[p / (BLOCK / 2)] + (p % (BLOCK / 2) * width + start) * 2;
            __m512bh value[4];
            for (int j = 0; j < 4; j++) value[j] = (__m512bh)_mm512_loadu_si512(at + j * 2 * LANES);
            for (int m = 0; m < M; m++) {
                const auto weight = (__m512bh)spread(weights + m * KEYS + 2 * p);
                for (int j = 0; j < 4; j++) sum[m][j] = _mm512_dpbf16_ps(sum[m][j], value[j], weight);
            }
        }
        for (int m = 0; m < M; m++)
            for (int j = 0; j < 4; j++) store(sums + m * width + start + j * LANES, sum[m][j]);
    }
}

// What M queries of one key head attend to; query m sees `seen[m]` positions, the last of them the most.
template <int M>
void attend(const bf16* const* queries, const int32_t* seen, const int32_t* table, bf16* keys, bf16* values, int64_t head,
            const Heads& heads, bf16* const* out) {
    alignas(64) float scores[M * KEYS], sums[M * MOST_WIDTH];
    alignas(64) bf16 weights[M * KEYS];
    float largest[M], total[M], factors[M];
    const auto scale = _mm512_set1_ps(1 / std::sqrt((float)heads.width));
    const auto lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    std::fill(largest, largest + M, -INFINITY);
    std::fill(total, total + M, 0.f);
    std::memset(sums, 0, M * heads.width * sizeof(float));
    const int32_t most = seen[M - 1];
    for (int32_t start = 0; start < most; start += KEYS) {
        const bf16 *some_keys[4], *some_values[4];
        for (int j = 0; j < 4; j++) {
            const int32_t block = table[start + j * BLOCK < most ? start / BLOCK + j : 0];  // masked beyond the last
            some_keys[j] = of_head(keys, block, head, heads);
            some_values[j] = of_head(values, block, head, heads);
        }
        score<M>(queries, some_keys, heads.width, scores);
        for (int m = 0; m < M; m++) {
            __m512 each[4];
            __mmask16 visible[4];
            auto most_of = _mm512_set1_ps(largest[m]);
            for (int j = 0; j < 4; j++) {
                visible[j] = _mm512_cmplt_epi32_mask(lane, _mm512_set1_epi32(seen[m] - start - j * LANES));
                each[j] = _mm512_mul_ps(load(scores + m * KEYS + j * LANES), scale);
                most_of = _mm512_mask_max_ps(most_of, visible[j], most_of, each[j]);
            }
            const float now = _mm512_reduce_max_ps(most_of);
            factors[m] = _mm512_cvtss_f32(exponential(_mm512_set1_ps(largest[m] - now)));
            largest[m] = now;
            auto sum = _mm512_setzero_ps();
            for (int j = 0; j < 4; j++) {
                each[j] = _mm512_maskz_mov_ps(visible[j], exponential(_mm512_sub_ps(each[j], _mm512_set1_ps(now))));
                sum = _mm512_add_ps(sum, each[j]);
                store(weights + m * KEYS + j * LANES, each[j]);
            }
            total[m] = total[m] * factors[m] + _mm512_reduce_add_ps(sum);
        }
        weigh<M>(weights, some_values, (std::min(most - start, KEYS) + 1) / 2, heads.width, factors, sums);
    }
    for (int m = 0; m < M; m++)
        for (int64_t i = 0; i < heads.width; i += LANES)
            store(out[m] + i, _mm512_div_ps(load(sums + m * heads.width + i), _mm512_set1_ps(total[m])));
}
