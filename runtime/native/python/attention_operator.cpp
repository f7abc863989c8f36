//     Attention(q, k, v[, q_bias[, mixed_bias]]) -> float32 [B, R, heads * d]
//     AttentionRounded(q, k, v, q_bias, mixed_bias, next_step) -> uint8 [B, R, heads * d]
//
// q [B, R, heads * d], k and v [B, K, heads * d], float32. Without k and v, q holds all three beside each
// other, [B, R, 3 heads * d]. Biases [heads * d] and the step, of one number, are constants; each bias may be
// left out. Attributes heads and scale. See attention.h.

#include "attention.h"

#include "kernels.h"
#include "operator_support.h"

#ifdef LLAMAVID_X86

namespace llamavid::onnxruntime {
namespace {

enum Input : size_t { kQ, kK, kV, kQBias, kMixedBias, kNextStep };

// Of this thread, kept from part to part.
void *scratch(size_t bytes) {
    struct alignas(64) Line {
        unsigned char bytes[64];
    };
    static thread_local std::vector<Line> lines;
    if (lines.size() * sizeof(Line) < bytes) lines.resize(bytes / sizeof(Line));
    return lines.data();
}

template <bool Rounds>
class Kernel {
  public:
    Kernel(const OrtApi *api, const OrtKernelInfo *info) : api_(api) {
        int64_t heads = 0;
        check(call(api, kKernelInfoGetAttributeInt64, info, static_cast<const char *>("heads"), &heads));
        check(call(api, kKernelInfoGetAttributeFloat, info, static_cast<const char *>("scale"), &scale_));
        if (heads < 1) throw std::invalid_argument("an attention has at least one head");
        heads_ = static_cast<size_t>(heads);
        q_bias_ = numbers(api, info, kQBias);
        mixed_bias_ = numbers(api, info, kMixedBias);
        if (Rounds) levels_per_1_ = 1 / *constant<float>(api, info, kNextStep).data;
    }

    void compute(OrtKernelContext *context) const {
        const Rows q = input<float>(api_, context, kQ), given = input<float>(api_, context, kK);
        const bool joined = given.shape.empty();
        const Rows k = joined ? q : given, v = joined ? q : input<float>(api_, context, kV);
        const size_t width = width_of(q, k, v, joined), batch = static_cast<size_t>(q.shape[0]);
        const AttentionShape shape{static_cast<size_t>(q.shape[1]), static_cast<size_t>(k.shape[1]), heads_,
                                   width / heads_, scale_};
        void *y = output(api_, context, {q.shape[0], q.shape[1], static_cast<int64_t>(width)});

        const size_t stride = joined ? 3 * width : width;
        const size_t parts = shape.queries ? attention_parts(shape) : 0;
        for_each_part(api_, context, batch * parts, [&](size_t part) {
            const size_t entry = part / parts, queries = entry * shape.queries, keys = entry * shape.keys;
            AttentionRows rows{};
            rows.q = q.data + queries * stride;
            rows.k = k.data + keys * stride + (joined ? width : 0);
            rows.v = v.data + keys * stride + (joined ? 2 * width : 0);
            rows.q_stride = rows.k_stride = rows.v_stride = stride;
            rows.q_bias = q_bias_.empty() ? nullptr : q_bias_.data();
            rows.mixed_bias = mixed_bias_.empty() ? nullptr : mixed_bias_.data();
            rows.mixed = Rounds ? nullptr : static_cast<float *>(y) + queries * width;
            rows.rounded = Rounds ? static_cast<uint8_t *>(y) + queries * width : nullptr;
            rows.levels_per_1 = levels_per_1_;
            rows.mixed_stride = width;
            attend(shape, rows, part % parts, scratch(attention_scratch(shape)));
        });
    }

    const OrtApi *api() const { return api_; }

  private:
    using Rows = Tensor<const float>;

    // Copied; empty where the input is left out.
    static std::vector<float> numbers(const OrtApi *api, const OrtKernelInfo *info, size_t index) {
        if (!is_given(api, info, index)) return {};
        const auto given = constant<float>(api, info, index);
        return {given.data, given.data + given.size()};
    }

    // heads * d, where all shapes fit each other.
    size_t width_of(const Rows &q, const Rows &k, const Rows &v, bool joined) const {
        if (q.shape.size() != 3 || k.shape.size() != 3 || k.shape != v.shape || q.shape[0] != k.shape[0] ||
            q.shape[2] != k.shape[2] || (q.shape[1] && !k.shape[1])) {
            throw std::invalid_argument("q is not [B, R, W] with k and v [B, K, W]");
        }
        const size_t columns = static_cast<size_t>(q.shape[2]), width = joined ? columns / 3 : columns;
        const bool whole = width && width % heads_ == 0 && width / heads_ % kHeadWidthStep == 0 &&
                           (!joined || columns % 3 == 0);
        if (!whole) throw std::invalid_argument("rows are not of heads whose width is a multiple of 8");
        for (const std::vector<float> *bias : {&q_bias_, &mixed_bias_}) {
            const bool fits = bias->empty() || bias->size() == width;
            if (!fits) throw std::invalid_argument("a bias is not as wide as the rows");
        }
        return width;
    }

    const OrtApi *api_;
    size_t heads_;
    float scale_, levels_per_1_ = 0;
    std::vector<float> q_bias_, mixed_bias_;
};

template <bool Rounds>
OrtCustomOp op_of() {
    OrtCustomOp op = described<Kernel<Rounds>>();
    op.GetName = [](const OrtCustomOp *) { return Rounds ? "AttentionRounded" : "Attention"; };
    op.GetInputTypeCount = [](const OrtCustomOp *) -> size_t { return Rounds ? 6 : 5; };
    op.GetInputType = [](const OrtCustomOp *, size_t) -> int { return kFloat; };
    op.GetInputCharacteristic = [](const OrtCustomOp *, size_t input) -> int {
        return input == kQ || input == kNextStep ? kRequired : kOptional;
    };
    op.GetOutputType = [](const OrtCustomOp *, size_t) -> int { return Rounds ? kUint8 : kFloat; };
    return op;
}

}  // namespace

OrtCustomOp attention(bool rounds) { return rounds ? op_of<true>() : op_of<false>(); }

}  // namespace llamavid::onnxruntime

#endif
