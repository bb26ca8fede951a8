/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the Rust side of bdsnap needs of C: inline functions, macros,
 * call-throughs and differences between kernel versions. No policy.
 * sys.rs declares the same for Rust; keep the two in step.
 */
#ifndef BDSNAP_SHIM_H
#define BDSNAP_SHIM_H

#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/path.h>
#include <linux/types.h>

/* Entry points in Rust. */
bool bdsnap_bio_needs_work(struct bio *bio);
bool bdsnap_fput_needs_work(struct file *file);
bool bdsnap_syscall_is_ours(unsigned int nr);
void bdsnap_submit(struct bio *bio);
struct file *bdsnap_open(dev_t dev, blk_mode_t mode, void *holder,
			 const struct blk_holder_ops *hops);
void bdsnap_fput(struct file *file);
long bdsnap_syscall(const struct pt_regs *regs);
void bdsnap_read_done(void *slice, int error);
void bdsnap_saw_request(struct gendisk *disk, bool hidden);
int bdsnap_on_reboot(void);
void bdsnap_on_hibernate(void);
void bdsnap_on_wake(void);
void bdsnap_tick(void);

/* Hooks. */
enum bdsnap_hook {
	BDSNAP_HOOK_SUBMIT,
	BDSNAP_HOOK_OPEN,
	BDSNAP_HOOK_FPUT,
	BDSNAP_HOOK_EXECUTE,
	BDSNAP_HOOK_EXECUTE_NOWAIT,
	BDSNAP_HOOK_CLONED,
	BDSNAP_HOOK_SYSCALL,
	BDSNAP_HOOKS
};

int bdsnap_hook_install(enum bdsnap_hook which);
void bdsnap_hook_remove(enum bdsnap_hook which);
void bdsnap_orig_submit(struct bio *bio);
struct file *bdsnap_orig_open(dev_t dev, blk_mode_t mode, void *holder,
			      const struct blk_holder_ops *hops);
void bdsnap_orig_fput(struct file *file);
int bdsnap_self_test_submit(struct block_device *bdev, const void **bio_out);

/* Tasks and memory. */
bool bdsnap_may_throttle(void);
unsigned int bdsnap_noio_enter(void);
void bdsnap_noio_leave(unsigned int saved);
struct page *bdsnap_page_alloc(bool patient);
void bdsnap_page_free(struct page *page);
pid_t bdsnap_current_tgid(void);
bool bdsnap_is_admin(void);
u64 bdsnap_total_ram(void);
u64 bdsnap_now_real_ns(void);
u64 bdsnap_now_boot_ns(void);
u64 bdsnap_now_awake_ns(void);
void bdsnap_sleep(unsigned int ms);
int bdsnap_sleep_killable(unsigned int ms);
void bdsnap_boot_id(u8 out[16]);
u32 bdsnap_crc(u32 crc, const void *bytes, size_t len);
u32 bdsnap_crc_pages(struct page **pages, size_t bytes);
/* Whether the first @bytes bytes of @pages are all zeros. */
bool bdsnap_zero_pages(struct page **pages, size_t bytes);
void bdsnap_log_wrong_password(u64 penalty_ms);
int bdsnap_pbkdf2_block(const u8 *pw, size_t pw_len, const u8 *salt,
			size_t salt_len, u32 rounds, u8 out[32]);
bool bdsnap_equal_ct(const void *a, const void *b, size_t n);
void bdsnap_wipe(void *p, size_t n);
void bdsnap_sha256(const u8 *data, size_t len, u8 out[32]);

/* Bios and disks. */
int bdsnap_bios_init(void);
void bdsnap_bios_exit(void);
int bdsnap_read_submit(struct gendisk *disk, u64 sector, struct page **pages,
		       size_t bytes, void *slice);
int bdsnap_read_sync(struct gendisk *disk, u64 sector, struct page **pages,
		     size_t bytes);
struct bio *bdsnap_bio_split(struct bio *bio, unsigned int sectors);
void bdsnap_bio_absorb(struct bio *bio);
void bdsnap_bio_prepare_hold(struct bio *bio);
bool bdsnap_disk_alive(struct gendisk *disk);
int bdsnap_disk_refusal(struct gendisk *disk);
void bdsnap_sync_range(struct gendisk *disk, u64 start, u64 end);
int bdsnap_flush(struct gendisk *disk);
unsigned int bdsnap_inflight(struct gendisk *disk);
bool bdsnap_range_mounted(struct gendisk *disk, u64 start, u64 end,
			  const struct block_device *except);
bool bdsnap_disk_written(struct gendisk *disk, u64 *sectors);
bool bdsnap_disk_has_requests(struct gendisk *disk);
struct block_device *bdsnap_file_bdev(struct file *file);
int bdsnap_disk_name(struct gendisk *disk, char *buf, size_t len);

struct bdsnap_bdev_info {
	struct gendisk *disk;
	u64 seq;
	u64 start;
	u64 sectors;
	u32 major, minor;
	u32 logical_block_size;
	u8 read_only, partition;
};
void bdsnap_bdev_info(struct block_device *bdev, struct bdsnap_bdev_info *out);
struct file *bdsnap_disk_open(dev_t dev, struct bdsnap_bdev_info *out);
struct file *bdsnap_disk_reopen(struct gendisk *disk);

/* Paths and files; names are resolved in PID 1's root. */
struct bdsnap_name_info {
	dev_t dev;		/* of a block device; of a regular file its file system's */
	u64 ino;		/* of a regular file */
	u64 mtime_ns;		/* of a regular file */
	u64 size;
	bool is_blk, is_reg;
};
int bdsnap_name_info(const char *name, bool in_init_root, struct bdsnap_name_info *out,
		     char *canonical, size_t len);
int bdsnap_cwd(char *buf, size_t len);
int bdsnap_read_text(const char *name, char *buf, size_t len);

struct bdsnap_store_info {
	struct gendisk *disk;	/* as long as the path is pinned; NULL if there is none */
	u64 start, sectors;
	u64 magic;
	bool read_only;
	const void *sb;
};
struct file *bdsnap_open_to_read(const char *name);
int bdsnap_list_dir(const char *name, char *buf, size_t len);
int bdsnap_path_resolve(const char *name, bool directory, struct path *out);
void bdsnap_path_put(struct path *path);
void bdsnap_path_info(const struct path *path, struct bdsnap_store_info *out);
int bdsnap_path_space(const struct path *path, u64 *total, u64 *free);
int bdsnap_mkdir_at(const struct path *dir, const char *name);
int bdsnap_remove_at(const struct path *dir, const char *name, bool directory);
int bdsnap_path_at(const struct path *dir, const char *name, struct path *out);
struct file *bdsnap_open_at(const struct path *dir, const char *name, int flags);
int bdsnap_rename_at(const struct path *dir, const char *from, const char *to);
int bdsnap_write(struct file *file, const void *buf, size_t len, u64 at);
int bdsnap_read(struct file *file, void *buf, size_t len, u64 at);
int bdsnap_write_pages(struct file *file, struct page **pages, size_t bytes, u64 at);
int bdsnap_fsync(struct file *file, bool data_only);
int bdsnap_fsync_both(struct file *a, struct file *b);
bool bdsnap_one_flush(struct file *file);
int bdsnap_fsync_in_place(struct file *a, struct file *b);
int bdsnap_truncate(struct file *file, u64 len);
void bdsnap_close(struct file *file);

/* Notifications and the watch. */
bool bdsnap_module_get(void);
void bdsnap_module_put(void);
int bdsnap_watch_start(unsigned int period_ms);
void bdsnap_watch_stop(void);
int bdsnap_notifiers_register(void);
void bdsnap_notifiers_unregister(void);
void bdsnap_uevent(struct device *dev, const char *event, const char *device,
		   const char *session, int error);

#endif
