// What can be called, and with what: plain structures that Python fills in (kernels.py has the same ones).
// Every call computes the first `rows` rows of its tensors, the tokens of a step.
#pragma once

#include <cstdint>

#include "vectors.hpp"

enum Operation : int64_t { LINEAR = 0, GATED = 1, NORM = 2, ROTATE = 3, WRITE = 4, ATTEND = 5, ADD = 6 };
enum Format : int64_t { BF16 = 0, INT8 = 1, INT4 = 2 };
enum Activation : int64_t { SILU = 0, GELU_TANH = 1 };

// A weight [outputs, inputs], packed for the kernels; see the gemm files for the layouts.
struct Matrix {
    int64_t format, outputs, inputs;
    const void* numbers;
    const void* scales;  // INT8: float32; INT4: float16
    const void* minima;  // INT4: float16
    const bf16* bias;    // or null
};

struct Call {
    int64_t operation;
};

struct Linear : Call {  // output[row] = weight @ input[row] + bias
    Matrix weight;
    const bf16* input;
    int64_t input_stride;
    bf16* output;
    int64_t output_stride;
    void* scratch;  // quantized: scratch_bytes() for the rows
};

struct Gated : Call {  // output[row] = activation(gate @ input[row]) * (up @ input[row])
    Matrix gate, up;
    const bf16* input;
    int64_t input_stride;
    bf16* output;
    int64_t output_stride;
    int64_t activation;
    void* scratch;
};

struct Norm : Call {  // `repeat` vectors a row, each `size` long: output = input / rms(input) * (weight + offset)
    const bf16* input;
    int64_t row_stride, repeat_stride;
    bf16* output;  // rows and vectors dense
    const bf16* weight;
    int64_t repeat, size;
    float epsilon, offset;
};

struct Rotate : Call {  // rotary positions, the halves of a head against each other
    const bf16 *queries, *keys, *cosines, *sines;
    int64_t query_row, query_head, key_row, key_head, angle_row;
    bf16 *rotated_queries, *rotated_keys;  // dense [rows, heads, dim]
    int64_t query_heads, key_heads, dim;
};

struct Write : Call {  // keys and values to their places in the cache, whose layout attention.cpp tells
    const bf16 *keys, *values;
    int64_t key_row, key_head, value_row, value_head;
    bf16 *cached_keys, *cached_values;
    const int32_t *blocks, *offsets;
    int64_t heads, key_dim, value_dim, block_tokens;
};

struct Attend : Call {  // every token against its request's cached tokens first <= position < length
    const bf16* queries;
    int64_t query_row, query_head;
    bf16* output;  // dense [rows, heads * group, value_dim]
    const bf16 *cached_keys, *cached_values;
    const int32_t *table, *table_starts, *firsts, *lengths;
    const int32_t* tiles;  // where each begins, and where the last ends; a tile's tokens are one request's
    const int64_t* tile_count;
    int64_t heads, group, key_dim, value_dim;
    float scale;
    float* scratch;  // scratch_floats a thread: 48 rows of 64 scores, values, two more, and 64 weights in bf16
    int64_t scratch_floats;
};

struct Add : Call {
    const bf16 *left, *right;
    bf16* output;
    int64_t size;
};

// A call is computed in one or two phases, a phase in parts, in any order and by any thread.
struct Cut {
    long rows;
    int threads;
};

// The first phase of products with quantized weights: the inputs are rounded.
long rounding_parts(const Matrix& weight, const Cut& cut);
void round(const Matrix& weight, const bf16* input, long input_stride, void* scratch, const Cut& cut, long part);

// Products with one weight, or with a gate and what it gates.
struct Product {
    const Matrix* weights[2];
    int count;
    int64_t activation;
    const bf16* input;
    long input_stride;
    bf16* output;
    long output_stride;
    void* scratch;
};
long product_parts(const Product& product, const Cut& cut);
void multiply(const Product& product, const Cut& cut, long part);            // bf16
void multiply_quantized(const Product& product, const Cut& cut, long part);  // int8, int4

long parts(const Norm& call, const Cut& cut);
long parts(const Rotate& call, const Cut& cut);
long parts(const Write& call, const Cut& cut);
long parts(const Attend& call, const Cut& cut);
long parts(const Add& call, const Cut& cut);
void compute(const Norm& call, const Cut& cut, long part);
void compute(const Rotate& call, const Cut& cut, long part);
void compute(const Write& call, const Cut& cut, long part);
void compute(const Attend& call, const Cut& cut, long part, int thread);
void compute(const Add& call, const Cut& cut, long part);

// The part'th of `parts` even ranges of count things.
inline void range(long count, long parts, long part, long* begin, long* end) {
    *begin = count * part / parts;
    *end = count * (part + 1) / parts;
}
