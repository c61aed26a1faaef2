/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu_args.h"

#include "common/cleanup.h"

#include <stdio.h>
#include <string.h>

#define ADDED_MAX 8

/* QEMU takes "-option" and "--option". */
static bool is_option(const char *arg, const char *name)
{
	if (arg[0] != '-')
		return false;
	arg += arg[1] == '-' ? 2 : 1;
	return strcmp(arg, name) == 0;
}

static bool has_option(char *const *argv, const char *name, const char **value)
{
	for (int i = 1; argv[i]; i++) {
		if (!is_option(argv[i], name))
			continue;
		if (value)
			*value = argv[i + 1] ? argv[i + 1] : "";
		return true;
	}
	return false;
}

/* A comma in an option's value is written twice. */
static char *chardev_option(const char *path)
{
	char *text = NULL;
	size_t len = 0;
	FILE *out = open_memstream(&text, &len);

	if (!out)
		return NULL;
	fputs("socket,id=smemv-qmp,server=on,wait=off,path=", out);
	for (; *path; path++) {
		if (*path == ',')
			fputc(',', out);
		fputc(*path, out);
	}
	return fclose(out) == 0 ? text : NULL;
}

/* Every string of args->argv is our own copy. */
static int append(struct smv_qemu_args *args, size_t *n, const char *text)
{
	if (text)
		args->argv[*n] = strdup(text);
	return text && args->argv[(*n)++] ? 0 : -1;
}

static int build(
	struct smv_qemu_args *args, char *const *user, const char *chardev, bool wait_for_pager)
{
	const char *const monitor[] = {
		"-chardev", chardev, "-mon", "chardev=smemv-qmp,mode=control"};
	size_t count = 0, n = 0;
	int r = 0;

	while (user[count])
		count++;
	args->argv = calloc(count + ADDED_MAX, sizeof(char *));
	if (!args->argv)
		return -1;
	for (size_t i = 0; i < count; i++)
		r |= append(args, &n, user[i]);
	for (size_t i = 0; i < SMV_ARRAY_SIZE(monitor); i++)
		r |= append(args, &n, monitor[i]);
	if (wait_for_pager && !has_option(user, "S", NULL))
		r |= append(args, &n, "-S");
	if (wait_for_pager && !has_option(user, "incoming", NULL))
		r |= append(args, &n, "-incoming") | append(args, &n, "defer");
	return r;
}

int smv_qemu_args_make(char *const *user, const char *qmp_path, bool wait_for_pager,
	struct smv_qemu_args *args, struct smv_error *err)
{
	CLEANUP_FREE char *chardev = chardev_option(qmp_path);
	const char *incoming = "defer";

	memset(args, 0, sizeof(*args));
	args->daemonize = has_option(user, "daemonize", NULL);
	if (wait_for_pager && has_option(user, "incoming", &incoming) &&
		strcmp(incoming, "defer") != 0)
		return smv_fail(err, SMV_INVALID, "incoming",
			"Leave -incoming away, or write -incoming defer.",
			"with --pager QEMU cannot have -incoming %.200s: the pager starts the "
			"migration",
			incoming);
	if (build(args, user, chardev, wait_for_pager) == 0)
		return 0;
	smv_qemu_args_release(args);
	return smv_fail(err, SMV_NO_ROOM, "memory", NULL, "out of memory");
}

void smv_qemu_args_release(struct smv_qemu_args *args)
{
	for (size_t i = 0; args->argv && args->argv[i]; i++)
		free(args->argv[i]);
	free(args->argv);
	args->argv = NULL;
}
