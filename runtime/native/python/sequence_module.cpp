// The Python face of llamavid_sequence. What it is given is checked in runtime/assembly.py.

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <optional>
#include <vector>

#include "module.h"

namespace nb = nanobind;

namespace {

using Ids = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Slots = nb::ndarray<const int64_t, nb::shape<-1, 2>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Tokens = nb::ndarray<nb::ro, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Sequence = nb::ndarray<nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void sequence(const Ids &ids, const Table &table, const Tokens &context, const Tokens &content,
              const std::optional<Slots> &slots, const Sequence &sequence) {
    const size_t width = sequence.shape(1), frames = context.shape(0);
    if (table.shape(1) != width || context.shape(2) != width || content.shape(2) != width ||
        context.shape(1) != 1 || content.shape(0) != frames) {
        throw nb::value_error("the shapes are not [V, D], [T, 1, D], [T, k, D] and [L, D]");
    }
    llamavid_sequence_parts parts{};
    parts.ids = ids.data();
    parts.id_bytes = sizeof(int64_t);
    parts.id_count = ids.shape(0);
    parts.table = table.data();
    parts.table_dtype = dtype_of(table);
    parts.vocabulary = table.shape(0);
    parts.width = width;
    parts.context = context.data();
    parts.content = content.data();
    parts.context_dtype = dtype_of(context);
    parts.content_dtype = dtype_of(content);
    parts.frames = frames;
    parts.content_tokens = content.shape(1);
    std::vector<llamavid_rows> rows;
    if (slots) {
        for (size_t slot = 0; slot < slots->shape(0); ++slot) {  // a negative one is past any end
            rows.push_back({static_cast<size_t>((*slots)(slot, 0)), static_cast<size_t>((*slots)(slot, 1))});
        }
        rows.reserve(1);  // without slots too, it is a list and not NULL
        parts.slots = rows.data();
        parts.slot_count = rows.size();
    }
    const llamavid_dtype dtype = dtype_of(sequence);
    llamavid_status status;
    {
        const nb::gil_scoped_release others_may_run;
        status = llamavid_sequence(&parts, dtype, sequence.data(), sequence.shape(0));
    }
    check(status);
}

}  // namespace

void define_sequence(nb::module_ &module) {
    module.def("sequence", &sequence, nb::arg("ids").noconvert(), nb::arg("table").noconvert(),
               nb::arg("context").noconvert(), nb::arg("content").noconvert(),
               nb::arg("slots").noconvert().none(), nb::arg("sequence").noconvert(),
               "As `assemble` of runtime/assembly.py, into `sequence` [L, D].");
}
