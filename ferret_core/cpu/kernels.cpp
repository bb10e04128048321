// What `kernels.py` calls: a product with packed weights, and a whole step of a LLaMA decoder.
//
// One parallel region for all layers; its threads take panels of a product, or tiles of the attention, as they are free.
#include <memory>

#include "attention.h"

struct Layer {
    const float* attention_norm;
    Matrix queries, keys, values, output;
    const float* mlp_norm;
    Matrix gate, up, down;
    bf16 *cached_keys, *cached_values;  // (blocks, key heads, 16 * width)
};

struct Decoder {
    int64_t layer_count, width, inner;
    Heads heads;
    float epsilon;
    const Layer* layers;
    const float* final_norm;
    Matrix head;
    const float *cosine, *sine;  // (positions, width of a head / 2)
};

struct Step {
    int64_t sequences, blocks;        // of the widest table
    const int32_t *lengths, *ends;    // of each sequence: positions to compute, and the one after them
    const int32_t* tables;            // (sequences, blocks)
    int64_t chosen_count;
    const int32_t* chosen;            // rows whose logits are wanted
};

namespace {

template <class T>
struct Buffer {  // of the heap, and not cleared
    explicit Buffer(int64_t count) : values(new (std::align_val_t(64)) T[count]) {}
    ~Buffer() { ::operator delete[](values, std::align_val_t(64)); }
    Buffer(const Buffer&) = delete;
    operator T*() const { return values; }
    T* values;
};

struct Row {  // a position of the step
    int32_t sequence, position;
    bool last;  // of its sequence
};

struct Tile {  // rows of a sequence's attention, counted in query heads of a key head
    int32_t sequence, first_row, first, count;
};

// Puts the norm of hidden (width) into a row of the next product's input.
void norm(const float* hidden, const float* weight, const Decoder& decoder, const Input& input, int64_t row) {
    auto squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < decoder.width; i += LANES) squares = _mm512_fmadd_ps(load(hidden + i), load(hidden + i), squares);
    const auto factor = _mm512_set1_ps(1 / std::sqrt(_mm512_reduce_add_ps(squares) / decoder.width + decoder.epsilon));
    bf16* out = input.rows + row * decoder.width;
    for (int64_t i = 0; i < decoder.width; i += LANES)
        store(out + i, _mm512_mul_ps(_mm512_mul_ps(load(hidden + i), factor), load(weight + i)));
    if (decoder.head.scales) fix(out, decoder.width, input.scales + row);
}

void rotate(float* head, const float* cosine, const float* sine, int64_t half) {
    for (int64_t i = 0; i < half; i += LANES) {
        const auto a = load(head + i), b = load(head + half + i), c = load(cosine + i), s = load(sine + i);
        store(head + i, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)));
        store(head + half + i, _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s)));
    }
}

// Adds a panel's product to its columns of hidden (rows, width).
void add(const Matrix& matrix, int64_t panel, const Input& input, int64_t rows, float* sums, float* hidden) {
    panel_product(matrix, panel, input, rows, sums);
    for (int64_t row = 0; row < rows; row++)
        for (int j = 0; j < PANEL; j += LANES) {
            float* at = hidden + row * matrix.outputs + panel * PANEL + j;
            store(at, _mm512_add_ps(load(at), load(sums + row * PANEL + j)));
        }
}

void copy(const float* sums, const Matrix& matrix, int64_t panel, int64_t rows, float* out, int64_t stride) {
    const int64_t count = std::min<int64_t>(PANEL, matrix.outputs - panel * PANEL);
    for (int64_t row = 0; row < rows; row++)
        std::memcpy(out + row * stride + panel * PANEL, sums + row * PANEL, count * sizeof(float));
}

}  // namespace

extern "C" {

int ferret_supported() {
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}

int64_t ferret_decoder_size() { return sizeof(Decoder); }
int64_t ferret_step_size() { return sizeof(Step); }

// out (rows, outputs), float, = input (rows, inputs) x matrix
void ferret_product(const Matrix* matrix, const bf16* input, int64_t rows, float* out, int threads) {
    const Buffer<bf16> copied(matrix->scales ? rows * matrix->inputs : 0);
    const Buffer<float> scales(rows);
    const Input from = {matrix->scales ? (bf16*)copied : const_cast<bf16*>(input), scales};  // only what is fixed is written
#pragma omp parallel num_threads(threads)
    {
        const Buffer<float> sums(rows * PANEL);
#pragma omp for
        for (int64_t row = 0; row < (matrix->scales ? rows : 0); row++) {
            std::memcpy(copied + row * matrix->inputs, input + row * matrix->inputs, matrix->inputs * sizeof(bf16));
            fix(copied + row * matrix->inputs, matrix->inputs, scales + row);
        }
#pragma omp for schedule(dynamic)
        for (int64_t panel = 0; panel < matrix->panel_count(); panel++) {
            panel_product(*matrix, panel, from, rows, sums);
            copy(sums, *matrix, panel, rows, out, matrix->outputs);
        }
    }
}

// hidden (rows, width) goes in as embeddings; logits (chosen, outputs of the head) come out.
void ferret_step(const Decoder* decoder, const Step* step, float* hidden, float* logits, int threads) {
    const Heads heads = decoder->heads;
    const int64_t width = decoder->width, shared = heads.shared(), wide = heads.queries * heads.width;
    const int64_t joint_heads = heads.queries + 2 * heads.keys, joint_width = joint_heads * heads.width;
    std::vector<Row> rows;
    std::vector<Tile> tiles;
    for (int32_t s = 0; s < step->sequences; s++) {
        const int32_t first = rows.size(), queries = step->lengths[s] * shared;
        for (int32_t i = 0; i < queries; i += ROWS) tiles.push_back({s, first, i, std::min(ROWS, queries - i)});
        for (int32_t i = step->lengths[s]; i; i--) rows.push_back({s, step->ends[s] - i, i == 1});
    }
    const int64_t count = rows.size();
    const Buffer<bf16> normed(count * width), queries(count * wide), attended(count * wide), gated(count * decoder->inner);
    const Buffer<float> joint(count * joint_width), scales(count);
    const bool fixed = decoder->head.scales;  // then all weights are int8

#pragma omp parallel num_threads(threads)
    {
        const Buffer<float> sums(count * PANEL), others(count * PANEL);
        for (int64_t l = 0; l < decoder->layer_count; l++) {
            const Layer& layer = decoder->layers[l];
#pragma omp for
            for (int64_t row = 0; row < count; row++)
                norm(hidden + row * width, layer.attention_norm, *decoder, {normed, scales}, row);

            const int64_t q = layer.queries.panel_count(), k = layer.keys.panel_count();
#pragma omp for schedule(dynamic)
            for (int64_t panel = 0; panel < q + 2 * k; panel++) {
                const Matrix& matrix = panel < q ? layer.queries : panel < q + k ? layer.keys : layer.values;
                const int64_t own = panel < q ? panel : (panel - q) % k;
                panel_product(matrix, own, {normed, scales}, count, sums);
                copy(sums, matrix, own, count, joint + (panel - own) * PANEL, joint_width);
            }

#pragma omp for
            for (int64_t row = 0; row < count; row++) {
                const auto [sequence, position, last] = rows[row];
                float* of_row = joint + row * joint_width;
                const int64_t half = heads.width / 2;
                for (int64_t h = 0; h < heads.queries + heads.keys; h++)
                    rotate(of_row + h * heads.width, decoder->cosine + position * half, decoder->sine + position * half, half);
                for (int64_t i = 0; i < wide; i += LANES) store(queries + row * wide + i, load(of_row + i));
                const int64_t block = step->tables[sequence * step->blocks + position / BLOCK];
                for (int64_t h = 0; h < heads.keys; h++) {
                    const float* key = of_row + wide + h * heads.width;
                    remember(key, key + heads.keys * heads.width, position % BLOCK, last, heads.width,
                             of_head(layer.cached_keys, block, h, heads), of_head(layer.cached_values, block, h, heads));
                }
            }

#pragma omp for collapse(2) schedule(dynamic)
            for (int64_t h = 0; h < heads.keys; h++)
                for (size_t t = 0; t < tiles.size(); t++) {
                    const Tile& tile = tiles[t];
                    const bf16* from[ROWS];
                    bf16* to[ROWS];
                    int32_t seen[ROWS];
                    for (int32_t i = 0; i < tile.count; i++) {
                        const int64_t row = tile.first_row + (tile.first + i) / shared;
                        const int64_t at = row * wide + (h * shared + (tile.first + i) % shared) * heads.width;
                        from[i] = queries + at, to[i] = attended + at, seen[i] = rows[row].position + 1;
                    }
                    const int32_t* table = step->tables + tile.sequence * step->blocks;
                    dispatch<ROWS>(tile.count, [&](auto m) {
                        attend<m>(from, seen, table, layer.cached_keys, layer.cached_values, h, heads, to);
                    });
                }

#pragma omp for
            for (int64_t row = 0; row < (fixed ? count : 0); row++) fix(attended + row * wide, wide, scales + row);
#pragma omp for schedule(dynamic)
            for (int64_t panel = 0; panel < layer.output.panel_count(); panel++)
                add(layer.output, panel, {attended, scales}, count, sums, hidden);

#pragma omp for
            for (int64_t row = 0; row < count; row++)
                norm(hidden + row * width, layer.mlp_norm, *decoder, {normed, scales}, row);

#pragma omp for schedule(dynamic)
            for (int64_t panel = 0; panel < layer.gate.panel_count(); panel++) {
                panel_product(layer.gate, panel, {normed, scales}, count, sums);
                panel_product(layer.up, panel, {normed, scales}, count, others);
                for (int64_t row = 0; row < count; row++)
                    for (int j = 0; j < PANEL; j += LANES) {
                        const auto gate = load(sums + row * PANEL + j), up = load(others + row * PANEL + j);
                        const auto down = _mm512_add_ps(_mm512_set1_ps(1), exponential(_mm512_sub_ps(_mm512_setzero_ps(), gate)));
                        store(gated + row * decoder->inner + panel * PANEL + j, _mm512_mul_ps(_mm512_div_ps(gate, down), up));
                    }
            }

#pragma omp for
            for (int64_t row = 0; row < (fixed ? count : 0); row++)
                fix(gated + row * decoder->inner, decoder->inner, scales + row);
#pragma omp for schedule(dynamic)
            for (int64_t panel = 0; panel < layer.down.panel_count(); panel++)
                add(layer.down, panel, {gated, scales}, count, sums, hidden);
        }

        const int64_t chosen = step->chosen_count;
#pragma omp for
        for (int64_t i = 0; i < chosen; i++)
            norm(hidden + step->chosen[i] * width, decoder->final_norm, *decoder, {normed, scales}, i);
#pragma omp for schedule(dynamic)
        for (int64_t panel = 0; panel < decoder->head.panel_count(); panel++) {
            panel_product(decoder->head, panel, {normed, scales}, chosen, sums);
            copy(sums, decoder->head, panel, chosen, logits, decoder->head.outputs);
        }
    }
}

}  // extern "C"
