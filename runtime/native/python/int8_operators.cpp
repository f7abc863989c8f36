//     Int8Product(levels, weight, step, scales[, bias]) -> float32 [..., N]
//     Int8ProductRounded(levels, weight, step, scales, next_step[, bias]) -> uint8 [..., N]
//
// levels uint8 [..., K], 128 above what they mean; weight int8 [K, N]; steps of one number, scales and bias
// [N], float32. All but the levels are constants of the graph. With the attribute gelu=1, GELU follows. See
// int8_product.h.

#include "int8_product.h"
#include "mapped_file.h"
#include "kernels.h"
#include "operator_support.h"

#ifdef LLAMAVID_X86

namespace llamavid::onnxruntime {
namespace {

enum Input : size_t { kLevels, kWeight, kStep, kScales, kNextStep };

constexpr size_t kMostSummed = 65536;  // Note [Levels] of int8_product.h

template <bool Rounds>
class Kernel {
  public:
    Kernel(const OrtApi *api, const OrtKernelInfo *info) : api_(api), product_(product(api, info)) {
        int64_t gelu = 0;
        check(call(api, kKernelInfoGetAttributeInt64, info, static_cast<const char *>("gelu"), &gelu));
        rows_.gelu = gelu != 0;
        if (Rounds) rows_.levels_per_1 = 1 / *constant<float>(api, info, kNextStep).data;
    }

    void compute(OrtKernelContext *context) const {
        const auto levels = input<uint8_t>(api_, context, kLevels);
        void *y = output(api_, context, product_shape(levels.shape, product_.k(), product_.n()));
        Int8Rows rows = rows_;
        rows.levels = levels.data;
        rows.rows = levels.size() / product_.k();
        if (Rounds) {
            rows.rounded = static_cast<uint8_t *>(y);
        } else {
            rows.floats = static_cast<float *>(y);
        }
        for_each_part(api_, context, product_.parts(rows.rows),
                      [&](size_t part) { product_.multiply(rows, part); });
    }

    const OrtApi *api() const { return api_; }

  private:
    static Int8Product product(const OrtApi *api, const OrtKernelInfo *info) {
        const auto weight = constant<int8_t>(api, info, kWeight);
        const auto scales = constant<float>(api, info, kScales);
        if (weight.shape.size() != 2 || static_cast<size_t>(weight.shape[1]) != scales.size()) {
            throw std::invalid_argument("the weight is not [K, N] with N scales");
        }
        const size_t k = static_cast<size_t>(weight.shape[0]), bias_at = Rounds ? kNextStep + 1 : kNextStep;
        if (k % 4 || k > kMostSummed) throw std::invalid_argument("K is no multiple of 4, or beyond 65,536");
        size_t inputs = 0;
        check(call(api, kKernelInfoGetInputCount, info, &inputs));
        const float *bias = inputs > bias_at ? constant<float>(api, info, bias_at).data : nullptr;
        std::vector<float> factors(scales.data, scales.data + scales.size());
        for (float &factor : factors) factor *= *constant<float>(api, info, kStep).data;
        Int8Product packed({weight.data, k, factors.size(), factors.data(), bias});
        let_go(weight.data, weight.size());  // else a weight is in memory twice
        return packed;
    }

    const OrtApi *api_;
    Int8Product product_;
    Int8Rows rows_{};
};

template <bool Rounds>
OrtCustomOp op_of() {
    OrtCustomOp op = described<Kernel<Rounds>>();
    op.GetName = [](const OrtCustomOp *) { return Rounds ? "Int8ProductRounded" : "Int8Product"; };
    op.GetInputTypeCount = [](const OrtCustomOp *) -> size_t { return Rounds ? 6 : 5; };
    op.GetInputType = [](const OrtCustomOp *, size_t input) -> int {
        return input == kLevels ? kUint8 : input == kWeight ? kInt8 : kFloat;
    };
    op.GetInputCharacteristic = [](const OrtCustomOp *, size_t input) -> int {
        return input == (Rounds ? 5 : 4) ? kOptional : kRequired;  // the bias
    };
    op.GetOutputType = [](const OrtCustomOp *, size_t) -> int { return Rounds ? kUint8 : kFloat; };
    return op;
}

}  // namespace

OrtCustomOp int8_product(bool rounds) { return rounds ? op_of<true>() : op_of<false>(); }

}  // namespace llamavid::onnxruntime

#endif
