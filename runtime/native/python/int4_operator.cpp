//     Int4Product(x, weight, scales) -> float32 [..., N]
//
// x float32 [..., K]; weight uint8 [K, N / 2], ONNX's int4 [K, N] byte by byte, and scales float32
// [K / block, N], both constants of the graph. See int4_product.h.

#include "int4_product.h"
#include "kernels.h"
#include "mapped_file.h"
#include "operator_support.h"

#ifdef LLAMAVID_X86

namespace llamavid::onnxruntime {
namespace {

enum Input : size_t { kX, kWeight, kScales };

constexpr size_t kBlocks[] = {32, 64, 128, 256};

// What one run needs for its rounded rows: kept by the thread that runs the graph, for the next product.
struct Scratch {
    std::vector<int8_t> levels;
    std::vector<float> scales;
    std::vector<int32_t> starts;
};

template <typename Number>
Number *at_least(std::vector<Number> &numbers, size_t count) {
    if (numbers.size() < count) numbers.resize(count);
    return numbers.data();
}

class Kernel {
  public:
    Kernel(const OrtApi *api, const OrtKernelInfo *info) : api_(api), product_(product(api, info)) {}

    void compute(OrtKernelContext *context) const {
        const auto x = input<float>(api_, context, kX);
        const auto shape = product_shape(x.shape, product_.k(), product_.n());
        thread_local Scratch scratch;
        Int4Rows rows{};
        rows.rows = x.size() / product_.k();
        rows.x = x.data;
        rows.levels = at_least(scratch.levels, x.size());
        rows.scales = at_least(scratch.scales, rows.rows * product_.blocks());
        rows.starts = at_least(scratch.starts, rows.rows * product_.blocks());
        rows.y = static_cast<float *>(output(api_, context, shape));
        for_each_part(api_, context, rows.rows, [&](size_t row) { product_.round(rows, row); });
        for_each_part(api_, context, product_.parts(rows.rows),
                      [&](size_t part) { product_.multiply(rows, part); });
    }

    const OrtApi *api() const { return api_; }

  private:
    static Int4Product product(const OrtApi *api, const OrtKernelInfo *info) {
        const auto weight = constant<uint8_t>(api, info, kWeight);
        const auto scales = constant<float>(api, info, kScales);
        if (weight.shape.size() != 2 || scales.shape.size() != 2 || scales.shape[1] != 2 * weight.shape[1]) {
            throw std::invalid_argument("the weight is not [K, N / 2] with scales [K / block, N]");
        }
        const auto k = static_cast<size_t>(weight.shape[0]), n = static_cast<size_t>(scales.shape[1]);
        const auto blocks = static_cast<size_t>(scales.shape[0]);
        for (const size_t block : kBlocks) {
            if (!k || !n || block * blocks != k) continue;
            Int4Product packed({weight.data, scales.data, k, n, block});
            let_go(weight.data, weight.size());  // else a weight is in memory twice
            let_go(scales.data, scales.size() * sizeof(float));
            return packed;
        }
        throw std::invalid_argument("a column is not whole blocks of 32, 64, 128 or 256");
    }

    const OrtApi *api_;
    Int4Product product_;
};

}  // namespace

OrtCustomOp int4_product() {
    OrtCustomOp op = described<Kernel>();
    op.GetName = [](const OrtCustomOp *) { return "Int4Product"; };
    op.GetInputTypeCount = [](const OrtCustomOp *) -> size_t { return 3; };
    op.GetInputType = [](const OrtCustomOp *, size_t input) -> int {
        return input == kWeight ? kUint8 : kFloat;
    };
    return op;
}

}  // namespace llamavid::onnxruntime

#endif
