// What the operators share: ONNX Runtime's tensors and errors in C++.

#ifndef LLAMAVID_OPERATOR_SUPPORT_H
#define LLAMAVID_OPERATOR_SUPPORT_H

#include <exception>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "onnxruntime_abi.h"

namespace llamavid::onnxruntime {

// The operators that onnxruntime_operators.cpp registers.
OrtCustomOp int4_product();
OrtCustomOp int8_product(bool rounds);
OrtCustomOp attention(bool rounds);
OrtCustomOp layer_norm();

// A failed call of ONNX Runtime: handed back to it as it came.
struct Failed {
    OrtStatus *status;
};

inline void check(OrtStatus *status) {
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
    Number *data = nullptr;
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

// Whether an optional input, a constant, is there.
inline bool is_given(const OrtApi *api, const OrtKernelInfo *info, size_t input) {
    size_t count = 0;
    check(call(api, kKernelInfoGetInputCount, info, &count));
    int is_constant = 0;
    const OrtValue *value = nullptr;
    if (input < count) check(call(api, kKernelInfoGetConstantInput, info, input, &is_constant, &value));
    return is_constant != 0;
}

template <typename Number>
Tensor<const Number> constant(const OrtApi *api, const OrtKernelInfo *info, size_t input) {
    int is_constant = 0;
    const OrtValue *value = nullptr;
    check(call(api, kKernelInfoGetConstantInput, info, input, &is_constant, &value));
    if (!is_constant) throw std::invalid_argument("input " + std::to_string(input) + " is no constant");
    return tensor<Number>(api, value);
}

// What a run gives, of this shape; null where nobody asks for it.
inline void *output(const OrtApi *api, OrtKernelContext *context, const std::vector<int64_t> &shape,
                    size_t index = 0) {
    size_t count = 0;
    check(call(api, kKernelContextGetOutputCount, static_cast<const OrtKernelContext *>(context), &count));
    OrtValue *value = nullptr;
    const int64_t *sides = shape.data();
    if (index < count) check(call(api, kKernelContextGetOutput, context, index, sides, shape.size(), &value));
    void *data = nullptr;
    if (value) check(call(api, kGetTensorMutableData, value, &data));
    return data;
}

// Without a side where it is left out.
template <typename Number>
Tensor<const Number> input(const OrtApi *api, const OrtKernelContext *context, size_t index) {
    size_t count = 0;
    check(call(api, kKernelContextGetInputCount, context, &count));
    const OrtValue *value = nullptr;
    if (index < count) check(call(api, kKernelContextGetInput, context, index, &value));
    return value ? tensor<Number>(api, value) : Tensor<const Number>{};
}

// Of rows [..., K] times a weight [K, N]: [..., N].
inline std::vector<int64_t> product_shape(std::vector<int64_t> rows, size_t k, size_t n) {
    if (rows.empty() || static_cast<size_t>(rows.back()) != k) {
        throw std::invalid_argument("a row of x, or of its levels, is not as long as the weight has rows");
    }
    rows.back() = static_cast<int64_t>(n);
    return rows;
}

// `act(part)` for every part, spread over the session's threads.
template <typename Act>
void for_each_part(const OrtApi *api, const OrtKernelContext *context, size_t parts, const Act &act) {
    if (parts == 0) return;  // which ONNX Runtime refuses
    void (*one)(void *, size_t) = [](void *user, size_t part) { (*static_cast<const Act *>(user))(part); };
    void *user = const_cast<Act *>(&act);
    constexpr size_t kByItself = 0;  // how many parts a thread takes at a time
    check(call(api, kKernelContextParallelFor, context, one, parts, kByItself, user));
}

// An operator on the CPU whose kernel is made by `Kernel(api, info)` and run by `compute(context)`. The
// caller adds its name, and its inputs and outputs.
template <typename Kernel>
OrtCustomOp described() {
    OrtCustomOp op{};
    op.version = kVersion;
    op.GetExecutionProviderType = [](const OrtCustomOp *) -> const char * { return nullptr; };
    op.GetInputMemoryType = [](const OrtCustomOp *, size_t) { return 0; };
    op.GetInputCharacteristic = [](const OrtCustomOp *, size_t) -> int { return kRequired; };
    op.GetOutputCharacteristic = [](const OrtCustomOp *, size_t) -> int { return kRequired; };
    op.GetOutputTypeCount = [](const OrtCustomOp *) -> size_t { return 1; };
    op.GetOutputType = [](const OrtCustomOp *, size_t) -> int { return kFloat; };
    op.GetStartVersion = [](const OrtCustomOp *) { return 1; };
    op.GetEndVersion = [](const OrtCustomOp *) { return 1; };
    op.CreateKernelV2 = [](const OrtCustomOp *, const OrtApi *api, const OrtKernelInfo *info, void **kernel) {
        return guarded(api, [&] { *kernel = new Kernel(api, info); });
    };
    op.KernelComputeV2 = [](void *kernel, OrtKernelContext *context) {
        const auto *self = static_cast<const Kernel *>(kernel);
        return guarded(self->api(), [&] { self->compute(context); });
    };
    op.KernelDestroy = [](void *kernel) { delete static_cast<Kernel *>(kernel); };
    return op;
}

}  // namespace llamavid::onnxruntime

#endif
