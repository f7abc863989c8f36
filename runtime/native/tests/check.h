/* What the C tests share: CHECK counts what is not so, and main returns whether there was any. */

#ifndef LLAMAVID_CHECK_H
#define LLAMAVID_CHECK_H

#include <stdio.h>

static int failures = 0;

#define CHECK(truth) \
    ((truth) ? (void)0 : (void)(++failures, fprintf(stderr, "line %d: not so: %s\n", __LINE__, #truth)))

#endif
