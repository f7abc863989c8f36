/* llamavid_sequence as a C program meets it. Equality with NumPy is held by
 * tests/runtime/test_assembly.py. */

#include <stdint.h>
#include <string.h>

#include "check.h"
#include "llamavid/runtime.h"

enum { VOCABULARY = 3, WIDTH = 2, FRAMES = 2, CONTENT = 2, MOST = 16 };

/* A row's values tell where it is from: 1.. the table, 10.. a context token, 20.. content tokens. */
static const float TABLE[VOCABULARY][WIDTH] = {{1, 1}, {2, 2}, {3, 3}};
static const float CONTEXT[FRAMES][WIDTH] = {{10, 10}, {11, 11}};
static const float CONTENT_ROWS[FRAMES][CONTENT][WIDTH] = {{{20, 20}, {21, 21}}, {{22, 22}, {23, 23}}};

static llamavid_sequence_parts parts_of(const int64_t *ids, size_t id_count) {
    llamavid_sequence_parts parts = {0};
    parts.ids = ids;
    parts.id_bytes = sizeof *ids;
    parts.id_count = id_count;
    parts.table = TABLE;
    parts.vocabulary = VOCABULARY;
    parts.width = WIDTH;
    parts.context = CONTEXT;
    parts.content = CONTENT_ROWS;
    parts.frames = FRAMES;
    parts.content_tokens = CONTENT;
    return parts;
}

/* Whether the sequence is these rows. */
static int gives(llamavid_sequence_parts parts, size_t count, const float *rows) {
    float sequence[MOST][WIDTH];
    size_t length = 0;
    if (llamavid_sequence_length(&parts, &length) || length != count) return 0;
    if (llamavid_sequence(&parts, LLAMAVID_FLOAT32, sequence, length)) return 0;
    for (size_t row = 0; row < count; ++row)
        if (sequence[row][0] != rows[row] || sequence[row][1] != rows[row]) return 0;
    return 1;
}

static llamavid_status refused(llamavid_sequence_parts parts) {
    float sequence[MOST][WIDTH];
    size_t length = 0;
    const llamavid_status status = llamavid_sequence_length(&parts, &length);
    CHECK(llamavid_sequence(&parts, LLAMAVID_FLOAT32, sequence, 0) == status);
    CHECK(length == 0);
    return status;
}

static void one_slot_takes_every_frame_token(void) {
    const int64_t ids[] = {0, LLAMAVID_SLOT, 2, 1};
    const float rows[] = {1, 10, 20, 21, 11, 22, 23, 3, 2};
    CHECK(gives(parts_of(ids, 4), 9, rows));
}

static void as_many_slots_as_rows_take_one_each(void) {
    const int64_t s = LLAMAVID_SLOT, ids[] = {0, s, s, s, 1, s, s, s};
    const float rows[] = {1, 10, 20, 21, 2, 11, 22, 23};
    CHECK(gives(parts_of(ids, 8), 8, rows));
}

static void slots_take_the_rows_that_they_are_given(void) {
    const int64_t ids[] = {LLAMAVID_SLOT, 0, LLAMAVID_SLOT, LLAMAVID_SLOT};
    const llamavid_rows slots[] = {{3, 3}, {1, 3}, {6, 0}};
    const float rows[] = {11, 22, 23, 1, 20, 21, 11};
    llamavid_sequence_parts parts = parts_of(ids, 4);
    parts.slots = slots;
    parts.slot_count = 3;
    CHECK(gives(parts, 7, rows));
}

static void ids_may_be_of_four_bytes(void) {
    const int32_t ids[] = {2, LLAMAVID_SLOT, 1};
    const float rows[] = {3, 10, 20, 21, 11, 22, 23, 2};
    llamavid_sequence_parts parts = parts_of(NULL, 3);
    parts.ids = ids;
    parts.id_bytes = sizeof *ids;
    CHECK(gives(parts, 8, rows));
}

static void a_prompt_without_frames_is_text(void) {
    const int64_t ids[] = {2, 0};
    const float rows[] = {3, 1};
    llamavid_sequence_parts parts = parts_of(ids, 2);
    parts.frames = 0;
    parts.context = parts.content = NULL;
    CHECK(gives(parts, 2, rows));
}

static void halves_are_taken_and_given(void) {
    const int64_t ids[] = {0, LLAMAVID_SLOT};
    const uint16_t table[1][WIDTH] = {{0x3c00, 0xc000}};  /* 1, -2 */
    const float context[1][WIDTH] = {{0.5f, 65536.0f}};   /* past the largest half: infinity */
    llamavid_sequence_parts parts = parts_of(ids, 2);
    uint16_t halves[2][WIDTH];
    float floats[2][WIDTH];
    parts.table = table;
    parts.table_dtype = LLAMAVID_FLOAT16;
    parts.vocabulary = parts.frames = 1;
    parts.context = context;
    parts.content_tokens = 0;
    CHECK(llamavid_sequence(&parts, LLAMAVID_FLOAT16, halves, 2) == LLAMAVID_OK);
    CHECK(halves[0][0] == 0x3c00 && halves[0][1] == 0xc000);
    CHECK(halves[1][0] == 0x3800 && halves[1][1] == 0x7c00);
    CHECK(llamavid_sequence(&parts, LLAMAVID_FLOAT32, floats, 2) == LLAMAVID_OK);
    CHECK(floats[0][0] == 1 && floats[0][1] == -2 && floats[1][0] == 0.5f && floats[1][1] == 65536.0f);
}

static void what_does_not_fit_is_refused_before_anything_is_written(void) {
    const int64_t s = LLAMAVID_SLOT, good_ids[] = {0, s}, two[] = {s, s};
    const int64_t over[] = {VOCABULARY, s}, under[] = {-1, s}, far_over[] = {INT64_MAX, s};
    const llamavid_rows past = {5, 2}, far_past = {SIZE_MAX, 2}, all = {0, 6};
    const llamavid_sequence_parts good = parts_of(good_ids, 2);
    llamavid_sequence_parts bad = good;
    float sequence[MOST][WIDTH] = {{7}};
    size_t length;
    CHECK(refused(parts_of(over, 2)) == LLAMAVID_BAD_ID);
    CHECK(refused(parts_of(under, 2)) == LLAMAVID_BAD_ID);
    CHECK(refused(parts_of(far_over, 2)) == LLAMAVID_BAD_ID);
    CHECK(refused(parts_of(two, 2)) == LLAMAVID_BAD_SLOT);
    CHECK(refused(parts_of(good_ids, 1)) == LLAMAVID_BAD_SLOT);  /* frames, and no slot for them */
    bad.slots = &past, bad.slot_count = 1, CHECK(refused(bad) == LLAMAVID_BAD_SLOT);
    bad.slots = &far_past, CHECK(refused(bad) == LLAMAVID_BAD_SLOT);
    bad.slots = &all, bad.slot_count = 2, CHECK(refused(bad) == LLAMAVID_BAD_SLOT), bad = good;
    bad.id_bytes = 2, CHECK(refused(bad) == LLAMAVID_BAD_FORMAT), bad = good;
    bad.content_dtype = (llamavid_dtype)-1, CHECK(refused(bad) == LLAMAVID_BAD_FORMAT), bad = good;
    bad.width = 0, CHECK(refused(bad) == LLAMAVID_BAD_SIZE), bad = good;
    bad.frames = SIZE_MAX / 2, CHECK(refused(bad) == LLAMAVID_BAD_SIZE), bad = good;
    bad.content_tokens = SIZE_MAX, CHECK(refused(bad) == LLAMAVID_BAD_SIZE), bad = good;
    bad.ids = NULL, CHECK(refused(bad) == LLAMAVID_NULL_POINTER), bad = good;
    bad.table = NULL, CHECK(refused(bad) == LLAMAVID_NULL_POINTER), bad = good;
    bad.context = NULL, CHECK(refused(bad) == LLAMAVID_NULL_POINTER), bad = good;
    bad.content = NULL, CHECK(refused(bad) == LLAMAVID_NULL_POINTER), bad = good;
    CHECK(llamavid_sequence(&good, LLAMAVID_FLOAT32, sequence, 6) == LLAMAVID_BAD_LENGTH);
    CHECK(llamavid_sequence(&good, (llamavid_dtype)2, sequence, 7) == LLAMAVID_BAD_FORMAT);
    CHECK(llamavid_sequence(&good, LLAMAVID_FLOAT32, NULL, 7) == LLAMAVID_NULL_POINTER);
    CHECK(llamavid_sequence(NULL, LLAMAVID_FLOAT32, sequence, 7) == LLAMAVID_NULL_POINTER);
    CHECK(llamavid_sequence_length(NULL, &length) == LLAMAVID_NULL_POINTER);
    CHECK(llamavid_sequence_length(&good, NULL) == LLAMAVID_NULL_POINTER);
    CHECK(sequence[0][0] == 7);
}

static void every_status_of_a_sequence_has_its_own_words(void) {
    const char *unknown = llamavid_status_text((llamavid_status)-1);
    for (int a = LLAMAVID_BAD_ID; a <= LLAMAVID_BAD_LENGTH; ++a) {
        CHECK(strcmp(llamavid_status_text((llamavid_status)a), unknown) != 0);
    }
}

int main(void) {
    one_slot_takes_every_frame_token();
    as_many_slots_as_rows_take_one_each();
    slots_take_the_rows_that_they_are_given();
    ids_may_be_of_four_bytes();
    a_prompt_without_frames_is_text();
    halves_are_taken_and_given();
    what_does_not_fit_is_refused_before_anything_is_written();
    every_status_of_a_sequence_has_its_own_words();
    return failures != 0;
}
