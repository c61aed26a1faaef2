/* SPDX-License-Identifier: Apache-2.0 */
#include "client/settle.h"

#include "common/fault_point.h"

static smv_page_word local(smv_page_word word, bool remote_valid)
{
	word = smv_word(SMV_PAGE_LOCAL, smv_word_slot(word), smv_word_checksum(word));
	return remote_valid ? word | SMV_WORD_REMOTE_VALID : word;
}

static smv_page_word plain(smv_page_word word, enum smv_page_state state)
{
	return smv_word(state, smv_word_slot(word), smv_word_checksum(word));
}

smv_page_word smv_settle_word(smv_page_word word, bool data)
{
	const smv_page_word zero = smv_word(SMV_PAGE_ZERO, SMV_SLOT_NONE, 0);

	switch (smv_word_state(word)) {
	case SMV_PAGE_ZERO:
		return data ? local(zero, true) : zero;
	case SMV_PAGE_LOCAL:
		return data ? local(word, word & SMV_WORD_REMOTE_VALID)
			    : plain(word, SMV_PAGE_LOST);
	case SMV_PAGE_FETCHING:
		if (!data && smv_fault_point("settle-fetching-is-zero"))
			return zero;
		return data ? local(word, true) : plain(word, SMV_PAGE_COLD);
	case SMV_PAGE_OUT:
		if (!data && smv_fault_point("settle-hole-is-zero"))
			return zero;
		return data ? local(word, false) : plain(word, SMV_PAGE_LOST);
	case SMV_PAGE_SAVED:
		if (data)
			return local(word, true);
		return smv_word_slot(word) == SMV_SLOT_NONE ? zero : plain(word, SMV_PAGE_COLD);
	case SMV_PAGE_COLD:
	case SMV_PAGE_UNKNOWN:
	case SMV_PAGE_LOST:
	case SMV_PAGE_NR_STATES:
		break;
	}
	return plain(word, smv_word_state(word));
}

const char *smv_settle_check(smv_page_word word)
{
	bool has_slot = smv_word_slot(word) != SMV_SLOT_NONE;

	switch (smv_word_state(word)) {
	case SMV_PAGE_COLD:
	case SMV_PAGE_FETCHING:
		return has_slot ? NULL : "it is on a sub-host, but in no slot";
	case SMV_PAGE_ZERO:
		return has_slot ? "it is zero, but in a slot" : NULL;
	case SMV_PAGE_SAVED:
		return word & SMV_WORD_REMOTE_VALID ? NULL : "it is saved, but nowhere";
	case SMV_PAGE_LOCAL:
		return smv_word_activity(word) <= SMV_PAGE_INACTIVE ? NULL
								    : "its activity is unknown";
	case SMV_PAGE_OUT:
	case SMV_PAGE_LOST:
		return NULL;
	case SMV_PAGE_UNKNOWN:
		/* As created, all zero bits: slot 0 is none there. */
		return word ? "it was never reported, but is somewhere" : NULL;
	case SMV_PAGE_NR_STATES:
		break;
	}
	return "its state is unknown";
}
