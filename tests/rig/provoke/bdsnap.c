// SPDX-License-Identifier: GPL-2.0
/* Stands in for bdsnap at its unloading: what it says there is up to its parameters. */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/module.h>

static int pages;
module_param(pages, int, 0);
static bool silent;
module_param(silent, bool, 0);

static int __init bdsnap_init(void)
{
	return 0;
}
module_init(bdsnap_init);

static void __exit bdsnap_exit(void)
{
	if (!silent)
		pr_info("unloaded; live objects: bios=0 pages=%d sessions=0 files=0 works=0\n", pages);
}
module_exit(bdsnap_exit);

MODULE_DESCRIPTION("stand-in for bdsnap in the tests of the rig");
MODULE_LICENSE("GPL");
