// Operators that ONNX Runtime runs in our place: registered by
// `SessionOptions.register_custom_ops_library(llamavid.runtime._native.__file__)`, domain "llamavid".
//
//     Int8Product(levels, weight, step, scales[, bias]) -> float32 [..., N]
//     Int8ProductRounded(levels, weight, step, scales, next_step[, bias]) -> uint8 [..., N]
//
// levels uint8 [..., K], 128 above what they mean; weight int8 [K, N]; steps of one number, scales and bias
// [N], float32. All but the levels are constants of the graph. With the attribute gelu=1, GELU follows. See
// int8_product.h.

#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "int8_product.h"
#include "mapped_file.h"
#include "onnxruntime_abi.h"

#if defined(_WIN32)
#define EXPORTED __declspec(dllexport)
#else
#define EXPORTED __attribute__((visibility("default")))
#endif

namespace llamavid::onnxruntime {
namespace {

// A failed call of ONNX Runtime: handed back to it as it came.
struct Failed {
    OrtStatus *status;
};

void check(OrtStatus *status) {
    if (status) throw Failed{status};
}

// What `act` throws, as a status.
template <typename Act>
OrtStatus *guarded(const OrtApi *api, Act act) noexcept {
    try {
        act();
        return nullptr;
    } catch (const Failed &failed) {
        return failed.status;
    } catch (const std::exception &error) {
        return call(api, kCreateStatus, static_cast<int>(kFail), error.what());
    }
}

template <typename Number>
struct Tensor {
    Number *data;
    std::vector<int64_t> shape;

    size_t size() const {
        size_t product = 1;
        for (const int64_t side : shape) product *= static_cast<size_t>(side);
        return product;
    }
};

template <typename Number>
Tensor<const Number> tensor(const OrtApi *api, const OrtValue *value) {
    void *data = nullptr;
    check(call(api, kGetTensorMutableData, const_cast<OrtValue *>(value), &data));
    OrtTensorTypeAndShapeInfo *info = nullptr;
    check(call(api, kGetTensorTypeAndShape, value, &info));
    const auto *known = info;
    size_t count = 0;
    check(call(api, kGetDimensionsCount, known, &count));
    std::vector<int64_t> shape(count);
    check(call(api, kGetDimensions, known, shape.data(), count));
    call<void>(api, kReleaseTensorTypeAndShapeInfo, info);
    return {static_cast<const Number *>(data), std::move(shape)};
}

template <typename Number>
Tensor<const Number> constant(const OrtApi *api, const OrtKernelInfo *info, size_t input) {
    int is_constant = 0;
    const OrtValue *value = nullptr;
    check(call(api, kKernelInfoGetConstantInput, info, input, &is_constant, &value));
    if (!is_constant) throw std::invalid_argument("input " + std::to_string(input) + " is no constant");
    return tensor<Number>(api, value);
}

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
        const OrtKernelContext *reading = context;
        const OrtValue *input = nullptr;
        check(call(api_, kKernelContextGetInput, reading, static_cast<size_t>(kLevels), &input));
        const auto levels = tensor<uint8_t>(api_, input);
        std::vector<int64_t> shape = levels.shape;
        if (shape.empty() || static_cast<size_t>(shape.back()) != product_.k()) {
            throw std::invalid_argument("the levels are not as many as the weight has rows");
        }
        shape.back() = static_cast<int64_t>(product_.n());
        const int64_t *sides = shape.data();
        OrtValue *output = nullptr;
        check(call(api_, kKernelContextGetOutput, context, size_t{0}, sides, shape.size(), &output));
        void *data = nullptr;
        check(call(api_, kGetTensorMutableData, output, &data));

        Int8Rows rows = rows_;
        rows.levels = levels.data;
        rows.rows = levels.size() / product_.k();
        if (Rounds) {
            rows.rounded = static_cast<uint8_t *>(data);
        } else {
            rows.floats = static_cast<float *>(data);
        }
        Work work{product_, rows};
        void *user = &work;
        constexpr size_t kByItself = 0;  // how many parts a thread takes at a time
        check(call(api_, kKernelContextParallelFor, reading, &Work::part, product_.parts(rows.rows), kByItself, user));
    }

    const OrtApi *api() const { return api_; }

  private:
    struct Work {
        const Int8Product &product;
        const Int8Rows &rows;

        static void part(void *user, size_t index) {
            const auto *work = static_cast<const Work *>(user);
            work->product.multiply(work->rows, index);
        }
    };

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

// What ONNX Runtime asks of the operator.
template <bool Rounds>
OrtCustomOp described() {
    OrtCustomOp op{};
    op.version = kVersion;
    op.GetName = [](const OrtCustomOp *) { return Rounds ? "Int8ProductRounded" : "Int8Product"; };
    op.GetExecutionProviderType = [](const OrtCustomOp *) -> const char * { return nullptr; };
    op.GetInputTypeCount = [](const OrtCustomOp *) -> size_t { return Rounds ? 6 : 5; };
    op.GetInputType = [](const OrtCustomOp *, size_t input) -> int {
        return input == kLevels ? kUint8 : input == kWeight ? kInt8 : kFloat;
    };
    op.GetInputCharacteristic = [](const OrtCustomOp *, size_t input) -> int {
        return input == (Rounds ? 5 : 4) ? kOptional : kRequired;  // the bias
    };
    op.GetInputMemoryType = [](const OrtCustomOp *, size_t) { return 0; };
    op.GetOutputTypeCount = [](const OrtCustomOp *) -> size_t { return 1; };
    op.GetOutputType = [](const OrtCustomOp *, size_t) -> int { return Rounds ? kUint8 : kFloat; };
    op.GetOutputCharacteristic = [](const OrtCustomOp *, size_t) -> int { return kRequired; };
    op.GetStartVersion = [](const OrtCustomOp *) { return 1; };
    op.GetEndVersion = [](const OrtCustomOp *) { return 1; };
    op.CreateKernelV2 = [](const OrtCustomOp *, const OrtApi *api, const OrtKernelInfo *info, void **kernel) {
        return guarded(api, [&] { *kernel = new Kernel<Rounds>(api, info); });
    };
    op.KernelComputeV2 = [](void *kernel, OrtKernelContext *context) {
        const auto *self = static_cast<const Kernel<Rounds> *>(kernel);
        return guarded(self->api(), [&] { self->compute(context); });
    };
    op.KernelDestroy = [](void *kernel) { delete static_cast<Kernel<Rounds> *>(kernel); };
    return op;
}

// Made once: sessions refer to it as long as they live.
OrtCustomOpDomain *domain(const OrtApi *api) {
    static const OrtCustomOp products[] = {described<false>(), described<true>()};
    static OrtCustomOpDomain *const made = [&] {
        OrtCustomOpDomain *fresh = nullptr;
        check(call(api, kCreateCustomOpDomain, "llamavid", &fresh));
        for (const OrtCustomOp &op : products) check(call(api, kCustomOpDomainAdd, fresh, &op));
        return fresh;
    }();
    return made;
}

}  // namespace
}  // namespace llamavid::onnxruntime

extern "C" EXPORTED OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
    using namespace llamavid::onnxruntime;
    const OrtApi *api = base->GetApi(kVersion);
    if (!api) return nullptr;  // too old, which it has said; without a version there is no status either
    return guarded(api, [&] { check(call(api, kAddCustomOpDomain, options, domain(api))); });
}
