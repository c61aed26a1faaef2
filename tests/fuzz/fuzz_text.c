/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The small text parsers: addresses and sizes from command lines and peers, /proc/PID/maps, QEMU's
 * "info ramblock". The first byte chooses.
 */
#include "common/addr.h"
#include "common/units.h"
#include "transport/ticket.h"
#include "vmm/maps.h"
#include "vmm/ram_list.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void fuzz_address(const char *text)
{
	struct smv_error err;
	struct smv_addr addr, again;
	char formatted[SMV_ADDR_MAX];
	bool is_data = text[0] & 1;

	if (smv_addr_parse(text, is_data, &addr, &err) < 0)
		return;
	/* What was understood must be understood again, and mean the same. */
	smv_addr_format(&addr, formatted, sizeof(formatted));
	if (smv_addr_parse(formatted, is_data, &again, &err) < 0 || addr.port != again.port ||
		strcmp(addr.host, again.host) != 0)
		abort();
}

static void fuzz_ticket(const uint8_t *data, size_t size)
{
	static const uint8_t key[SMV_TICKET_KEY_SIZE];
	struct smv_ticket ticket;

	if (smv_ticket_parse(data, size, &ticket) == 0)
		smv_ticket_check(key, data);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct smv_mapping mapping;
	struct smv_ram_block block;
	uint64_t bytes;
	char *text;

	if (size < 1 || !(text = malloc(size)))
		return 0;
	memcpy(text, data + 1, size - 1);
	text[size - 1] = '\0';
	switch (data[0] % 5) {
	case 0:
		fuzz_address(text);
		break;
	case 1:
		smv_parse_size(text, &bytes);
		break;
	case 2:
		smv_maps_find(text, 0x801, 42, &mapping);
		break;
	case 3:
		smv_ram_list_find(text, "ram0", &block);
		break;
	default:
		fuzz_ticket(data + 1, size - 1);
		break;
	}
	free(text);
	return 0;
}
