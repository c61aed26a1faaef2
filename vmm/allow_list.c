/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device is safe when it reaches guest RAM by loads and stores of QEMU's threads or by system
 * calls that copy: both fault like the guest does. It is not when something else holds the pages:
 * DMA of real devices, other processes that map the RAM, direct I/O, kernel threads (vhost).
 *
 * Some that may look dangerous and are not:
 * - qxl: the SPICE server's thread reads the device's own video RAM, by loads; it does not see guest
 *   RAM.
 * - tpm-*: commands are copied to swtpm's socket, or to /dev/tpm0 by write().
 * - virtio-iommu, intel-iommu and amd-iommu translate what other devices do.
 * - usb-redir copies each packet to its socket.
 * - pflash (UEFI) has its own memory; the variables are written from there.
 * - aio=io_uring without cache.direct: the kernel's workers copy in QEMU's address space, their
 *   faults are QEMU's. Registered buffers would be pinned: see check_io_uring().
 * - virtio-balloon reads addresses of pages from guest RAM. What it punches out of the RAM, for
 *   free-page reporting, too, is recorded where a pager serves the VM, because it goes through the
 *   shim (vmm/shim_discards.h); at a source holes are looked for in the end. Of its hints
 *   (free-page-hint) QEMU makes use while it migrates: see refused_properties.
 * - pvpanic, watchdogs, vmcoreinfo, vmgenid: a few bytes, copied.
 */
#include "vmm/allow_list.h"

#include "common/cleanup.h"

#include <dirent.h>
#include <fnmatch.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#define TIMEOUT_MS 10000
#define DEPTH_MAX 16

/* QOM types of the pc, q35 and microvm machines and of what is commonly added to them. */
static const char *const allowed_types[] = {
	/* QEMU's own furniture */
	"container", "irq", "memory-region", "System", "qemu-console", "fw_cfg_io", "fw_cfg_mem",
	"ISA", "PCI", "PCIE", "IDE", "SCSI", "HDA", "i2c-bus", "usb-bus", "floppy-bus", "nvme-bus",
	"ccid-bus", "sd-bus", "sdhci-bus", "CXL", "virtio-pci-bus", "virtio-mmio-bus",
	"virtio-serial-bus", "or-irq", "split-irq",
	/* processors and chip sets */
	"pc-i440fx-*-machine", "pc-q35-*-machine", "microvm-machine", "*-x86_64-cpu", "apic",
	"kvm-apic", "ioapic", "kvm-ioapic", "kvm-i8259", "kvm-pit", "kvmclock", "kvmvapic",
	"hyperv-synic", "i440FX", "i440FX-pcihost", "q35-pcihost", "mch", "PIIX3", "piix3-ide",
	"piix4-ide", "PIIX4_PM", "ICH9-LPC", "ICH9-SMB", "acpi-ged", "acpi-ged-x86", "acpi-pcihp",
	"hpet", "i8257", "isa-i8259", "isa-pit", "isa-pcspk", "isabus-bridge", "mc146818rtc",
	"port92", "smbus-eeprom", "vmgenid", "vmcoreinfo", "vmport", "gpex-pcihost", "gpex-root",
	"cfi.pflash01", "isa-applesmc", "pci-bridge", "pci-bridge-seat", "pcie-pci-bridge",
	"pcie-root-port", "i82801b11-bridge", "ioh3420", "x3130-upstream", "xio3130-downstream",
	"pxb", "pxb-pcie", "pxb-host", "pxb-pcie-host", "pxb-bus", "pxb-pcie-bus", "pc-dimm",
	/* translation of addresses */
	"intel-iommu", "intel-iommu-iommu-memory-region", "amd-iommu",
	"amd-iommu-iommu-memory-region", "AMDVI-PCI", "virtio-iommu-*",
	/* consoles, input, watchdogs, management, TPM */
	"i8042", "ps2-kbd", "ps2-mouse", "vmmouse", "isa-serial", "serial", "pci-serial",
	"pci-serial-2x", "pci-serial-4x", "isa-parallel", "isa-debugcon", "isa-debug-exit",
	"pvpanic", "pvpanic-pci", "i6300esb", "ib700", "virtio-serial-*", "virtconsole",
	"virtserialport", "virtio-keyboard-*", "virtio-mouse-*", "virtio-tablet-*",
	"virtio-multitouch-*", "virtio-input-host-*", "input-linux", "input-barrier", "chardev-*",
	"ipmi-bmc-*", "isa-ipmi-*", "pci-ipmi-*", "smbus-ipmi", "tpm-tis", "tpm-crb",
	"tpm-emulator", "tpm-passthrough",
	/* displays, sound */
	"VGA", "isa-vga", "secondary-vga", "cirrus-vga", "isa-cirrus-vga", "bochs-display", "ramfb",
	"qxl", "qxl-vga", "vmware-svga", "ati-vga", "i2c-ddc", "virtio-vga", "virtio-gpu-pci",
	"virtio-gpu-device", "AC97", "ES1370", "sb16", "intel-hda", "ich9-intel-hda", "hda-duplex",
	"hda-micro", "hda-output", "virtio-sound-*",
	/* network */
	"e1000", "e1000-82544gc", "e1000-82545em", "e1000e", "igb", "rtl8139", "virtio-net-*",
	"ne2k_isa", "ne2k_pci", "pcnet", "vmxnet3", "tulip", "i8255*", "i82562", "i82801",
	/* storage; what is behind it is checked by check_blocks() */
	"floppy", "isa-fdc", "isa-ide", "ich9-ahci", "ide-hd", "ide-cd", "lsi53c810", "lsi53c895a",
	"am53c974", "dc390", "megasas", "megasas-gen2", "mptsas1068", "pvscsi", "scsi-hd",
	"scsi-cd", "nvme", "nvme-ns", "nvme-subsys", "sdhci-pci", "sd-card", "virtio-blk-*",
	"virtio-scsi-*",
	/* USB */
	"piix3-usb-uhci", "piix4-usb-uhci", "ich9-usb-ehci*", "ich9-usb-uhci*", "usb-ehci",
	"nec-usb-xhci", "qemu-xhci", "base-xhci", "pci-ohci", "usb-hub", "usb-kbd", "usb-mouse",
	"usb-tablet", "usb-wacom-tablet", "usb-storage", "usb-bot", "usb-uas", "usb-redir",
	"usb-serial", "usb-braille", "usb-audio", "usb-net", "usb-ccid", "ccid-card-emulated",
	"ccid-card-passthru",
	/* others */
	"virtio-mmio", "virtio-balloon-pci*", "virtio-balloon-device", "virtio-rng-*",
	"virtio-crypto-*", "cryptodev-backend", "cryptodev-backend-builtin", "rng-random",
	"rng-builtin", "rng-egd", "iothread", "main-loop", "thread-context", "secret",
	"secret_keyring", "tls-creds*", "tls-cipher-suites", "throttle-group", "dbus-vmstate",
	"authz-*", "memory-backend-file", "memory-backend-memfd"};

struct refusal {
	const char *pattern;
	const char *reason;
	const char *why;
	const char *hint;
};

#define DEVICE "device-not-allowed"
#define BACKEND "backend-not-allowed"
#define EMULATED "Use an emulated or virtio device instead; this one also stays on its host."
#define IN_QEMU "Use the virtio device that QEMU itself implements."
#define PLAIN_VM "Start the VM without it."

/* Looked up before allowed_types. */
static const struct refusal refused_types[] = {
	{"vfio-*", DEVICE, "a real device's DMA bypasses the page tables", EMULATED},
	{"pvrdma", DEVICE, "a real device's DMA bypasses the page tables", EMULATED},
	{"usb-host", DEVICE, "a real device stays on its host", "Use usb-redir over a socket."},
	{"u2f-passthru", DEVICE, "a real device stays on its host",
		"Use a device that is emulated."},
	{"vhost-user-fs*", DEVICE, "virtiofsd, another process, maps the guest's RAM",
		"Unmount it in the guest and remove it; use NFS, or a virtio-blk disk."},
	{"vhost-user-blk*", DEVICE, "another process maps the guest's RAM", "Use virtio-blk-pci."},
	{"vhost-user-scsi*", DEVICE, "another process maps the guest's RAM",
		"Use virtio-scsi-pci."},
	{"vhost-user-vsock*", DEVICE, "another process maps the guest's RAM",
		"Use a virtserialport, or the network."},
	{"vhost-user-*", DEVICE, "another process maps the guest's RAM", IN_QEMU},
	{"vhost-vsock*", DEVICE, "the kernel writes guest RAM beside QEMU",
		"Use a virtserialport, or the network."},
	{"vhost-scsi*", DEVICE, "the kernel writes guest RAM beside QEMU", "Use virtio-scsi-pci."},
	{"vhost-vdpa*", DEVICE, "a real device's DMA bypasses the page tables", EMULATED},
	{"vhost-*", DEVICE, "the kernel writes guest RAM beside QEMU", IN_QEMU},
	{"virtio-9p*", DEVICE, "QEMU itself cannot migrate it while it is mounted",
		"Unmount it in the guest and remove it; use NFS, or a virtio-blk disk."},
	{"cryptodev-vhost-user", BACKEND, "another process maps the guest's RAM",
		"Use cryptodev-backend-builtin."},
	{"ivshmem*", DEVICE, "it shares memory with other VMs or processes",
		"Use a socket: virtserialport, or the network."},
	{"hv-balloon", DEVICE, "pages that it discards are not tracked yet",
		"Remove it; the guest keeps the memory that it has then."},
	{"virtio-mem*", DEVICE, "memory that it unplugs is not tracked yet",
		"Give the VM all its memory by -m, or plug pc-dimm devices."},
	{"virtio-pmem*", DEVICE, "it maps a host file into the guest", "Use a virtio-blk disk."},
	{"nvdimm", DEVICE, "it maps a host file into the guest", "Use a virtio-blk disk."},
	{"cxl-*", DEVICE, "it maps a host file into the guest", "Use a virtio-blk disk."},
	{"virtio-gpu-gl*", DEVICE, "the GPU's driver may pin guest RAM", "Use virtio-gpu-pci."},
	{"virtio-gpu-rutabaga*", DEVICE, "the GPU's driver may pin guest RAM",
		"Use virtio-gpu-pci."},
	{"virtio-vga-gl", DEVICE, "the GPU's driver may pin guest RAM", "Use virtio-vga."},
	{"virtio-vga-rutabaga", DEVICE, "the GPU's driver may pin guest RAM", "Use virtio-vga."},
	{"scsi-block", DEVICE, "SG_IO does DMA to guest RAM",
		"Use scsi-hd on the same host device; persistent reservations are then not passed "
		"on."},
	{"scsi-generic", DEVICE, "SG_IO does DMA to guest RAM",
		"Use scsi-hd or scsi-cd; tapes and changers only over iSCSI in the guest."},
	{"x-pci-proxy-dev", DEVICE, "another process maps the guest's RAM", IN_QEMU},
	{"x-remote-object", BACKEND, "another process maps the guest's RAM", PLAIN_VM},
	{"x-vfio-user-server", BACKEND, "another process maps the guest's RAM", PLAIN_VM},
	{"sev*-guest", BACKEND, "its RAM is encrypted and pinned", PLAIN_VM},
	{"tdx-guest", BACKEND, "its RAM is encrypted and pinned", PLAIN_VM},
	{"memory-backend-epc", BACKEND, "enclave memory cannot be moved", PLAIN_VM},
	{"memory-backend-ram", "ram-backend", "guest RAM must be a shared file",
		"Start QEMU with -object "
		"memory-backend-file,id=ram0,share=on,mem-path=/dev/shm/NAME,"
		"size=SIZE -machine memory-backend=ram0."},
};

/* Properties that turn an allowed device into one that is not. */
static const struct {
	const char *type, *property, *why, *hint;
} refused_properties[] = {
	{"virtio-blk-device", "scsi", "SG_IO does DMA to guest RAM", "Start the VM with scsi=off."},
	{"virtio-gpu-device", "blob", "udmabuf pins guest RAM", "Start the VM with blob=off."},
	{"virtio-balloon-device", "free-page-hint",
		"QEMU takes its hints for RAM that it does not send itself here",
		"Start the VM with free-page-hint=off; free-page-reporting=on is let through."},
};

static const char *const allowed_netdevs[] = {
	"nic", "user", "socket", "stream", "dgram", "tap", "bridge", "hubport"};

/* Block drivers; those that open host files must not do direct I/O. The libraries of the network's
 * (rbd, iscsi, nfs, gluster, ssh, curl) write to sockets from QEMU's threads: copies. */
static const struct {
	const char *name;
	bool host_file;
} allowed_drivers[] = {{"file", true}, {"host_device", true}, {"host_cdrom", true}, {"raw", false},
	{"qcow2", false}, {"nbd", false}, {"rbd", false}, {"iscsi", false}, {"nfs", false},
	{"gluster", false}, {"ssh", false}, {"http", false}, {"https", false}, {"ftp", false},
	{"ftps", false}, {"null-co", false}, {"null-aio", false},
	/* filters, also those of jobs */
	{"throttle", false}, {"copy-on-read", false}, {"copy-before-write", false},
	{"snapshot-access", false}, {"preallocate", false}, {"compress", false}, {"quorum", false},
	{"blkdebug", false}, {"blkverify", false}, {"blklogwrites", false}, {"mirror_top", false},
	{"commit_top", false},
	/* formats */
	{"luks", false}, {"vmdk", false}, {"vhdx", false}, {"vpc", false}, {"vdi", false},
	{"qcow", false}, {"qed", false}, {"parallels", false}, {"bochs", false}, {"cloop", false},
	{"dmg", false}};

static const struct {
	const char *name, *why, *hint;
} refused_drivers[] = {
	{"nvme", "QEMU's NVMe driver uses VFIO, whose DMA bypasses the page tables",
		"Let the host's kernel drive it: host_device on /dev/nvme0n1, cache.direct=off."},
	{"iser", "iSER does RDMA from guest RAM", "Use iscsi://, over TCP."},
	{"io_uring", "libblkio pins guest RAM",
		"Use the driver file or host_device with aio=io_uring, cache.direct=off."},
	{"nvme-io_uring", "libblkio pins guest RAM", "Use host_device, cache.direct=off."},
	{"virtio-blk-*", "libblkio shares guest RAM with another process or device",
		"Use the driver file, host_device, nbd, rbd or iscsi."},
	{"vvfat", "QEMU itself cannot migrate it", "Use an image file."},
};

struct walk {
	struct smv_qmp *qmp;
	pid_t pid;
	struct smv_refusals *list; /* NULL: the first refusal is an error */
	struct smv_error *err;
};

/* One thing is not allowed. 0 when we are to look for more. */
__attribute__((format(printf, 4, 5))) static int refuse(
	struct walk *w, const char *reason, const char *hint, const char *fmt, ...)
{
	struct smv_error *err = w->err;
	char text[sizeof(err->message)];
	va_list args;
	int r;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	r = smv_fail(err, SMV_REFUSED, reason, hint, "%s", text);
	if (!w->list)
		return r;
	smv_refusals_add(w->list, err);
	err->code = SMV_OK;
	return 0;
}

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
	return smv_fail(w->err, SMV_REFUSED, "qmp-protocol",
		"This version of QEMU is not known to us; please report it with its version.",
		"cannot tell what the VM consists of: unexpected answer to '%s'", command);
}

/* A device with an id can usually be unplugged while the VM runs. */
static void remedy(const char *hint, const char *path, char *text, size_t len)
{
	static const char plugged[] = "/machine/peripheral/";

	if (strncmp(path, plugged, sizeof(plugged) - 1) != 0)
		snprintf(text, len, "%s", hint);
	else
		snprintf(text, len, "%s Unplug it while the VM runs: QMP device_del, id '%s'.",
			hint, path + sizeof(plugged) - 1);
}

/* "e1000" at "/machine/peripheral/net0": people know the last part as the id, if they gave one.
 * *refused: there is no need to look at its parts. */
static int check_type(struct walk *w, const char *type, const char *path, bool *refused)
{
	char hint[sizeof(w->err->hint)];

	*refused = true;
	for (size_t i = 0; i < SMV_ARRAY_SIZE(refused_types); i++) {
		const struct refusal *r = &refused_types[i];

		if (fnmatch(r->pattern, type, 0) != 0)
			continue;
		remedy(r->hint, path, hint, sizeof(hint));
		return refuse(w, r->reason, hint, "the VM has a %s (%s): %s", type, path, r->why);
	}
	*refused = !in_list(allowed_types, SMV_ARRAY_SIZE(allowed_types), type);
	if (!*refused)
		return 0;
	remedy("Only what is known to reach guest RAM through QEMU alone is let through. Replace "
	       "it "
	       "by a device of the same kind that is (virtio, e1000e, ahci, xhci, VGA).",
		path, hint, sizeof(hint));
	return refuse(w, strncmp(path, "/objects/", 9) == 0 ? BACKEND : DEVICE, hint,
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
			return refuse(w, DEVICE, refused_properties[i].hint,
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
	bool refused;
	int r;

	if (strncmp(kind, "child<", 6) != 0 || kind[len - 1] != '>')
		return 0;
	if (snprintf(type, sizeof(type), "%.*s", (int)(len - 7), kind + 6) >= (int)sizeof(type) ||
		snprintf(child, sizeof(child), "%s/%s", path, name) >= (int)sizeof(child))
		return unreadable(w, "qom-list");
	r = check_type(w, type, child, &refused);
	if (r < 0 || refused)
		return r;
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
	bool refused;
	int r = query(w, "qom-get", json_pack("{s:s, s:s}", "path", "/machine", "property", "type"),
		&type);

	if (!r && !json_is_string(type))
		r = unreadable(w, "qom-get");
	if (!r)
		r = check_type(w, json_string_value(type), "/machine", &refused);
	if (!r)
		r = query(w, "qom-get",
			json_pack("{s:s, s:s}", "path", "/machine", "property",
				"confidential-guest-support"),
			&guard);
	if (r < 0)
		return r;
	if (!json_string_value(guard) || !json_string_value(guard)[0])
		return 0;
	return refuse(w, BACKEND, PLAIN_VM,
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
	return refuse(w, "cache-direct",
		"--reopen-disks switches it to cache.direct=off while the VM is split, without a "
		"stop. Or start QEMU with cache=writeback (cache.direct=off) for this disk.",
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
	for (size_t i = 0; i < SMV_ARRAY_SIZE(refused_drivers); i++)
		if (fnmatch(refused_drivers[i].name, driver, 0) == 0)
			return refuse(w, BACKEND, refused_drivers[i].hint,
				"block node '%s' uses driver '%s': %s", name ? name : "?", driver,
				refused_drivers[i].why);
	return refuse(w, BACKEND,
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
	return refuse(w, BACKEND,
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

/* Files through which something beside QEMU gets at its memory. */
static const struct {
	const char *pattern, *hint;
} refused_files[] = {
	{"/dev/vhost-net", "Set vhost=off on the netdev; it must be plugged anew for that."},
	{"/dev/vhost-vdpa*", "Use a tap netdev with vhost=off."},
	{"/dev/vhost-*",
		"Add no vhost devices; their virtio counterparts of QEMU are let through."},
	{"/dev/vfio/*", EMULATED},
	{"/dev/iommu", EMULATED},
	{"/dev/sev", PLAIN_VM},
	{"/dev/sgx_*", PLAIN_VM},
	{"/dev/infiniband/*", "Use no RDMA device in the VM, and no RDMA migration at this time."},
	{"/dev/udmabuf", "Start the VM with blob=off on its virtio-gpu."},
	{"/dmabuf:*", "Use a display without OpenGL: no gl=on, no virtio-*-gl."},
};

/* Buffers that are registered with an io_uring are pinned; QEMU 7.2 registers none. */
static int check_io_uring(struct walk *w, const char *number)
{
	char path[64];
	CLEANUP_FREE char *line = NULL;
	CLEANUP_FILE FILE *file = NULL;
	size_t len = 0;
	unsigned int buffers;

	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%.20s", (int)w->pid, number);
	file = fopen(path, "re");
	while (file && getline(&line, &len, file) > 0)
		if (sscanf(line, "UserBufs: %u", &buffers) == 1 && buffers > 0)
			return refuse(w, BACKEND, "Use aio=threads for all disks.",
				"QEMU (process %d) has buffers registered with an io_uring, which "
				"pins them",
				(int)w->pid);
	return 0;
}

static int check_file(struct walk *w, const char *number, const char *link)
{
	if (strcmp(link, "anon_inode:[io_uring]") == 0)
		return check_io_uring(w, number);
	for (size_t i = 0; i < SMV_ARRAY_SIZE(refused_files); i++)
		if (fnmatch(refused_files[i].pattern, link, 0) == 0)
			return refuse(w, BACKEND, refused_files[i].hint,
				"QEMU (process %d) has %s open: its RAM is reached beside QEMU",
				(int)w->pid, link);
	return 0;
}

/*
 * QMP does not tell whether a tap uses vhost, but then QEMU has /dev/vhost-net open. With a tap,
 * seeing QEMU's files is a must: /dev/net/tun among them proves that they are QEMU's.
 */
static int check_files(struct walk *w, bool tap)
{
	char path[64], link[256];
	struct dirent *entry;
	bool tun = false;
	int r = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)w->pid);
	dir = w->pid > 0 ? opendir(path) : NULL;
	while (dir && !r && (entry = readdir(dir))) {
		ssize_t n = readlinkat(dirfd(dir), entry->d_name, link, sizeof(link) - 1);

		link[n > 0 ? n : 0] = 0;
		tun |= strcmp(link, "/dev/net/tun") == 0;
		r = check_file(w, entry->d_name, link);
	}
	if (dir)
		closedir(dir);
	if (r < 0 || !tap || tun)
		return r;
	return refuse(w, BACKEND, "Run on the host of QEMU, as root or as QEMU's user.",
		"the VM has a tap netdev, and whether it uses vhost cannot be seen: QEMU's open "
		"files are not readable from here");
}

static int check_all(struct walk *w)
{
	bool tap = false;
	int r = check_machine(w);

	if (!r)
		r = walk_qom(w, "/machine", 0);
	if (!r)
		r = walk_qom(w, "/objects", 0);
	if (!r)
		r = check_blocks(w);
	if (!r)
		r = check_netdevs(w, &tap);
	return r < 0 ? r : check_files(w, tap);
}

int smv_allow_list_check_pid(struct smv_qmp *qmp, pid_t pid, struct smv_error *err)
{
	struct smv_error own; /* some steps look at the code */

	return check_all(&(struct walk){.qmp = qmp, .pid = pid, .err = err ? err : &own});
}

int smv_allow_list_check(struct smv_qmp *qmp, struct smv_error *err)
{
	return smv_allow_list_check_pid(qmp, smv_qmp_peer_pid(qmp), err);
}

int smv_allow_list_collect(
	struct smv_qmp *qmp, pid_t pid, struct smv_refusals *refusals, struct smv_error *err)
{
	struct smv_error own;
	struct walk w = {.qmp = qmp, .pid = pid, .list = refusals, .err = err ? err : &own};
	int r = check_all(&w);

	/* What we could not make sense of is one more reason. */
	if (r < 0 && smv_refusals_take(refusals, w.err) == 0)
		r = 0;
	return r;
}

int smv_allow_list_check_blocks(struct smv_qmp *qmp, struct smv_error *err)
{
	struct smv_error own;

	return check_blocks(&(struct walk){.qmp = qmp, .err = err ? err : &own});
}
