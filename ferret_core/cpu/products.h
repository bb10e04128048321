// Products with packed weights, on AVX512-BF16 and VNNI.
//
// A weight (outputs, inputs) lies in panels of 64 outputs, each (inputs / 2, 64, 2) in bfloat16, (inputs / 4, 64, 4) in int8: what
// one instruction multiplies is what one load brings. Every row of a product is summed up in the same order however many rows
// there are, so that no result depends on what else a step computes.
//
// Inputs are bfloat16. For int8 weights a row is made 16 bits of fixed point, in two planes of bytes in its own place: as many
// instructions as in bfloat16 for half the bytes of weights, and sums that are exact.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

using bf16 = uint16_t;

constexpr int PANEL = 64;   // outputs of a panel
constexpr int LANES = 16;   // floats of a register
constexpr int ROWS = 6;     // rows of a tile: 6 x 4 sums, 4 weights and an input fit the 32 registers
constexpr int DEPTH = 256;  // inputs of a piece: its weights stay in the first-level cache while all rows pass

struct Matrix {
    const void* panels;   // bfloat16, or int8 where there are scales
    const float* scales;  // of each output, in whole panels; null for bfloat16
    const int32_t* sums;  // of each output's int8 weights, in whole panels
    const float* bias;    // of each output, in whole panels, or null
    int64_t outputs, inputs;

    int64_t panel_count() const { return (outputs + PANEL - 1) / PANEL; }
};

struct Input {
    bf16* rows;     // (rows, inputs)
    float* scales;  // of each row, once it is fixed point
};

inline __m512 load(const float* from) { return _mm512_loadu_ps(from); }
inline __m512 load(const bf16* from) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16));
}
inline void store(float* to, __m512 values) { _mm512_storeu_ps(to, values); }
inline void store(bf16* to, __m512 values) { _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(values)); }

// The same four bytes in all lanes.
inline __m512i spread(const void* from) {
    int32_t bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return _mm512_set1_epi32(bytes);
}

// sums (M, 64) += rows (M, 2 * pairs) x weights (pairs, 64, 2)
template <int M>
void tile(const bf16* rows, int64_t stride, const bf16* weights, int64_t pairs, float* sums) {
    __m512 sum[M][4];
    for (int m = 0; m < M; m++)
        for (int j = 0; j < 4; j++) sum[m][j] = load(sums + m * PANEL + j * LANES);
    for (int64_t k = 0; k < pairs; k++) {
        __m512bh weight[4];
        for (int j = 0; j < 4; j++) weight[j] = (__m512bh)_mm512_loadu_si512(weights + k * 2 * PANEL + j * 2 * LANES);
        for (int m = 0; m < M; m++) {
            const auto input = (__m512bh)spread(rows + m * stride + 2 * k);
            for (int j = 0; j < 4; j++) sum[m][j] = _mm512_dpbf16_ps(sum[m][j], weight[j], input);
        }
    }
    for (int m = 0; m < M; m++)
        for (int j = 0; j < 4; j++) store(sums + m * PANEL + j * LANES, sum[m][j]);
}

// Calls with<M>() for the number of rows that there are, or for MOST if there are more.
template <int MOST, class With>
void dispatch(int64_t rows, With&& with) {
    if constexpr (MOST > 1)
        if (rows < MOST) return dispatch<MOST - 1>(rows, with);
    with(std::integral_constant<int, MOST>());
}

// A row of bfloat16 to fixed point, x = scale * (256 * (high - 128) + low), in its place: all high bytes, then all low ones.
inline void fix(bf16* row, int64_t inputs, float* scale) {
    thread_local std::vector<uint8_t> planes;
    planes.resize(2 * inputs);
    auto most = _mm512_set1_ps(1e-30f);
    __mmask16 none = 0;
    for (int64_t i = 0; i < inputs; i += LANES) {
        most = _mm512_max_ps(most, _mm512_abs_ps(load(row + i)));
        none |= _mm512_cmp_ps_mask(load(row + i), load(row + i), _CMP_UNORD_Q);
    }
    *scale = none ? NAN : _mm512_reduce_max_ps(most) / 32512;  // 127 * 256
    const auto factor = _mm512_set1_ps(1 / *scale);
    for (int64_t i = 0; i < inputs; i += LANES) {
        const auto fixed = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(load(row + i), factor)), _mm512_set1_epi32(1 << 15));
        _mm_storeu_si128((__m128i*)&planes[i], _mm512_cvtepi32_epi8(_mm512_srli_epi32(fixed, 8)));
        _mm_storeu_si128((__m128i*)&planes[inputs + i], _mm512_cvtepi32_epi8(fixed));
    }
    std::memcpy(row, planes.data(), planes.size());
}

// out (M, 64) = rows (M, inputs) of fixed point x one panel of int8
template <int M>
void fixed_tile(const Input& input, int64_t first, const Matrix& matrix, int64_t panel, float* out) {
    __m512i high[M][4], low[M][4];
    for (int m = 0; m < M; m++)
        for (int j = 0; j < 4; j++) high[m][j] = low[m][j] = _mm512_setzero_si512();
    const auto* weights = (const int8_t*)matrix.panels + panel * matrix.inputs * PANEL;
    const auto* rows = (const uint8_t*)(input.rows + first * matrix.inputs);
    for (int64_t i = 0; i < matrix.inputs; i += 4) {
        __m512i weight[4];
        for (int j = 0; j < 4; j++) weight[j] = _mm512_loadu_si512(weights + i * PANEL + j * 4 * LANES);
        for (int m = 0; m < M; m++) {
            const auto upper = spread(rows + m * 2 * matrix.inputs + i), lower = spread(rows + (m * 2 + 1) * matrix.inputs + i);
            for (int j = 0; j < 4; j++) high[m][j] = _mm512_dpbusd_epi32(high[m][j], upper, weight[j]);
            for (int j = 0; j < 4; j++) low[m][j] = _mm512_dpbusd_epi32(low[m][j], lower, weight[j]);
        }
    }
#pragma GCC unroll 4  // else the sums are kept in memory
    for (int j = 0; j < 4; j++) {
        const int64_t at = panel * PANEL + j * LANES;
        const auto offset = _mm512_slli_epi32(_mm512_loadu_si512(matrix.sums + at), 7);  // 128 times
#pragma GCC unroll 3
        for (int m = 0; m < M; m++) {
            const auto sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(high[m][j], offset)), _mm512_set1_ps(256),
                                             _mm512_cvtepi32_ps(low[m][j]));
            const auto scale = _mm512_mul_ps(load(matrix.scales + at), _mm512_set1_ps(input.scales[first + m]));
            store(out + m * PANEL + j * LANES, _mm512_mul_ps(sum, scale));
        }
    }
}

// out (rows, 64) = input (rows, inputs) x one panel of the matrix, with its bias
inline void panel_product(const Matrix& matrix, int64_t panel, const Input& input, int64_t rows, float* out) {
    if (matrix.scales) {
        for (int64_t row = 0; row < rows; row += ROWS / 2)
            dispatch<ROWS / 2>(rows - row, [&](auto m) { fixed_tile<m>(input, row, matrix, panel, out + row * PANEL); });
    } else {
        std::memset(out, 0, rows * PANEL * sizeof(float));
        for (int64_t start = 0; start < matrix.inputs; start += DEPTH) {
            const int64_t depth = std::min<int64_t>(DEPTH, matrix.inputs - start);
            const bf16* weights = (const bf16*)matrix.panels + (panel * matrix.inputs + start) * PANEL;
            for (int64_t row = 0; row < rows; row += ROWS)
                dispatch<ROWS>(rows - row, [&](auto m) {
                    tile<m>(input.rows + row * matrix.inputs + start, matrix.inputs, weights, depth / 2, out + row * PANEL);
                });
        }
    }
    for (int j = 0; j < PANEL && matrix.bias; j += LANES)
        for (int64_t row = 0; row < rows; row++) {
            float* at = out + row * PANEL + j;
            store(at, _mm512_add_ps(load(at), load(matrix.bias + panel * PANEL + j)));
        }
}

// e^x to float precision; exactly 1 for 0
inline __m512 exponential(__m512 x) {
    x = _mm512_min_ps(_mm512_set1_ps(88), _mm512_max_ps(_mm512_set1_ps(-87), x));  // of NaN, the second is taken
    const auto n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    auto r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    auto y = _mm512_set1_ps(1.f / 5040);
    for (const float coefficient : {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f})
        y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(coefficient));
    return _mm512_scalef_ps(y, n);
}
