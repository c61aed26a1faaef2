/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device is safe when it reaches guest RAM by loads and stores of QEMU's threads or by system
 * calls that copy: both fault like the guest does. It is not when something else holds the pages:
 * DMA of real devices, other processes that map the RAM, direct I/O, kernel threads (vhost).
 */
#include "vmm/allow_list.h"

#include "common/cleanup.h"

#include <dirent.h>
#include <fnmatch.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#define TIMEOUT_MS 10000
#define DEPTH_MAX 16

/* QOM types of the pc, q35 and microvm machines and of what is commonly added to them. */
static const char *const allowed_types[] = {
	/* QEMU's own furniture */
	"container", "irq", "memory-region", "System", "qemu-console", "fw_cfg_io", "ISA", "PCI",
	"PCIE", "IDE", "SCSI", "HDA", "i2c-bus", "usb-bus", "floppy-bus", "nvme-bus",
	"virtio-pci-bus", "virtio-mmio-bus", "virtio-serial-bus", "or-irq", "split-irq",
	/* processors and chip sets */
	"pc-i440fx-*-machine", "pc-q35-*-machine", "microvm-machine", "*-x86_64-cpu", "apic",
	"kvm-apic", "ioapic", "kvm-ioapic", "kvm-i8259", "kvm-pit", "kvmclock", "kvmvapic",
	"i440FX", "i440FX-pcihost", "q35-pcihost", "mch", "PIIX3", "piix3-ide", "piix4-ide",
	"PIIX4_PM", "ICH9-LPC", "ICH9-SMB", "acpi-ged", "acpi-ged-x86", "acpi-pcihp", "hpet",
	"i8257", "isa-i8259", "isa-pit", "isa-pcspk", "isabus-bridge", "mc146818rtc", "port92",
	"smbus-eeprom", "vmgenid", "vmcoreinfo", "vmport", "gpex-pcihost", "gpex-root",
	"pci-bridge", "pcie-pci-bridge", "pcie-root-port", "i82801b11-bridge", "ioh3420",
	"x3130-upstream", "xio3130-downstream", "pxb", "pxb-pcie", "pxb-host", "pxb-pcie-host",
	"pc-dimm",
	/* consoles, input, watchdogs */
	"i8042", "ps2-kbd", "ps2-mouse", "vmmouse", "isa-serial", "serial", "pci-serial",
	"isa-parallel", "isa-debugcon", "isa-debug-exit", "pvpanic", "pvpanic-pci", "i6300esb",
	"ib700", "virtio-serial-*", "virtconsole", "virtserialport", "virtio-keyboard-*",
	"virtio-mouse-*", "virtio-tablet-*", "chardev-*",
	/* displays */
	"VGA", "isa-vga", "secondary-vga", "cirrus-vga", "isa-cirrus-vga", "bochs-display", "ramfb",
	"virtio-vga", "virtio-gpu-pci", "virtio-gpu-device",
	/* network */
	"e1000", "e1000-82544gc", "e1000-82545em", "e1000e", "rtl8139", "virtio-net-*",
	/* storage; what is behind it is checked by check_blocks() */
	"floppy", "isa-fdc", "isa-ide", "ich9-ahci", "ide-hd", "ide-cd", "lsi53c895a", "scsi-hd",
	"scsi-cd", "nvme", "nvme-ns", "nvme-subsys", "virtio-blk-*", "virtio-scsi-*",
	/* USB */
	"piix3-usb-uhci", "piix4-usb-uhci", "ich9-usb-ehci*", "ich9-usb-uhci*", "usb-ehci",
	"nec-usb-xhci", "qemu-xhci", "base-xhci", "pci-ohci", "usb-hub", "usb-kbd", "usb-mouse",
	"usb-tablet", "usb-storage",
	/* others */
	"virtio-mmio", "virtio-rng-*", "rng-random", "rng-builtin", "rng-egd", "iothread",
	"main-loop", "thread-context", "secret", "secret_keyring", "tls-creds*", "throttle-group",
	"authz-*", "memory-backend-file", "memory-backend-memfd"};

struct refusal {
	const char *pattern;
	const char *reason;
	const char *why;
	const char *hint;
};

#define DEVICE "device-not-allowed"
#define BACKEND "backend-not-allowed"
#define EMULATED "Use an emulated or virtio device instead."
#define IN_QEMU "Use the virtio device that QEMU itself implements."
#define NO_VHOST "Set vhost=off on the netdev and add no vhost devices."

/* Looked up before allowed_types. */
static const struct refusal refused_types[] = {
	{"vfio-*", DEVICE, "a real device's DMA bypasses the page tables", EMULATED},
	{"pvrdma", DEVICE, "a real device's DMA bypasses the page tables", EMULATED},
	{"vhost-user-*", DEVICE, "another process maps the guest's RAM", IN_QEMU},
	{"vhost-vdpa*", DEVICE, "a real device's DMA bypasses the page tables", EMULATED},
	{"vhost-*", DEVICE, "the kernel writes guest RAM beside QEMU", IN_QEMU},
	{"cryptodev-vhost-user", BACKEND, "another process maps the guest's RAM", NULL},
	{"ivshmem*", DEVICE, "it shares memory with other VMs", "Remove the device."},
	{"virtio-balloon*", DEVICE, "pages that it discards are not tracked yet",
		"Remove the device (device_del works while the VM runs)."},
	{"virtio-mem*", DEVICE, "memory that it unplugs is not tracked yet",
		"Give the VM all its memory by -m."},
	{"virtio-pmem*", DEVICE, "it maps a host file into the guest", "Use a virtio-blk disk."},
	{"nvdimm", DEVICE, "it maps a host file into the guest", "Use a virtio-blk disk."},
	{"virtio-gpu-gl*", DEVICE, "the GPU's driver may pin guest RAM", "Use virtio-gpu-pci."},
	{"virtio-vga-gl", DEVICE, "the GPU's driver may pin guest RAM", "Use virtio-vga."},
	{"scsi-block", DEVICE, "SG_IO does DMA to guest RAM", "Use scsi-hd."},
	{"scsi-generic", DEVICE, "SG_IO does DMA to guest RAM", "Use scsi-hd."},
	{"sev*-guest", BACKEND, "its RAM is encrypted and pinned", "Start the VM without it."},
	{"tdx-guest", BACKEND, "its RAM is encrypted and pinned", "Start the VM without it."},
	{"memory-backend-epc", BACKEND, "enclave memory cannot be moved",
		"Start the VM without it."},
	{"memory-backend-ram", "ram-backend", "guest RAM must be a shared file",
		"Start QEMU with -object "
		"memory-backend-file,id=ram0,share=on,mem-path=/dev/shm/NAME,"
		"size=SIZE -machine memory-backend=ram0."},
};

/* Properties that turn an allowed device into one that is not. */
static const struct {
	const char *type, *property, *why, *hint;
} refused_properties[] = {
	{"virtio-blk-device", "scsi", "SG_IO does DMA to guest RAM", "Set scsi=off."},
	{"virtio-gpu-device", "blob", "udmabuf pins guest RAM", "Set blob=off."},
};

static const char *const allowed_netdevs[] = {
	"nic", "user", "socket", "stream", "dgram", "tap", "bridge", "hubport"};

/* Block drivers; those that open host files must not do direct I/O. */
static const struct {
	const char *name;
	bool host_file;
} allowed_drivers[] = {{"file", true}, {"host_device", true}, {"host_cdrom", true}, {"raw", false},
	{"qcow2", false}, {"nbd", false}, {"rbd", false}, {"iscsi", false}, {"ssh", false},
	{"http", false}, {"https", false}, {"null-co", false}, {"null-aio", false},
	{"throttle", false}, {"copy-on-read", false}, {"blkdebug", false}, {"luks", false},
	{"vmdk", false}, {"vhdx", false}, {"vpc", false}, {"vdi", false}};

struct walk {
	struct smv_qmp *qmp;
	struct smv_error *err;
};

static int query(struct walk *w, const char *command, json_t *arguments, json_t **result)
{
	return smv_qmp_execute(w->qmp, command, arguments, result, TIMEOUT_MS, w->err);
}

static bool in_list(const char *const *patterns, size_t n, const char *name)
{
	for (size_t i = 0; i < n; i++)
		if (fnmatch(patterns[i], name, 0) == 0)
			return true;
	return false;
}

static int unreadable(struct walk *w, const char *command)
{
	return smv_fail(w->err, SMV_REFUSED, "qmp-protocol", NULL,
		"cannot tell what the VM consists of: unexpected answer to '%s'", command);
}

/* "e1000" at "/machine/peripheral/net0": people know the last part as the id, if they gave one. */
static int check_type(struct walk *w, const char *type, const char *path)
{
	for (size_t i = 0; i < SMV_ARRAY_SIZE(refused_types); i++) {
		const struct refusal *r = &refused_types[i];

		if (fnmatch(r->pattern, type, 0) == 0)
			return smv_fail(w->err, SMV_REFUSED, r->reason, r->hint,
				"the VM has a %s (%s): %s", type, path, r->why);
	}
	if (in_list(allowed_types, SMV_ARRAY_SIZE(allowed_types), type))
		return 0;
	return smv_fail(w->err, SMV_REFUSED, strncmp(path, "/objects/", 9) == 0 ? BACKEND : DEVICE,
		"Remove it. Only devices known to reach guest RAM through QEMU alone are let "
		"through.",
		"the VM has a %s (%s), which is not on the list of allowed devices and back ends",
		type, path);
}

static int check_properties(struct walk *w, const char *type, const char *path)
{
	for (size_t i = 0; i < SMV_ARRAY_SIZE(refused_properties); i++) {
		CLEANUP_JSON json_t *value = NULL;
		const char *property = refused_properties[i].property;

		if (strcmp(refused_properties[i].type, type) != 0)
			continue;
		/* A QEMU that lacks the property lacks the feature. */
		if (query(w, "qom-get", json_pack("{s:s, s:s}", "path", path, "property", property),
			    &value) < 0 &&
			w->err->code != SMV_REFUSED)
			return smv_code_to_errno(w->err->code);
		if (json_is_true(value))
			return smv_fail(w->err, SMV_REFUSED, DEVICE, refused_properties[i].hint,
				"the VM has a %s (%s) with %s=on: %s", type, path, property,
				refused_properties[i].why);
	}
	return 0;
}

static int walk_qom(struct walk *w, const char *path, int depth);

/* @kind: "child<TYPE>", or the type of a plain property. */
static int walk_property(
	struct walk *w, const char *path, const char *name, const char *kind, int depth)
{
	char type[128], child[512];
	size_t len = strlen(kind);
	int r;

	if (strncmp(kind, "child<", 6) != 0 || kind[len - 1] != '>')
		return 0;
	if (snprintf(type, sizeof(type), "%.*s", (int)(len - 7), kind + 6) >= (int)sizeof(type) ||
		snprintf(child, sizeof(child), "%s/%s", path, name) >= (int)sizeof(child))
		return unreadable(w, "qom-list");
	r = check_type(w, type, child);
	if (!r)
		r = check_properties(w, type, child);
	/* The many leaves: asking for their children would double the time. */
	if (r < 0 || strcmp(type, "irq") == 0 || strcmp(type, "memory-region") == 0)
		return r;
	return walk_qom(w, child, depth + 1);
}

static int walk_qom(struct walk *w, const char *path, int depth)
{
	CLEANUP_JSON json_t *list = NULL;
	json_t *property;
	size_t i;
	int r = depth > DEPTH_MAX ? unreadable(w, "qom-list")
				  : query(w, "qom-list", json_pack("{s:s}", "path", path), &list);

	if (r < 0)
		return r;
	json_array_foreach (list, i, property) {
		const char *name, *kind;

		if (json_unpack(property, "{s:s, s:s}", "name", &name, "type", &kind) < 0)
			return unreadable(w, "qom-list");
		r = walk_property(w, path, name, kind, depth);
		if (r < 0)
			return r;
	}
	return 0;
}

/* The machine itself, and its link to an object that encrypts the RAM. */
static int check_machine(struct walk *w)
{
	CLEANUP_JSON json_t *type = NULL;
	CLEANUP_JSON json_t *guard = NULL;
	int r = query(w, "qom-get", json_pack("{s:s, s:s}", "path", "/machine", "property", "type"),
		&type);

	if (!r && !json_is_string(type))
		r = unreadable(w, "qom-get");
	if (!r)
		r = check_type(w, json_string_value(type), "/machine");
	if (!r)
		r = query(w, "qom-get",
			json_pack("{s:s, s:s}", "path", "/machine", "property",
				"confidential-guest-support"),
			&guard);
	if (r < 0)
		return r;
	if (!json_string_value(guard) || !json_string_value(guard)[0])
		return 0;
	return smv_fail(w->err, SMV_REFUSED, BACKEND, "Start the VM without it.",
		"the VM is confidential (%s): its RAM is encrypted and pinned",
		json_string_value(guard));
}

static int check_direct(struct walk *w, const json_t *node, const char *driver)
{
	const json_t *cache = json_object_get(node, "cache");
	const char *file = json_string_value(json_object_get(node, "file"));
	const char *name = json_string_value(json_object_get(node, "node-name"));

	if (!json_is_boolean(json_object_get(cache, "direct")))
		return unreadable(w, "query-named-block-nodes");
	if (json_is_false(json_object_get(cache, "direct")))
		return 0;
	return smv_fail(w->err, SMV_REFUSED, "cache-direct",
		"Start QEMU with cache=writeback (cache.direct=off, aio=threads) for this disk, or "
		"switch "
		"it while the VM runs by the QMP command blockdev-reopen.",
		"block node '%s' (%s, %s) does direct I/O, whose DMA bypasses the page tables",
		name ? name : "?", driver, file ? file : "?");
}

static int check_block_node(struct walk *w, const json_t *node)
{
	const char *driver = json_string_value(json_object_get(node, "drv"));
	const char *name = json_string_value(json_object_get(node, "node-name"));

	if (!driver)
		return unreadable(w, "query-named-block-nodes");
	for (size_t i = 0; i < SMV_ARRAY_SIZE(allowed_drivers); i++)
		if (strcmp(allowed_drivers[i].name, driver) == 0)
			return allowed_drivers[i].host_file ? check_direct(w, node, driver) : 0;
	return smv_fail(w->err, SMV_REFUSED, BACKEND,
		"Attach the disk through QEMU's file, host_device, nbd, rbd or iscsi driver.",
		"block node '%s' uses driver '%s', which is not on the list of allowed back ends",
		name ? name : "?", driver);
}

static int check_blocks(struct walk *w)
{
	CLEANUP_JSON json_t *nodes = NULL;
	json_t *node;
	size_t i;
	int r = query(w, "query-named-block-nodes", json_pack("{s:b}", "flat", 1), &nodes);

	if (r < 0)
		return r;
	json_array_foreach (nodes, i, node) {
		r = check_block_node(w, node);
		if (r < 0)
			return r;
	}
	return 0;
}

/* Lines of "info network" that name no netdev: empty, "hub 0", and a hub's port without a peer,
 * " \ hub0port0". */
static bool is_bare(const char *line)
{
	return !line[strspn(line, " ")] || strncmp(line, "hub ", 4) == 0 ||
	       (strncmp(line, " \\ ", 3) == 0 && !strpbrk(line + 3, ": "));
}

/* "net0: index=0,type=user,..." or " \ net0: index=0,type=..." */
static int check_netdev(struct walk *w, const char *line, bool *tap)
{
	const char *colon = strstr(line, ": index="),
		   *type = colon ? strstr(colon, ",type=") : NULL;
	char kind[32];
	size_t name;

	if (is_bare(line))
		return 0;
	if (!type || sscanf(type, ",type=%31[^,\r\n]", kind) != 1)
		return unreadable(w, "info network");
	*tap |= strcmp(kind, "tap") == 0;
	if (in_list(allowed_netdevs, SMV_ARRAY_SIZE(allowed_netdevs), kind))
		return 0;
	name = strspn(line, " \\");
	return smv_fail(w->err, SMV_REFUSED, BACKEND,
		"Use a user, socket, stream, dgram, bridge or tap (vhost=off) netdev.",
		"netdev '%.*s' is of type '%s', which is not on the list of allowed back ends",
		(int)(colon - line - (ptrdiff_t)name), line + name, kind);
}

static int check_netdevs(struct walk *w, bool *tap)
{
	CLEANUP_JSON json_t *result = NULL;
	CLEANUP_FREE char *text = NULL;
	char *rest, *line;
	int r = query(w, "human-monitor-command",
		json_pack("{s:s}", "command-line", "info network"), &result);

	if (r < 0)
		return r;
	text = strdup(json_string_value(result) ?: "");
	if (!text)
		return smv_fail(w->err, SMV_NO_ROOM, "memory", NULL, "out of memory");
	for (rest = text; (line = strsep(&rest, "\r\n"));) {
		r = check_netdev(w, line, tap);
		if (r < 0)
			return r;
	}
	return 0;
}

/* Device nodes through which something beside QEMU gets at its memory. */
static const char *const refused_files[] = {"/dev/vhost-*", "/dev/vfio/*", "/dev/sev", "/dev/sgx_*",
	"/dev/infiniband/*", "/dev/udmabuf"};

/*
 * QMP does not tell whether a tap uses vhost, but then QEMU has /dev/vhost-net open. With a tap,
 * seeing QEMU's files is a must: /dev/net/tun among them proves that they are QEMU's.
 */
static int check_files(struct walk *w, bool tap)
{
	pid_t pid = smv_qmp_peer_pid(w->qmp);
	char path[64], link[256];
	struct dirent *entry;
	bool tun = false;
	int r = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	dir = pid > 0 ? opendir(path) : NULL;
	while (dir && !r && (entry = readdir(dir))) {
		ssize_t n = readlinkat(dirfd(dir), entry->d_name, link, sizeof(link) - 1);

		link[n > 0 ? n : 0] = 0;
		tun |= strcmp(link, "/dev/net/tun") == 0;
		if (in_list(refused_files, SMV_ARRAY_SIZE(refused_files), link))
			r = smv_fail(w->err, SMV_REFUSED, BACKEND, NO_VHOST,
				"QEMU (process %d) has %s open: its RAM is reached beside QEMU",
				pid, link);
	}
	if (dir)
		closedir(dir);
	if (r < 0 || !tap || tun)
		return r;
	return smv_fail(w->err, SMV_REFUSED, BACKEND,
		"Start the VM by smemv-run on this host, as this user, or use another netdev.",
		"the VM has a tap netdev, and whether it uses vhost cannot be seen: QEMU's open "
		"files are "
		"not readable from here");
}

int smv_allow_list_check(struct smv_qmp *qmp, struct smv_error *err)
{
	struct smv_error own; /* some steps look at the code */
	struct walk w = {.qmp = qmp, .err = err ? err : &own};
	bool tap = false;
	int r = check_machine(&w);

	if (!r)
		r = walk_qom(&w, "/machine", 0);
	if (!r)
		r = walk_qom(&w, "/objects", 0);
	if (!r)
		r = check_blocks(&w);
	if (!r)
		r = check_netdevs(&w, &tap);
	return r < 0 ? r : check_files(&w, tap);
}
