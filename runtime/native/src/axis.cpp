// The weights of a resize, in double, as PIL computes them.
//
// Each step on a double stands alone, in the order of runtime/pixels.py: compile without
// contraction (-ffp-contract=off) and without -ffast-math.

#include "axis.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

#ifdef __FAST_MATH__
#error "compile without -ffast-math: the result would not be PIL's"
#endif
static_assert(FLT_EVAL_METHOD == 0 || FLT_EVAL_METHOD == 16, "float and double must round at every step");

namespace llamavid {
namespace {

constexpr double kKernelReach = 2.0;  // of the bicubic kernel to either side, in samples

// Keys' kernel with a = -0.5, in PIL's order of operations.
double bicubic(double offset) {
    const double x = std::abs(offset);
    if (x < 1.0) return (1.5 * x - 2.5) * x * x + 1.0;
    if (x < kKernelReach) return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5;
    return 0.0;
}

int32_t fixed_point(double weight) {
    return static_cast<int32_t>(weight * (1 << kFractionBits) + (weight < 0.0 ? -0.5 : 0.5));
}

}  // namespace

Axis axis_of(int32_t source, int64_t resized, int32_t keep, const Kernels &kernels) {
    const double scale = static_cast<double>(source) / static_cast<double>(resized);
    const double stretch = std::max(scale, 1.0);
    const double reach = kKernelReach * stretch;
    const double inverse = 1.0 / stretch;
    const int32_t longest = std::min(static_cast<int32_t>(std::ceil(reach)) * 2 + 1, source);
    const int64_t skipped = (resized - keep) / 2;

    Axis axis{{}, {}, (longest + kernels.block - 1) / kernels.block * kernels.block};
    axis.spans.reserve(static_cast<size_t>(keep));
    axis.weights.resize(static_cast<size_t>(keep) * static_cast<size_t>(axis.taps));
    std::vector<double> weights(static_cast<size_t>(longest));
    for (int32_t i = 0; i < keep; ++i) {
        const double center = (static_cast<double>(skipped + i) + 0.5) * scale;
        const int32_t first = std::max(static_cast<int32_t>(center - reach + 0.5), 0);
        const int32_t end = std::min(static_cast<int32_t>(center + reach + 0.5), source);
        const size_t count = static_cast<size_t>(end - first);
        double sum = 0.0;
        for (size_t tap = 0; tap < count; ++tap) {
            const double sample = static_cast<double>(first) + static_cast<double>(tap);
            weights[tap] = bicubic((sample - center + 0.5) * inverse);
            sum += weights[tap];
        }
        int32_t *fixed = &axis.weights[static_cast<size_t>(i) * static_cast<size_t>(axis.taps)];
        for (size_t tap = 0; tap < count; ++tap) fixed[tap] = fixed_point(weights[tap] / sum);
        for (int32_t tap = 0; tap < axis.taps; tap += kernels.block) kernels.arrange(fixed + tap);
        axis.spans.push_back({first, end - first});
    }
    return axis;
}

}  // namespace llamavid
