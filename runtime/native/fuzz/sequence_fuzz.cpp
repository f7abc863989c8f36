// Any ids, slots and sizes: either refused, or gathered without a byte read or written outside the arrays.

#include <vector>

#include "bytes.h"
#include "llamavid/runtime.h"

namespace {

// Now and then none.
llamavid_dtype dtype_of(Bytes &input) {
    return static_cast<llamavid_dtype>(input.below(16) ? input.below(2) : 2);
}

// A block of just so many values.
std::vector<uint8_t> array_of(Bytes &input, size_t values, llamavid_dtype dtype) {
    std::vector<uint8_t> bytes(values * (dtype == LLAMAVID_FLOAT16 ? 2 : 4));
    input.fill(bytes.data(), bytes.size());
    return bytes;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Bytes input(data, size);
    llamavid_sequence_parts parts{};
    parts.vocabulary = static_cast<size_t>(input.below(5));
    parts.width = static_cast<size_t>(input.below(19));
    parts.frames = static_cast<size_t>(input.below(5));
    parts.content_tokens = static_cast<size_t>(input.below(4));
    parts.table_dtype = dtype_of(input);
    parts.context_dtype = dtype_of(input);
    parts.content_dtype = dtype_of(input);
    const llamavid_dtype dtype = dtype_of(input);

    std::vector<int64_t> wide;
    std::vector<int32_t> narrow;
    const int count = input.below(20);
    for (int i = 0; i < count; ++i) {
        const int kind = input.below(16);
        wide.push_back(kind == 0 ? input.take<int64_t>() : kind < 6 ? LLAMAVID_SLOT : kind % 4);
        narrow.push_back(static_cast<int32_t>(wide.back()));
    }
    parts.id_bytes = input.below(2) ? 4 : 8;
    parts.ids = parts.id_bytes == 4 ? static_cast<const void *>(narrow.data()) : wide.data();
    parts.id_count = wide.size();
    std::vector<llamavid_rows> slots;
    if (input.below(2)) {
        parts.slot_count = static_cast<size_t>(input.below(8));
        for (size_t i = 0; i < parts.slot_count; ++i) {
            const bool is_any = input.below(16) == 0;
            const auto first = is_any ? input.take<size_t>() : static_cast<size_t>(input.below(20));
            slots.push_back({first, is_any ? input.take<size_t>() : static_cast<size_t>(input.below(8))});
        }
        slots.reserve(1);
        parts.slots = slots.data();
    }
    const std::vector<uint8_t> table = array_of(input, parts.vocabulary * parts.width, parts.table_dtype);
    const std::vector<uint8_t> context = array_of(input, parts.frames * parts.width, parts.context_dtype);
    const std::vector<uint8_t> content =
        array_of(input, parts.frames * parts.content_tokens * parts.width, parts.content_dtype);
    parts.table = table.data();
    parts.context = context.data();
    parts.content = content.data();

    size_t length = 0;
    const llamavid_status status = llamavid_sequence_length(&parts, &length);
    if (status != LLAMAVID_OK) length = 1;
    const size_t bytes = length * parts.width * (dtype == LLAMAVID_FLOAT16 ? 2 : 4);
    std::vector<uint8_t> sequence(bytes + 1);  // never NULL
    const llamavid_status gathered = llamavid_sequence(&parts, dtype, sequence.data(), length);
    HOLDS(gathered == status || (gathered == LLAMAVID_BAD_FORMAT && dtype != 0 && dtype != 1));
    HOLDS(sequence.back() == 0);
    return 0;
}
