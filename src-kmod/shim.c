// SPDX-License-Identifier: GPL-2.0
/*
 * See shim.h. Grouped as there; comments here say what is not obvious about
 * the kernel's side.
 */
#include <crypto/sha2.h>
#include <crypto/utils.h>
#include <linux/blk-mq.h>
#include <linux/crc32c.h>
#include <linux/cred.h>
#include <linux/dcache.h>
#include <linux/delay.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/fs_struct.h>
#include <linux/ftrace.h>
#include <linux/highmem.h>
#include <linux/kdev_t.h>
#include <linux/kobject.h>
#include <linux/kprobes.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mount.h>
#include <linux/namei.h>
#include <linux/part_stat.h>
#include <linux/pm.h>
#include <linux/reboot.h>
#include <linux/sched/mm.h>
#include <linux/statfs.h>
#include <linux/suspend.h>
#include <linux/uio.h>
#include <linux/uuid.h>
#include <linux/version.h>
#include <scsi/scsi_cmnd.h>
#include <scsi/scsi_proto.h>

#include "shim.h"

/* --- Hooks ------------------------------------------------------------- */

/*
 * The three call-throughs. Each must be a real call whose return address
 * lies within its own first bytes: that is how the callbacks below know our
 * own calls and let them pass. tests/ checks the binary for it.
 */
#define CALL_THROUGH_BYTES 64

noinline void bdsnap_orig_submit(struct bio *bio)
{
	submit_bio_noacct(bio);
	barrier();
}

noinline struct file *bdsnap_orig_open(dev_t dev, blk_mode_t mode, void *holder,
				       const struct blk_holder_ops *hops)
{
	struct file *file = bdev_file_open_by_dev(dev, mode, holder, hops);

	barrier();
	return file;
}

noinline void bdsnap_orig_fput(struct file *file)
{
	bdev_fput(file);
	barrier();
}

static __always_inline bool own_call(unsigned long parent, void *call_through)
{
	return parent - (unsigned long)call_through < CALL_THROUGH_BYTES;
}

static void notrace on_submit(unsigned long ip, unsigned long parent,
			      struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
	struct bio *bio = (struct bio *)ftrace_regs_get_argument(fregs, 0);
	bool work;

	if (!op_is_write(bio->bi_opf) || own_call(parent, bdsnap_orig_submit))
		return;
	/* Without FTRACE_OPS_FL_RECURSION nobody has disabled preemption. */
	rcu_read_lock();
	work = bdsnap_bio_needs_work(bio);
	rcu_read_unlock();
	if (work)
		ftrace_regs_set_instruction_pointer(fregs, (unsigned long)bdsnap_submit);
}

/*
 * Before 7.3 f2fs opens the further devices of a filesystem with the same
 * holder as the first, its superblock, but without operations, as all who are
 * no filesystem do. So its superblocks are remembered until they give the
 * first device back. Many more mounts than fit would have to be under way at
 * a time for one to be forgotten too early.
 */
#if LINUX_VERSION_CODE < KERNEL_VERSION(7, 3, 0)
static void *f2fs_supers[32];
static atomic_t f2fs_next;

static void notrace f2fs_remember(void *holder, const void *hops)
{
	struct super_block *sb = holder;

	/* With other operations the holder may be anything. */
	if (hops == &fs_holder_ops && !strcmp(sb->s_type->name, "f2fs"))
		WRITE_ONCE(f2fs_supers[(unsigned int)atomic_inc_return(&f2fs_next) %
				       ARRAY_SIZE(f2fs_supers)], sb);
}

static bool notrace f2fs_holds(const void *holder)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(f2fs_supers); i++)
		if (READ_ONCE(f2fs_supers[i]) == holder)
			return true;
	return false;
}

static void notrace f2fs_forget(const void *holder)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(f2fs_supers); i++)
		if (READ_ONCE(f2fs_supers[i]) == holder)
			WRITE_ONCE(f2fs_supers[i], NULL);
}

static void f2fs_forget_all(void)
{
	memset(f2fs_supers, 0, sizeof(f2fs_supers));
}
#else
static inline void f2fs_remember(void *holder, const void *hops) { }
static inline bool f2fs_holds(const void *holder) { return false; }
static inline void f2fs_forget(const void *holder) { }
static inline void f2fs_forget_all(void) { }
#endif

static void notrace on_open(unsigned long ip, unsigned long parent,
			    struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
	void *holder = (void *)ftrace_regs_get_argument(fregs, 2);
	const void *hops = (const void *)ftrace_regs_get_argument(fregs, 3);

	/* A filesystem's claim has a holder and operations; scans do not. */
	if (!holder || own_call(parent, bdsnap_orig_open))
		return;
	if (hops)
		f2fs_remember(holder, hops);
	else if (!f2fs_holds(holder))
		return;
	ftrace_regs_set_instruction_pointer(fregs, (unsigned long)bdsnap_open);
}

static void notrace on_fput(unsigned long ip, unsigned long parent,
			    struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
	struct file *file = (struct file *)ftrace_regs_get_argument(fregs, 0);

	if (own_call(parent, bdsnap_orig_fput))
		return;
	f2fs_forget(file->private_data);
	if (!bdsnap_fput_needs_work(file))
		return;
	ftrace_regs_set_instruction_pointer(fregs, (unsigned long)bdsnap_fput);
}

/*
 * What reaches a disk without a bio: requests of device mapper's multipath, and commands,
 * of SG_IO, of NVMe, of SCSI and NVMe targets. On disks that have requests there is no other way; on
 * those that have none there is none. Only looked at: what a command changes is its own to know.
 */

/* ATA commands that change what a disk holds although they have no data. */
static bool notrace ata_changes(u8 command)
{
	switch (command) {
	case 0x38: /* CFA WRITE SECTORS WITHOUT ERASE */
	case 0x45: /* WRITE UNCORRECTABLE EXT */
	case 0xb4: /* SANITIZE DEVICE */
	case 0xc0: /* CFA ERASE SECTORS */
	case 0xf4: /* SECURITY ERASE UNIT */
		return true;
	}
	return false;
}

/* Whether a SCSI command may change what a disk holds. */
static bool notrace scsi_changes(const struct request *rq)
{
	const u8 *cdb = ((const struct scsi_cmnd *)blk_mq_rq_to_pdu((struct request *)rq))->cmnd;

	switch (cdb[0]) {
	case MODE_SELECT:
	case MODE_SELECT_10:
	case PERSISTENT_RESERVE_OUT:
	case MAINTENANCE_OUT:
		return false;
	/* They may have no data. */
	case FORMAT_UNIT:
	case WRITE_SAME:
	case WRITE_SAME_16:
	case 0x38: /* FORMAT WITH PRESET */
	case 0x48: /* SANITIZE */
		return true;
	case ATA_12:
		return op_is_write(rq->cmd_flags) || ata_changes(cdb[9]);
	case ATA_16:
		return op_is_write(rq->cmd_flags) || ata_changes(cdb[14]);
	}
	return op_is_write(rq->cmd_flags);
}

static void notrace on_request(unsigned long ip, unsigned long parent,
			       struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
	struct request *rq = (struct request *)ftrace_regs_get_argument(fregs, 0);
	const struct device *host;
	struct gendisk *disk;
	bool changes;

	/* Its disk may be going: only a command's queue is kept. */
	rcu_read_lock();
	disk = READ_ONCE(rq->q->disk);
	if (!disk)
		goto out;
	host = disk_to_dev(disk)->parent;
	if (blk_rq_is_passthrough(rq) && host && host->bus && !strcmp(host->bus->name, "scsi"))
		changes = scsi_changes(rq);
	else
		/* NVMe's own that write zeroes have no data. */
		changes = op_is_write(rq->cmd_flags) ||
			  (blk_rq_is_passthrough(rq) && !blk_rq_bytes(rq));
	if (changes)
		bdsnap_saw_request(disk, disk->flags & GENHD_FL_HIDDEN);
out:
	rcu_read_unlock();
}

static void notrace on_syscall(unsigned long ip, unsigned long parent,
			       struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
	const struct pt_regs *regs = (const struct pt_regs *)ftrace_regs_get_argument(fregs, 0);

	/*
	 * One function serves 64-bit and 32-bit callers; the latter keep
	 * their -ENOSYS. Above the low half orig_ax may hold anything.
	 */
	if (in_ia32_syscall() || !bdsnap_syscall_is_ours((unsigned int)regs->orig_ax))
		return;
	ftrace_regs_set_instruction_pointer(fregs, (unsigned long)bdsnap_syscall);
}

static struct {
	struct ftrace_ops ops;
	unsigned long ip;
	bool looks_only;
	bool installed;
} hooks[BDSNAP_HOOKS] = {
	[BDSNAP_HOOK_SUBMIT].ops.func = on_submit,
	[BDSNAP_HOOK_OPEN].ops.func = on_open,
	[BDSNAP_HOOK_FPUT].ops.func = on_fput,
	[BDSNAP_HOOK_EXECUTE] = { .ops.func = on_request, .looks_only = true },
	[BDSNAP_HOOK_EXECUTE_NOWAIT] = { .ops.func = on_request, .looks_only = true },
	[BDSNAP_HOOK_CLONED] = { .ops.func = on_request, .looks_only = true },
	[BDSNAP_HOOK_SYSCALL].ops.func = on_syscall,
};

/*
 * A symbol's address, by a kprobe that is never armed: disarming one may fail
 * for want of memory, and then the kernel keeps a probe that is gone.
 */
static unsigned long symbol_address(const char *name)
{
	struct kprobe kp = { .symbol_name = name, .flags = KPROBE_FLAG_DISABLED };
	unsigned long addr;

	if (register_kprobe(&kp))
		return 0;
	addr = (unsigned long)kp.addr;
	unregister_kprobe(&kp);
	return addr;
}

static unsigned long hook_address(enum bdsnap_hook which)
{
	switch (which) {
	case BDSNAP_HOOK_SUBMIT:
		return (unsigned long)submit_bio_noacct;
	case BDSNAP_HOOK_OPEN:
		return (unsigned long)bdev_file_open_by_dev;
	case BDSNAP_HOOK_FPUT:
		return (unsigned long)bdev_fput;
	case BDSNAP_HOOK_EXECUTE:
		return (unsigned long)blk_execute_rq;
	case BDSNAP_HOOK_EXECUTE_NOWAIT:
		return (unsigned long)blk_execute_rq_nowait;
	case BDSNAP_HOOK_CLONED:
		return (unsigned long)blk_insert_cloned_request;
	default:
		return symbol_address("__x64_sys_ni_syscall");
	}
}

int bdsnap_hook_install(enum bdsnap_hook which)
{
	struct ftrace_ops *ops = &hooks[which].ops;
	unsigned long ip = hook_address(which);
	int ret;

	if (!ip)
		return -ENOENT;
	if (which == BDSNAP_HOOK_OPEN)
		f2fs_forget_all();
	ops->flags = FTRACE_OPS_FL_PERMANENT | (hooks[which].looks_only ? 0 : FTRACE_OPS_FL_IPMODIFY);
	ret = ftrace_set_filter_ip(ops, ip, 0, 0);
	if (ret)
		return ret;
	ret = register_ftrace_function(ops);
	if (ret) {
		ftrace_set_filter_ip(ops, ip, 1, 0);
		ftrace_free_filter(ops);
		return ret;
	}
	hooks[which].ip = ip;
	hooks[which].installed = true;
	return 0;
}

void bdsnap_hook_remove(enum bdsnap_hook which)
{
	struct ftrace_ops *ops = &hooks[which].ops;

	if (!hooks[which].installed)
		return;
	/* Waits until no task is in the trampoline or the callback. */
	unregister_ftrace_function(ops);
	ftrace_set_filter_ip(ops, hooks[which].ip, 1, 0);
	ftrace_free_filter(ops);
	hooks[which].installed = false;
}

/*
 * An empty flush, sent as any filesystem would send it. Its address goes to
 * *bio_out first: the hook's Rust side knows it by that.
 */
int bdsnap_self_test_submit(struct block_device *bdev, const void **bio_out)
{
	struct bio bio;
	int ret;

	bio_init(&bio, bdev, NULL, 0, REQ_OP_WRITE | REQ_PREFLUSH);
	WRITE_ONCE(*bio_out, &bio);
	ret = submit_bio_wait(&bio);
	WRITE_ONCE(*bio_out, NULL);
	bio_uninit(&bio);
	return ret;
}

/* --- Tasks and memory -------------------------------------------------- */

/*
 * Whether a submitter may be made to wait: not inside another driver's
 * submit (what it waits for may be queued behind it), not when it frees
 * memory for others.
 */
bool bdsnap_may_throttle(void)
{
	return !current->bio_list &&
	       !(current->flags & (PF_MEMALLOC | PF_KSWAPD | PF_EXITING)) &&
	       !in_atomic() && !irqs_disabled();
}

/*
 * Workers between a held write and the store: their own writes must not be
 * throttled as if they made the dirt, nor reclaim wait for what they hold.
 */
unsigned int bdsnap_noio_enter(void)
{
	unsigned int saved = current->flags & (PF_LOCAL_THROTTLE | PF_MEMALLOC_NOIO);

	current->flags |= PF_LOCAL_THROTTLE | PF_MEMALLOC_NOIO;
	return saved;
}

void bdsnap_noio_leave(unsigned int saved)
{
	current_restore_flags(saved, PF_LOCAL_THROTTLE | PF_MEMALLOC_NOIO);
}

struct page *bdsnap_page_alloc(bool patient)
{
	if (patient)
		return alloc_page(GFP_KERNEL | __GFP_NOWARN);
	return alloc_page(GFP_NOIO | __GFP_NORETRY | __GFP_NOWARN);
}

void bdsnap_page_free(struct page *page)
{
	__free_page(page);
}

/* The task group of who runs now. */
pid_t bdsnap_current_tgid(void)
{
	return current->tgid;
}

bool bdsnap_is_admin(void)
{
	return capable(CAP_SYS_ADMIN);
}

u64 bdsnap_total_ram(void)
{
	return (u64)totalram_pages() << PAGE_SHIFT;
}

u64 bdsnap_now_real_ns(void)
{
	return ktime_get_real_ns();
}

u64 bdsnap_now_boot_ns(void)
{
	return ktime_get_boottime_ns();
}

u64 bdsnap_now_awake_ns(void)
{
	return ktime_get_ns();
}

void bdsnap_sleep(unsigned int ms)
{
	msleep(ms);
}

int bdsnap_sleep_killable(unsigned int ms)
{
	return schedule_timeout_killable(msecs_to_jiffies(ms)) ? -EINTR : 0;
}

void bdsnap_boot_id(u8 out[16])
{
	char text[UUID_STRING_LEN + 2] = {};
	uuid_t id;

	memset(out, 0, 16);
	if (bdsnap_read_text("/proc/sys/kernel/random/boot_id", text, sizeof(text)) > 0 &&
	    !uuid_parse(text, &id))
		memcpy(out, &id, 16);
}

/* The store's convention inverts before and after, the kernel's does not. */
u32 bdsnap_crc(u32 crc, const void *bytes, size_t len)
{
	return ~crc32c(~crc, bytes, len);
}

u32 bdsnap_crc_pages(struct page **pages, size_t bytes)
{
	u32 crc = ~0u;
	size_t at;

	for (at = 0; at < bytes; at += PAGE_SIZE) {
		void *p = kmap_local_page(pages[at >> PAGE_SHIFT]);

		crc = crc32c(crc, p, min_t(size_t, PAGE_SIZE, bytes - at));
		kunmap_local(p);
	}
	return ~crc;
}

bool bdsnap_zero_pages(struct page **pages, size_t bytes)
{
	size_t at;

	for (at = 0; at < bytes; at += PAGE_SIZE) {
		void *p = kmap_local_page(pages[at >> PAGE_SHIFT]);
		bool zero = !memchr_inv(p, 0, min_t(size_t, PAGE_SIZE, bytes - at));

		kunmap_local(p);
		if (!zero)
			return false;
	}
	return true;
}

void bdsnap_sha256(const u8 *data, size_t len, u8 out[32])
{
	sha256(data, len, out);
}

/* First (and for us only) block of PBKDF2-HMAC-SHA-256, RFC 8018. */
int bdsnap_pbkdf2_block(const u8 *pw, size_t pw_len, const u8 *salt,
			size_t salt_len, u32 rounds, u8 out[32])
{
	static const u8 block_one[4] = { 0, 0, 0, 1 };
	struct hmac_sha256_key key;
	struct hmac_sha256_ctx ctx;
	u8 u[32];
	u32 i, j;
	int ret = 0;

	hmac_sha256_preparekey(&key, pw, pw_len);
	hmac_sha256_init(&ctx, &key);
	hmac_sha256_update(&ctx, salt, salt_len);
	hmac_sha256_update(&ctx, block_one, sizeof(block_one));
	hmac_sha256_final(&ctx, u);
	memcpy(out, u, 32);
	for (i = 1; i < rounds; i++) {
		hmac_sha256(&key, u, 32, u);
		for (j = 0; j < 32; j++)
			out[j] ^= u[j];
		if (!(i % 1024)) {
			cond_resched();
			if (fatal_signal_pending(current)) {
				ret = -EINTR;
				break;
			}
		}
	}
	memzero_explicit(&key, sizeof(key));
	memzero_explicit(u, sizeof(u));
	if (ret)
		memzero_explicit(out, 32);
	return ret;
}

void bdsnap_log_wrong_password(u64 penalty_ms)
{
	/* A task chooses its name: escaped. */
	pr_warn("bdsnap: wrong password from uid %u, pid %d (%*pE); next check in %llu ms\n",
		from_kuid(&init_user_ns, current_uid()), task_pid_nr(current),
		(int)strnlen(current->comm, sizeof(current->comm)), current->comm, penalty_ms);
}

bool bdsnap_equal_ct(const void *a, const void *b, size_t n)
{
	return !crypto_memneq(a, b, n);
}

void bdsnap_wipe(void *p, size_t n)
{
	memzero_explicit(p, n);
}

/* --- Bios and disks ---------------------------------------------------- */

static struct bio_set read_bios;
static struct bio_set split_bios;

int bdsnap_bios_init(void)
{
	int ret = bioset_init(&read_bios, 64, 0, BIOSET_NEED_BVECS);

	if (ret)
		return ret;
	ret = bioset_init(&split_bios, 16, 0, 0);
	if (ret)
		bioset_exit(&read_bios);
	return ret;
}

void bdsnap_bios_exit(void)
{
	bioset_exit(&split_bios);
	bioset_exit(&read_bios);
}

static void read_end_io(struct bio *bio)
{
	void *slice = bio->bi_private;
	int error = blk_status_to_errno(bio->bi_status);

	bio_put(bio);
	bdsnap_read_done(slice, error);
}

static struct bio *read_bio(struct gendisk *disk, u64 sector, struct page **pages,
			    size_t bytes)
{
	unsigned int n = DIV_ROUND_UP(bytes, PAGE_SIZE);
	struct bio *bio;
	size_t at;

	if (n > BIO_MAX_VECS)
		return NULL;
	bio = bio_alloc_bioset(disk->part0, n, REQ_OP_READ | REQ_SYNC, GFP_NOIO, &read_bios);
	if (!bio)
		return NULL;
	bio->bi_iter.bi_sector = sector;
	for (at = 0; at < bytes; at += PAGE_SIZE)
		__bio_add_page(bio, pages[at >> PAGE_SHIFT],
			       min_t(size_t, PAGE_SIZE, bytes - at), 0);
	return bio;
}

/* Ends in bdsnap_read_done(slice, …), perhaps before this returns. */
int bdsnap_read_submit(struct gendisk *disk, u64 sector, struct page **pages,
		       size_t bytes, void *slice)
{
	struct bio *bio = read_bio(disk, sector, pages, bytes);

	if (!bio)
		return -ENOMEM;
	bio->bi_private = slice;
	bio->bi_end_io = read_end_io;
	bdsnap_orig_submit(bio);
	return 0;
}

int bdsnap_read_sync(struct gendisk *disk, u64 sector, struct page **pages, size_t bytes)
{
	struct bio *bio = read_bio(disk, sector, pages, bytes);
	int ret;

	if (!bio)
		return -ENOMEM;
	ret = submit_bio_wait(bio);
	bio_put(bio);
	return ret;
}

/* The first sectors as a bio of its own, chained to the rest. NULL: failed. */
struct bio *bdsnap_bio_split(struct bio *bio, unsigned int sectors)
{
	struct bio *front = bio_split(bio, sectors, GFP_NOIO, &split_bios);

	if (IS_ERR_OR_NULL(front))
		return NULL;
	bio_chain(front, bio);
	return front;
}

void bdsnap_bio_absorb(struct bio *bio)
{
	bio_endio(bio);
}

/*
 * The submitter goes on while we hold its bio, so nobody would poll for it,
 * and a later "would block" would reach somebody who is not ready for it.
 */
void bdsnap_bio_prepare_hold(struct bio *bio)
{
	bio_clear_polled(bio);
	bio->bi_opf &= ~REQ_NOWAIT;
}

bool bdsnap_disk_alive(struct gendisk *disk)
{
	return disk_live(disk);
}

int bdsnap_disk_refusal(struct gendisk *disk)
{
	if (bdev_is_zoned(disk->part0) || (disk->queue->limits.features & BLK_FEAT_DAX))
		return -EINVAL;
	return 0;
}

/*
 * Each partition and the whole disk have page caches of their own; write out
 * those that overlap the range.
 */
void bdsnap_sync_range(struct gendisk *disk, u64 start, u64 end)
{
	struct block_device *part;
	unsigned long idx;

	rcu_read_lock();
	xa_for_each(&disk->part_tbl, idx, part) {
		u64 s = part->bd_start_sect;

		if (s >= end || s + bdev_nr_sectors(part) <= start)
			continue;
		if (!kobject_get_unless_zero(&part->bd_device.kobj))
			continue;
		rcu_read_unlock();
		sync_blockdev(part);
		put_device(&part->bd_device);
		rcu_read_lock();
	}
	rcu_read_unlock();
}

int bdsnap_flush(struct gendisk *disk)
{
	return blkdev_issue_flush(disk->part0);
}

unsigned int bdsnap_inflight(struct gendisk *disk)
{
	return bdev_count_inflight(disk->part0);
}

/* Whether a filesystem has a part of the range, but for one device; dm, md and swap have no operations. */
bool bdsnap_range_mounted(struct gendisk *disk, u64 start, u64 end,
			  const struct block_device *except)
{
	struct block_device *part;
	unsigned long idx;
	bool claimed = false;

	rcu_read_lock();
	xa_for_each(&disk->part_tbl, idx, part) {
		u64 s = part->bd_start_sect;

		/* The whole disk counts as held while a partition is. */
		if (s >= end || s + bdev_nr_sectors(part) <= start ||
		    part == except ||
		    (!bdev_is_partition(part) && start))
			continue;
		claimed |= READ_ONCE(part->bd_holder_ops) != NULL;
	}
	rcu_read_unlock();
	return claimed;
}

struct block_device *bdsnap_file_bdev(struct file *file)
{
	return file_bdev(file);
}

int bdsnap_disk_name(struct gendisk *disk, char *buf, size_t len)
{
	return strscpy(buf, disk->disk_name, len);
}

void bdsnap_bdev_info(struct block_device *bdev, struct bdsnap_bdev_info *out)
{
	out->disk = bdev->bd_disk;
	out->start = bdev->bd_start_sect;
	out->seq = READ_ONCE(bdev->bd_disk->diskseq);
	out->sectors = bdev_nr_sectors(bdev);
	out->major = MAJOR(bdev->bd_dev);
	out->minor = MINOR(bdev->bd_dev);
	out->logical_block_size = bdev_logical_block_size(bdev);
	out->read_only = bdev_read_only(bdev);
	out->partition = bdev_is_partition(bdev);
}

/*
 * The disk that somebody else keeps open, once more, so that its driver knows that
 * we may read: loop and device mapper take what is below them away when nobody
 * has them open, and a driver goes when nobody has its disks open. Always the whole
 * disk, which is not in the way of who reads its partition table anew. End with
 * bdsnap_close().
 */
struct file *bdsnap_disk_reopen(struct gendisk *disk)
{
	struct file *file = bdsnap_orig_open(disk_devt(disk), BLK_OPEN_READ | BLK_OPEN_NDELAY,
					     NULL, NULL);

	if (!IS_ERR(file) && file_bdev(file)->bd_disk != disk) {
		bdsnap_close(file);
		return ERR_PTR(-ENXIO);
	}
	return file;
}

/* The same for the disk of a device, and what that is. */
struct file *bdsnap_disk_open(dev_t dev, struct bdsnap_bdev_info *out)
{
	struct file *file = bdsnap_orig_open(dev, BLK_OPEN_READ | BLK_OPEN_NDELAY, NULL, NULL);
	struct file *whole;

	if (IS_ERR(file))
		return file;
	bdsnap_bdev_info(file_bdev(file), out);
	if (!bdev_is_partition(file_bdev(file)))
		return file;
	whole = bdsnap_disk_reopen(out->disk);
	bdsnap_close(file);
	return whole;
}

/*
 * Sectors that were written or discarded since the disk came, by its statistics. False: it
 * keeps none.
 */
bool bdsnap_disk_written(struct gendisk *disk, u64 *sectors)
{
	if (!blk_queue_io_stat(disk->queue))
		return false;
	*sectors = part_stat_read(disk->part0, sectors[STAT_WRITE]) +
		   part_stat_read(disk->part0, sectors[STAT_DISCARD]);
	return true;
}

/* Whether there is a way to it past bios: only to disks that have requests. */
bool bdsnap_disk_has_requests(struct gendisk *disk)
{
	return queue_is_mq(disk->queue);
}

/* --- Paths and files --------------------------------------------------- */

/* Kernel threads have a root of their own, with nothing in it, since 7.3. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 3, 0)
#define WITH_INIT_ROOT(statement)				\
	do {							\
		struct fs_struct *old = __override_init_fs();	\
		statement;					\
		__revert_init_fs(old);				\
	} while (0)
#else
#define WITH_INIT_ROOT(statement) do { statement; } while (0)
#endif

static int path_string(const struct path *path, char *out, size_t len)
{
	char *buf = (char *)__get_free_page(GFP_KERNEL);
	char *name;
	int ret = -ENAMETOOLONG;

	if (!buf)
		return -ENOMEM;
	name = d_path(path, buf, PAGE_SIZE);
	if (IS_ERR(name))
		ret = PTR_ERR(name);
	else if (strscpy(out, name, len) >= 0)
		ret = 0;
	free_page((unsigned long)buf);
	return ret;
}

/* Follows links. The name's own root or PID 1's; see the callers. */
int bdsnap_name_info(const char *name, bool in_init_root, struct bdsnap_name_info *out,
		     char *canonical, size_t len)
{
	struct path path;
	struct inode *inode;
	struct kstat st;
	int ret;

	memset(out, 0, sizeof(*out));
	if (in_init_root)
		WITH_INIT_ROOT(ret = kern_path(name, LOOKUP_FOLLOW, &path));
	else
		ret = kern_path(name, LOOKUP_FOLLOW, &path);
	if (ret)
		return ret;
	inode = d_backing_inode(path.dentry);
	out->is_blk = S_ISBLK(inode->i_mode);
	out->is_reg = S_ISREG(inode->i_mode);
	if (out->is_blk)
		out->dev = inode->i_rdev;
	if (out->is_blk && path.mnt && (path.mnt->mnt_flags & MNT_NODEV))
		ret = -EACCES;
	if (!ret && out->is_reg) {
		ret = vfs_getattr(&path, &st, STATX_MTIME | STATX_SIZE | STATX_INO, AT_STATX_DONT_SYNC);
		out->dev = st.dev;
		out->ino = st.ino;
		out->mtime_ns = (u64)st.mtime.tv_sec * NSEC_PER_SEC + st.mtime.tv_nsec;
		out->size = st.size;
	}
	if (!ret && canonical) {
		if (in_init_root)
			WITH_INIT_ROOT(ret = path_string(&path, canonical, len));
		else
			ret = path_string(&path, canonical, len);
	}
	path_put(&path);
	return ret;
}

int bdsnap_cwd(char *buf, size_t len)
{
	struct path path;
	int ret;

	get_fs_pwd(current->fs, &path);
	ret = path_string(&path, buf, len);
	path_put(&path);
	return ret;
}

struct file *bdsnap_open_to_read(const char *name)
{
	struct file *file;

	WITH_INIT_ROOT(file = filp_open(name, O_RDONLY | O_LARGEFILE, 0));
	return file;
}

/* A short text file of /sys or /proc; returns its length. */
int bdsnap_read_text(const char *name, char *buf, size_t len)
{
	struct file *file;
	loff_t pos = 0;
	ssize_t ret;

	WITH_INIT_ROOT(file = filp_open(name, O_RDONLY, 0));
	if (IS_ERR(file))
		return PTR_ERR(file);
	/* Some attributes are paths, made when they are read. */
	WITH_INIT_ROOT(ret = kernel_read(file, buf, len - 1, &pos));
	bdsnap_close(file);
	if (ret < 0)
		return ret;
	buf[ret] = 0;
	while (ret && buf[ret - 1] == '\n')
		buf[--ret] = 0;
	return ret;
}

struct names {
	struct dir_context ctx;
	char *buf;
	size_t len, used;
};

static bool add_name(struct dir_context *ctx, const char *name, int len, loff_t offset,
		     u64 ino, unsigned int type)
{
	struct names *names = container_of(ctx, struct names, ctx);

	if (name[0] == '.')
		return true;
	if (len >= names->len - names->used) {
		names->used = names->len + 1;
		return false;
	}
	memcpy(names->buf + names->used, name, len);
	names->buf[names->used + len] = 0;
	names->used += len + 1;
	return true;
}

/* The names in a directory of /sys, each ended by a NUL; returns their bytes. */
int bdsnap_list_dir(const char *name, char *buf, size_t len)
{
	struct names names = { .ctx.actor = add_name, .buf = buf, .len = len };
	struct file *dir;
	int ret;

	WITH_INIT_ROOT(dir = filp_open(name, O_RDONLY | O_DIRECTORY, 0));
	if (IS_ERR(dir))
		return PTR_ERR(dir);
	ret = iterate_dir(dir, &names.ctx);
	bdsnap_close(dir);
	if (ret < 0)
		return ret;
	return names.used <= len ? names.used : -E2BIG;
}

int bdsnap_path_resolve(const char *name, bool directory, struct path *out)
{
	unsigned int flags = LOOKUP_FOLLOW | (directory ? LOOKUP_DIRECTORY : 0);
	int ret;

	WITH_INIT_ROOT(ret = kern_path(name, flags, out));
	return ret;
}

void bdsnap_path_put(struct path *path)
{
	path_put(path);
}

void bdsnap_path_info(const struct path *path, struct bdsnap_store_info *out)
{
	struct super_block *sb = path->dentry->d_sb;

	memset(out, 0, sizeof(*out));
	out->sb = sb;
	out->magic = sb->s_magic;
	out->read_only = sb_rdonly(sb) || (path->mnt->mnt_flags & MNT_READONLY);
	if (sb->s_bdev) {
		out->disk = sb->s_bdev->bd_disk;
		out->start = sb->s_bdev->bd_start_sect;
		out->sectors = bdev_nr_sectors(sb->s_bdev);
	}
}

int bdsnap_path_space(const struct path *path, u64 *total, u64 *free)
{
	struct kstatfs st;
	int ret = vfs_statfs(path, &st);

	if (ret)
		return ret;
	*total = (u64)st.f_blocks * st.f_frsize;
	*free = (u64)st.f_bavail * st.f_frsize;
	return 0;
}

int bdsnap_mkdir_at(const struct path *dir, const char *name)
{
	struct mnt_idmap *idmap = mnt_idmap(dir->mnt);
	struct dentry *dentry;
	int ret;

	ret = mnt_want_write(dir->mnt);
	if (ret)
		return ret;
	dentry = start_creating(idmap, dir->dentry, &QSTR(name));
	if (IS_ERR(dentry)) {
		ret = PTR_ERR(dentry);
	} else {
		dentry = vfs_mkdir(idmap, d_inode(dir->dentry), dentry, 0700, NULL);
		ret = PTR_ERR_OR_ZERO(dentry);
		end_creating(dentry);
	}
	mnt_drop_write(dir->mnt);
	return ret;
}

/* A file, or an empty directory. */
int bdsnap_remove_at(const struct path *dir, const char *name, bool directory)
{
	struct mnt_idmap *idmap = mnt_idmap(dir->mnt);
	struct inode *inode = d_inode(dir->dentry);
	struct dentry *dentry;
	int ret;

	ret = mnt_want_write(dir->mnt);
	if (ret)
		return ret;
	dentry = start_removing(idmap, dir->dentry, &QSTR(name));
	if (IS_ERR(dentry)) {
		ret = PTR_ERR(dentry);
	} else {
		ret = directory ? vfs_rmdir(idmap, inode, dentry, NULL) :
				  vfs_unlink(idmap, inode, dentry, NULL);
		end_removing(dentry);
	}
	mnt_drop_write(dir->mnt);
	return ret;
}

/* A directory below dir: a real one, no link, on the same filesystem. */
int bdsnap_path_at(const struct path *dir, const char *name, struct path *out)
{
	int ret = vfs_path_lookup(dir->dentry, dir->mnt, name,
				  LOOKUP_DIRECTORY | LOOKUP_NO_SYMLINKS | LOOKUP_NO_XDEV, out);

	if (!ret && out->dentry->d_sb != dir->dentry->d_sb) {
		path_put(out);
		ret = -EXDEV;
	}
	return ret;
}

struct file *bdsnap_open_at(const struct path *dir, const char *name, int flags)
{
	return file_open_root(dir, name, flags | O_NOFOLLOW | O_LARGEFILE, 0600);
}

int bdsnap_rename_at(const struct path *dir, const char *from, const char *to)
{
	struct renamedata rd = {
		.mnt_idmap = mnt_idmap(dir->mnt),
		.old_parent = dir->dentry,
		.new_parent = dir->dentry,
	};
	int ret = mnt_want_write(dir->mnt);

	if (ret)
		return ret;
	ret = start_renaming(&rd, 0, &QSTR(from), &QSTR(to));
	if (!ret) {
		ret = vfs_rename(&rd);
		end_renaming(&rd);
	}
	mnt_drop_write(dir->mnt);
	return ret;
}

/* All or an error: a short write is -ENOSPC, as the next would say. */
int bdsnap_write(struct file *file, const void *buf, size_t len, u64 at)
{
	loff_t pos = at;
	ssize_t ret;

	while (len) {
		ret = kernel_write(file, buf, len, &pos);
		if (ret < 0)
			return ret;
		if (!ret)
			return -ENOSPC;
		buf += ret;
		len -= ret;
	}
	return 0;
}

/* Returns how many bytes, fewer only at the file's end. */
int bdsnap_read(struct file *file, void *buf, size_t len, u64 at)
{
	loff_t pos = at;
	size_t done = 0;

	while (done < len) {
		ssize_t ret = kernel_read(file, buf + done, len - done, &pos);

		if (ret < 0)
			return ret;
		if (!ret)
			break;
		done += ret;
	}
	return done;
}

/*
 * In a task whose allocations start no I/O; in pieces, lest it wait for a large
 * one. Without pages: zeros.
 */
int bdsnap_write_pages(struct file *file, struct page **pages, size_t bytes, u64 at)
{
	unsigned int n = DIV_ROUND_UP(bytes, PAGE_SIZE), i;
	struct bio_vec *vec = kvmalloc_array(n, sizeof(*vec), GFP_KERNEL);
	struct iov_iter iter;
	loff_t pos = at;
	ssize_t ret;

	if (!vec)
		return -ENOMEM;
	for (i = 0; i < n; i++)
		bvec_set_page(&vec[i], pages ? pages[i] : ZERO_PAGE(0),
			      min_t(size_t, PAGE_SIZE, bytes - i * PAGE_SIZE), 0);
	iov_iter_bvec(&iter, ITER_SOURCE, vec, n, bytes);
	ret = 0;
	while (iov_iter_count(&iter)) {
		ret = vfs_iter_write(file, &iter, &pos, 0);
		if (ret <= 0)
			break;
	}
	kvfree(vec);
	if (ret < 0)
		return ret;
	return iov_iter_count(&iter) ? -ENOSPC : 0;
}

int bdsnap_fsync(struct file *file, bool data_only)
{
	return vfs_fsync(file, data_only);
}

/*
 * The contents of two files. They go out together, and only then is waited for
 * anything else, so that one transaction of the journal can serve both.
 */
int bdsnap_fsync_both(struct file *a, struct file *b)
{
	int ret, ret_b;

	/* Errors stay for vfs_fsync() to tell. */
	filemap_fdatawrite(a->f_mapping);
	filemap_fdatawrite(b->f_mapping);
	filemap_fdatawait_keep_errors(b->f_mapping);
	ret = vfs_fsync(a, true);
	ret_b = vfs_fsync(b, true);
	return ret ? ret : ret_b;
}

/*
 * Whether bdsnap_fsync_in_place() may be used: on ext4, but not if it writes file data into its journal, of
 * which it says that there is no direct I/O then. What xfs does with a file on a
 * zoned device cannot be told from here, so it is not asked.
 */
bool bdsnap_one_flush(struct file *file)
{
	struct kstat stat;

	return file_inode(file)->i_sb->s_magic == EXT4_SUPER_MAGIC &&
	       !vfs_getattr(&file->f_path, &stat, STATX_DIOALIGN, AT_STATX_SYNC_AS_STAT) &&
	       (stat.result_mask & STATX_DIOALIGN) && stat.dio_offset_align;
}

/*
 * Like bdsnap_fsync_both(), when nothing of b changed but content, on a file system that
 * then writes it to the same places of one disk and not to a journal: once
 * both contents have come to the disk a single flush of its cache is enough,
 * which vfs_fsync() does, with or without a transaction for a.
 */
int bdsnap_fsync_in_place(struct file *a, struct file *b)
{
	int ret, ret_b;

	filemap_fdatawrite(a->f_mapping);
	ret_b = file_write_and_wait_range(b, 0, LLONG_MAX);
	ret = vfs_fsync(a, true);
	return ret ? ret : ret_b;
}

int bdsnap_truncate(struct file *file, u64 len)
{
	return vfs_truncate(&file->f_path, len);
}

/* At once: a kernel thread's fput() would only be done later. */
void bdsnap_close(struct file *file)
{
	__fput_sync(file);
}

/* --- Notifications ----------------------------------------------------- */

static int on_reboot(struct notifier_block *nb, unsigned long action, void *data)
{
	bdsnap_on_reboot();
	return NOTIFY_DONE;
}

static int on_pm(struct notifier_block *nb, unsigned long action, void *data)
{
	if (action == PM_HIBERNATION_PREPARE || action == PM_RESTORE_PREPARE)
		bdsnap_on_hibernate();
	else if (action == PM_POST_HIBERNATION || action == PM_POST_RESTORE)
		bdsnap_on_wake();
	return NOTIFY_DONE;
}

static struct notifier_block reboot_nb = { .notifier_call = on_reboot, .priority = 1 };
static struct notifier_block pm_nb = { .notifier_call = on_pm };

int bdsnap_notifiers_register(void)
{
	int ret = register_reboot_notifier(&reboot_nb);

	if (ret)
		return ret;
	ret = register_pm_notifier(&pm_nb);
	if (ret)
		unregister_reboot_notifier(&reboot_nb);
	return ret;
}

void bdsnap_notifiers_unregister(void)
{
	unregister_pm_notifier(&pm_nb);
	unregister_reboot_notifier(&reboot_nb);
}

void bdsnap_uevent(struct device *dev, const char *event, const char *device,
		   const char *session, int error)
{
	char *env[] = {
		kasprintf(GFP_KERNEL, "BDSNAP_EVENT=%s", event),
		kasprintf(GFP_KERNEL, "BDSNAP_DEVICE=%s", device),
		kasprintf(GFP_KERNEL, "BDSNAP_SESSION=%s", session),
		kasprintf(GFP_KERNEL, "BDSNAP_ERRNO=%d", error),
		NULL
	};
	int i;

	if (env[0] && env[1] && env[2] && env[3])
		kobject_uevent_env(&dev->kobj, KOBJ_CHANGE, env);
	for (i = 0; i < 4; i++)
		kfree(env[i]);
}

/* --- The watch over deadlines ------------------------------------------ */

static struct task_struct *watch_task;
static unsigned int watch_period_ms;

static int watch(void *unused)
{
	while (!kthread_should_stop()) {
		bdsnap_tick();
		set_current_state(TASK_IDLE);
		if (!kthread_should_stop())
			schedule_timeout(msecs_to_jiffies(watch_period_ms));
		__set_current_state(TASK_RUNNING);
	}
	return 0;
}

int bdsnap_watch_start(unsigned int period_ms)
{
	watch_period_ms = period_ms;
	watch_task = kthread_run(watch, NULL, "bdsnap-watch");
	return PTR_ERR_OR_ZERO(watch_task);
}

void bdsnap_watch_stop(void)
{
	if (!IS_ERR_OR_NULL(watch_task))
		kthread_stop(watch_task);
	watch_task = NULL;
}

/* A running session keeps the module. */
bool bdsnap_module_get(void)
{
	return try_module_get(THIS_MODULE);
}

void bdsnap_module_put(void)
{
	module_put(THIS_MODULE);
}
