// Operators that ONNX Runtime runs in the place of its own: registered by
// `SessionOptions.register_custom_ops_library(llamavid.runtime._native.__file__)`, domain "llamavid".

#include "kernels.h"
#include "operator_support.h"

#ifdef LLAMAVID_X86

#if defined(_WIN32)
#define EXPORTED __declspec(dllexport)
#else
#define EXPORTED __attribute__((visibility("default")))
#endif

namespace llamavid::onnxruntime {
namespace {

// Made once: sessions refer to it as long as they live.
OrtCustomOpDomain *domain(const OrtApi *api) {
    static const OrtCustomOp ops[] = {int4_product(),   int8_product(false), int8_product(true),
                                      attention(false), attention(true),     layer_norm()};
    static OrtCustomOpDomain *const made = [&] {
        OrtCustomOpDomain *fresh = nullptr;
        check(call(api, kCreateCustomOpDomain, "llamavid", &fresh));
        for (const OrtCustomOp &op : ops) check(call(api, kCustomOpDomainAdd, fresh, &op));
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

#endif
