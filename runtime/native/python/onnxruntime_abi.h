// What of ONNX Runtime's C interface an operator of one's own needs. Its wheels bring no header.
//
// Note [Places]
//     OrtApi is a struct of functions to whose end every version adds; a place never changes. Version 17
//     (1.17) has all of these. A kernel's inputs are owned by whoever runs the graph.

#ifndef LLAMAVID_ONNXRUNTIME_ABI_H
#define LLAMAVID_ONNXRUNTIME_ABI_H

#include <cstddef>
#include <cstdint>

extern "C" {

struct OrtApi;
struct OrtCustomOpDomain;
struct OrtKernelContext;
struct OrtKernelInfo;
struct OrtSessionOptions;
struct OrtShapeInferContext;
struct OrtStatus;  // null: all is well
struct OrtTensorTypeAndShapeInfo;
struct OrtValue;

struct OrtApiBase {
    const OrtApi *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)();
};

// An operator: what ONNX Runtime asks it. Of an older version than its own it reads less.
struct OrtCustomOp {
    uint32_t version;
    void *(*CreateKernel)(const OrtCustomOp *, const OrtApi *, const OrtKernelInfo *);
    const char *(*GetName)(const OrtCustomOp *);
    const char *(*GetExecutionProviderType)(const OrtCustomOp *);  // null: the CPU
    int (*GetInputType)(const OrtCustomOp *, size_t);
    size_t (*GetInputTypeCount)(const OrtCustomOp *);
    int (*GetOutputType)(const OrtCustomOp *, size_t);
    size_t (*GetOutputTypeCount)(const OrtCustomOp *);
    void (*KernelCompute)(void *, OrtKernelContext *);
    void (*KernelDestroy)(void *);
    int (*GetInputCharacteristic)(const OrtCustomOp *, size_t);
    int (*GetOutputCharacteristic)(const OrtCustomOp *, size_t);
    int (*GetInputMemoryType)(const OrtCustomOp *, size_t);
    int (*GetVariadicInputMinArity)(const OrtCustomOp *);
    int (*GetVariadicInputHomogeneity)(const OrtCustomOp *);
    int (*GetVariadicOutputMinArity)(const OrtCustomOp *);
    int (*GetVariadicOutputHomogeneity)(const OrtCustomOp *);
    OrtStatus *(*CreateKernelV2)(const OrtCustomOp *, const OrtApi *, const OrtKernelInfo *, void **);
    OrtStatus *(*KernelComputeV2)(void *, OrtKernelContext *);
    OrtStatus *(*InferOutputShape)(const OrtCustomOp *, OrtShapeInferContext *);
    int (*GetStartVersion)(const OrtCustomOp *);
    int (*GetEndVersion)(const OrtCustomOp *);
};

}  // extern "C"

namespace llamavid::onnxruntime {

constexpr uint32_t kVersion = 17;
enum Type : int { kFloat = 1, kUint8 = 2, kInt8 = 3 };
enum Code : int { kFail = 1, kInvalidArgument = 2 };
enum Characteristic : int { kRequired = 0, kOptional = 1 };

enum Place : size_t {  // Note [Places]
    kCreateStatus = 0,
    kCreateCustomOpDomain = 26,
    kCustomOpDomainAdd = 27,
    kAddCustomOpDomain = 28,
    kGetTensorMutableData = 51,
    kGetTensorElementType = 60,
    kGetDimensionsCount = 61,
    kGetDimensions = 62,
    kGetTensorTypeAndShape = 65,
    kKernelInfoGetAttributeFloat = 85,
    kKernelInfoGetAttributeInt64 = 86,
    kKernelContextGetInputCount = 88,
    kKernelContextGetOutputCount = 89,
    kKernelContextGetInput = 90,
    kKernelContextGetOutput = 91,
    kReleaseTensorTypeAndShapeInfo = 99,
    kKernelInfoGetInputCount = 230,
    kKernelInfoGetConstantInput = 249,
    kKernelContextParallelFor = 274,
};

// The function there, with arguments of exactly the types that it takes.
template <typename Result = OrtStatus *, typename... Arguments>
Result call(const OrtApi *api, Place place, Arguments... arguments) {
    using Function = Result (*)(Arguments...);
    return reinterpret_cast<const Function *>(api)[place](arguments...);
}

}  // namespace llamavid::onnxruntime

#endif
