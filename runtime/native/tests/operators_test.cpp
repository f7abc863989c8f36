// The kernels behind ONNX Runtime's operators, against loops that anybody can read: what the tests in Python
// compare in full, here for memory that is exactly as long as it must be, under the sanitizers.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../src/attention.h"
#include "../src/int4_product.h"
#include "../src/int8_product.h"
#include "../src/kernels.h"
#include "../src/layer_norm.h"

#ifndef LLAMAVID_X86

int main() { return 77; }

#else

using namespace llamavid;

namespace {

uint32_t state = 1;

uint32_t drawn() {  // xorshift
    state ^= state << 13;
    state ^= state >> 17;
    return state ^= state << 5;
}

std::vector<float> numbers(size_t count) {
    std::vector<float> drawn_ones(count);
    for (float &number : drawn_ones) number = static_cast<float>(drawn() % 2001) / 1000 - 1;
    return drawn_ones;
}

template <typename Level>
std::vector<Level> levels(size_t count) {
    std::vector<Level> drawn_ones(count);
    for (Level &level : drawn_ones) level = static_cast<Level>(drawn());
    return drawn_ones;
}

void check_near(const char *what, double found, double expected, double within) {
    if (std::fabs(found - expected) <= within) return;
    std::fprintf(stderr, "%s: %.9g is not %.9g\n", what, found, expected);
    std::exit(1);
}

void products(size_t rows, size_t k, size_t n) {
    const auto x = levels<uint8_t>(rows * k);
    const auto weight = levels<int8_t>(k * n);
    const auto factors = numbers(n), bias = numbers(n);
    const Int8Product product({weight.data(), k, n, factors.data(), bias.data()});
    std::vector<float> y(rows * n);
    std::vector<uint8_t> rounded(rows * n);
    Int8Rows floats{x.data(), rows, false, y.data(), nullptr, 0};
    Int8Rows bytes{x.data(), rows, true, nullptr, rounded.data(), 1e-3f};
    for (size_t part = 0; part < product.parts(rows); ++part) {
        product.multiply(floats, part);
        product.multiply(bytes, part);
    }
    for (size_t i = 0; i < rows * n; ++i) {
        int64_t sum = 0;
        for (size_t j = 0; j < k; ++j) sum += (x[i / n * k + j] - 128) * weight[j * n + i % n];
        const float expected = static_cast<float>(sum) * factors[i % n] + bias[i % n];
        check_near("a product", y[i], expected, 0);
        const double gelu = expected * 0.5 * (1 + std::erf(expected / std::sqrt(2.0)));
        check_near("a rounded one", rounded[i], std::fmin(std::fmax(gelu * 1e-3f, -128), 127) + 128, 0.51);
    }
}

void int4_products(size_t rows, size_t k, size_t n, size_t block) {
    const auto x = numbers(rows * k), scales = numbers(k / block * n);
    const auto weight = levels<uint8_t>(k * n / 2);
    const Int4Product product({weight.data(), scales.data(), k, n, block});
    std::vector<int8_t> rounded(rows * k);
    std::vector<float> steps(rows * k / block), y(rows * n);
    std::vector<int32_t> starts(steps.size());
    const Int4Rows all{rows, x.data(), rounded.data(), steps.data(), starts.data(), y.data()};
    for (size_t row = 0; row < rows; ++row) product.round(all, row);
    for (size_t part = 0; part < product.parts(rows); ++part) product.multiply(all, part);
    for (size_t i = 0; i < rows * k; ++i) {
        const float step = steps[i / block];
        check_near("a rounded number", rounded[i] * step, x[i], 0.501 * step);
    }
    for (size_t i = 0; i < rows * n; ++i) {
        double expected = 0;
        for (size_t j = 0; j < k; ++j) {
            const int nibble = weight[(j * n + i % n) / 2] >> (i % 2 * 4) & 15;
            const double row_step = steps[(i / n * k + j) / block];
            const double step = row_step * scales[j / block * n + i % n];
            expected += rounded[i / n * k + j] * (nibble < 8 ? nibble : nibble - 16) * step;
        }
        check_near("an int4 product", y[i], expected, 1e-5 * static_cast<double>(k));
    }
}

void attentions(size_t queries, size_t keys, size_t width) {
    const size_t heads = 2, stride = 3 * heads * width;
    const AttentionShape shape{queries, keys, heads, width, 0.3f};
    const auto q = numbers(queries * stride), kv = numbers(keys * stride), bias = numbers(heads * width);
    std::vector<float> mixed(queries * heads * width);
    AttentionRows rows{};
    rows.q = q.data();
    rows.k = kv.data() + heads * width;
    rows.v = kv.data() + 2 * heads * width;
    rows.q_stride = rows.k_stride = rows.v_stride = stride;
    rows.mixed = mixed.data();
    rows.mixed_stride = heads * width;
    rows.q_bias = rows.mixed_bias = bias.data();
    void *scratch = std::aligned_alloc(64, attention_scratch(shape));
    for (size_t part = 0; part < attention_parts(shape); ++part) attend(shape, rows, part, scratch);
    std::free(scratch);
    for (size_t i = 0; i < mixed.size(); ++i) {
        const size_t query = i / (heads * width), head = i % (heads * width) / width;
        double sum = 0, expected = 0;
        for (size_t key = 0; key < keys; ++key) {
            double score = 0;
            for (size_t d = head * width; d < (head + 1) * width; ++d) {
                score += (q[query * stride + d] + bias[d]) * rows.k[key * stride + d];
            }
            const double weight = std::exp(score * shape.scale);
            sum += weight;
            expected += weight * rows.v[key * stride + i % (heads * width)];
        }
        check_near("an attention", mixed[i], expected / sum + bias[i % (heads * width)], 1e-5);
    }
}

void norms(size_t width) {
    const auto x = numbers(width), added = numbers(width), weight = numbers(width), bias = numbers(width);
    std::vector<float> sum(width), y(width);
    std::vector<uint8_t> rounded(width);
    const LayerNorm norm{width, weight.data(), bias.data(), 1e-6f, 50};
    normalize(norm, {x.data(), added.data(), sum.data(), y.data(), rounded.data()});
    double mean = 0, squares = 0;
    for (const float number : sum) mean += number / static_cast<double>(width);
    for (const float number : sum) squares += (number - mean) * (number - mean) / static_cast<double>(width);
    for (size_t i = 0; i < width; ++i) {
        check_near("a sum", sum[i], x[i] + added[i], 0);
        const double expected = (sum[i] - mean) / std::sqrt(squares + 1e-6) * weight[i] + bias[i];
        check_near("a norm", y[i], expected, 1e-4);
        check_near("a rounded one", rounded[i], std::fmin(std::fmax(expected * 50, -128), 127) + 128, 0.51);
    }
}

}  // namespace

int main() {
    if (!runs_operators()) return 77;
    for (const size_t rows : {1, 5, 6, 13}) {
        for (const size_t n : {1, 16, 63, 64, 65, 130}) products(rows, 4 * rows, n);
    }
    products(400, 4096, 3);  // of several chunks
    for (const size_t rows : {1, 4, 5, 13}) {
        for (const size_t n : {2, 64, 66, 130}) int4_products(rows, 256 * rows, n, n < 66 ? 32 : 256);
    }
    int4_products(400, 4096, 4, 128);
    for (const size_t queries : {1, 16, 17, 50}) {
        for (const size_t keys : {1, 7, 33, 321}) attentions(queries, keys, queries % 2 ? 8 : 24);
    }
    for (const size_t width : {1, 15, 16, 17, 88}) norms(width);
    std::puts("operators: ok");
    return 0;
}

#endif
