/* SPDX-License-Identifier: Apache-2.0 */
#include "client/loss.h"

#include "client/pager_internal.h"
#include "client/uffd.h"
#include "common/fault_point.h"
#include "common/units.h"

#include <string.h>
#include <sys/utsname.h>

static const struct {
	const char *name;
	const char *effect;
} policies[] = {
	[SMV_LOSS_STALL] = {"stall", "threads that touch them wait"},
	[SMV_LOSS_POISON] = {"poison", "threads that touch them get SIGBUS"},
	[SMV_LOSS_KILL] = {"kill", "the VM is killed when it touches one"},
};

const char *smv_loss_policy_name(enum smv_loss_policy policy)
{
	return policies[policy].name;
}

const char *smv_loss_policy_effect(enum smv_loss_policy policy)
{
	return policies[policy].effect;
}

int smv_loss_policy_parse(const char *text, enum smv_loss_policy *policy, struct smv_error *err)
{
	for (size_t i = 0; i < sizeof(policies) / sizeof(policies[0]); i++)
		if (strcmp(text, policies[i].name) == 0) {
			*policy = (enum smv_loss_policy)i;
			return 0;
		}
	*policy = SMV_LOSS_STALL;
	return text[0] ? smv_fail(err, SMV_INVALID, "loss-policy", "Choose stall, poison or kill.",
				 "there is no loss policy '%.40s'", text)
		       : 0;
}

int smv_loss_policy_check(enum smv_loss_policy policy, struct smv_error *err)
{
	struct utsname uts;
	uint64_t features = 0;

	if (policy != SMV_LOSS_POISON)
		return 0;
	smv_uffd_features(&features);
	if ((features & UFFD_FEATURE_POISON) && !smv_fault_point("kernel-no-poison"))
		return 0;
	uname(&uts);
	return smv_fail(err, SMV_REFUSED, "kernel",
		"Choose the loss policy stall or kill, or run Linux 6.6 or later on the main host.",
		"the loss policy 'poison' needs Linux 6.6 or later: this kernel (%s) lacks "
		"UFFDIO_POISON",
		uts.release);
}

bool smv_pager_note_losses(
	struct smv_pager *p, const struct smv_remote *remote, enum smv_pager_thread who)
{
	bool any = false;

	for (unsigned int h = 0; h < p->c.backing->nr_sub_hosts; h++) {
		bool lost = smv_remote_lost(remote, h, 0);

		atomic_store(&p->lost_by[who][h], lost);
		any |= lost;
	}
	return any;
}

/* In all leases on the sub-host whose first one this is; with what was already given up. */
static uint64_t count_only_at(const struct smv_pager *p, unsigned int first)
{
	const struct smv_pagemap *map = p->c.map;
	bool there[SMV_SUB_HOSTS_MAX] = {false};
	uint64_t n = 0;

	for (unsigned int h = 0; h < p->c.backing->nr_sub_hosts; h++)
		there[h] = smv_backing_first_of(p->c.backing, h) == first;
	for (uint64_t page = 0; page < map->nr_pages; page++) {
		smv_page_word word = smv_pagemap_get(map, page);
		enum smv_page_state state = smv_word_state(word);

		n += (state == SMV_PAGE_COLD || state == SMV_PAGE_FETCHING ||
			     state == SMV_PAGE_LOST) &&
		     smv_word_slot(word) != SMV_SLOT_NONE &&
		     there[smv_backing_locate(p->c.backing, smv_word_slot(word)).sub_host];
	}
	return n;
}

void smv_pager_tell_losses(struct smv_pager *p)
{
	char text[200] = "", size[32];
	unsigned int h = 0;
	uint64_t n;

	while (h < p->c.backing->nr_sub_hosts && !smv_pager_has_lost(p, h))
		h++;
	if (h < p->c.backing->nr_sub_hosts) {
		n = count_only_at(p, smv_backing_first_of(p->c.backing, h));
		snprintf(text, sizeof(text),
			"sub-host %.80s has lost its memory: %lu pages (%s) that were only there "
			"are gone; %s",
			p->c.backing->sub_hosts[h].address, n,
			smv_format_size(n * SMV_PAGE_SIZE, size, sizeof(size)),
			smv_loss_policy_effect(p->c.loss_policy));
	}
	smv_pager_set_trouble(p, SMV_TROUBLE_SUB_HOST, text);
}

void smv_pager_tell_lost_page(struct smv_pager *p)
{
	char text[200];

	snprintf(
		text, sizeof(text), "pages are lost; %s", smv_loss_policy_effect(p->c.loss_policy));
	smv_pager_set_trouble(p, SMV_TROUBLE_LOST, text);
}

bool smv_pager_is_fatal(struct smv_pager *p, char *why, size_t len)
{
	pthread_mutex_lock(&p->trouble_lock);
	snprintf(why, len, "%s", p->fatal);
	pthread_mutex_unlock(&p->trouble_lock);
	return why[0];
}
