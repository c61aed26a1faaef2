/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON for people: keys and values one below the other, or a table. How a number is shown follows
 * from its key's unit: a size for "..._bytes" and "bytes_...", a time for "..._ms".
 */
#ifndef SMV_CTL_OUTPUT_H
#define SMV_CTL_OUTPUT_H

#include <jansson.h>
#include <stddef.h>

struct smv_column {
	const char *heading;
	const char *key; /* of the row's object; an array is shown as its length */
};

/** smv_print_properties - an object, "key  value" line by line; objects in it as "key.sub". */
void smv_print_properties(json_t *object);

/** smv_print_table - an array of objects; @none is printed when it is empty. */
void smv_print_table(
	const json_t *rows, const struct smv_column *columns, size_t nr_columns, const char *none);

/** smv_print_rows - the same without headings; nothing for none. */
void smv_print_rows(const json_t *rows, const struct smv_column *columns, size_t nr_columns);

#endif
