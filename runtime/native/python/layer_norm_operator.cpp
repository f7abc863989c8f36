//     LayerNorm(x, added, weight, bias[, next_step]) -> sum, y float32 [..., W], levels uint8 [..., W]
//
// sum = x + added, y its LayerNormalization over the last axis, levels y rounded. What is added may be left
// out, and each output. x and what is added may lack leading axes of the other, or have one entry there.
// weight, bias [W] and the step are constants. Attribute epsilon. See layer_norm.h.

#include "layer_norm.h"

#include <algorithm>

#include "kernels.h"
#include "operator_support.h"

#ifdef LLAMAVID_X86

namespace llamavid::onnxruntime {
namespace {

enum Input : size_t { kX, kAdded, kWeight, kBias, kNextStep };
enum Output : size_t { kSum, kY, kLevels };

constexpr size_t kRowsOfAPart = 16;

class Kernel {
  public:
    Kernel(const OrtApi *api, const OrtKernelInfo *info) : api_(api) {
        const auto weight = constant<float>(api, info, kWeight), bias = constant<float>(api, info, kBias);
        if (weight.size() != bias.size()) throw std::invalid_argument("weight and bias differ in size");
        weight_.assign(weight.data, weight.data + weight.size());
        bias_.assign(bias.data, bias.data + bias.size());
        norm_ = {weight_.size(), weight_.data(), bias_.data(), 0, 0};
        const char *epsilon = "epsilon";
        check(call(api, kKernelInfoGetAttributeFloat, info, epsilon, &norm_.epsilon));
        if (!is_given(api, info, kNextStep)) return;
        norm_.levels_per_1 = 1 / *constant<float>(api, info, kNextStep).data;
    }
    Kernel(const Kernel &) = delete;  // norm_ points into it

    void compute(OrtKernelContext *context) const {
        const auto x = input<float>(api_, context, kX), added = input<float>(api_, context, kAdded);
        const bool adds = !added.shape.empty();
        const bool longer = adds && added.size() > x.size();
        const auto &shape = longer ? added.shape : x.shape;
        if (shape.empty() || static_cast<size_t>(shape.back()) != norm_.width ||
            (adds && !repeats(longer ? x.shape : added.shape, shape))) {
            throw std::invalid_argument("the rows do not fit each other, or the weight");
        }
        const size_t width = norm_.width, rows = (longer ? added : x).size() / width;
        auto *sum = static_cast<float *>(output(api_, context, shape, kSum));
        auto *y = static_cast<float *>(output(api_, context, shape, kY));
        auto *levels = static_cast<uint8_t *>(output(api_, context, shape, kLevels));
        const size_t x_rows = std::max<size_t>(1, x.size() / width);
        const size_t added_rows = adds ? std::max<size_t>(1, added.size() / width) : 1;

        for_each_part(api_, context, (rows + kRowsOfAPart - 1) / kRowsOfAPart, [&](size_t part) {
            static thread_local std::vector<float> nobodys;
            if (!sum) nobodys.resize(width);
            for (size_t row = part * kRowsOfAPart; row < std::min(rows, (part + 1) * kRowsOfAPart); ++row) {
                const size_t at = row * width;
                normalize(norm_, {x.data + row % x_rows * width,
                                  adds ? added.data + row % added_rows * width : nullptr,
                                  sum ? sum + at : nobodys.data(), y ? y + at : nullptr,
                                  levels ? levels + at : nullptr});
            }
        });
    }

    const OrtApi *api() const { return api_; }

  private:
    // Whether rows of the one shape, over and over, are those of the other.
    static bool repeats(std::vector<int64_t> once, const std::vector<int64_t> &whole) {
        while (!once.empty() && once.front() == 1) once.erase(once.begin());
        return once.size() <= whole.size() && std::equal(once.rbegin(), once.rend(), whole.rbegin());
    }

    const OrtApi *api_;
    std::vector<float> weight_, bias_;
    LayerNorm norm_;
};

}  // namespace

OrtCustomOp layer_norm() {
    OrtCustomOp op = described<Kernel>();
    op.GetName = [](const OrtCustomOp *) { return "LayerNorm"; };
    op.GetInputTypeCount = [](const OrtCustomOp *) -> size_t { return 5; };
    op.GetInputType = [](const OrtCustomOp *, size_t) -> int { return kFloat; };
    op.GetInputCharacteristic = [](const OrtCustomOp *, size_t input) -> int {
        return input == kAdded || input == kNextStep ? kOptional : kRequired;
    };
    op.GetOutputTypeCount = [](const OrtCustomOp *) -> size_t { return 3; };
    op.GetOutputType = [](const OrtCustomOp *, size_t output) -> int {
        return output == kLevels ? kUint8 : kFloat;
    };
    op.GetOutputCharacteristic = [](const OrtCustomOp *, size_t) -> int { return kOptional; };
    return op;
}

}  // namespace llamavid::onnxruntime

#endif
