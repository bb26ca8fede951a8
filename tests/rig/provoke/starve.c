// SPDX-License-Identifier: GPL-2.0
/*
 * Makes memory allocations of a module fail, on a kernel without fault injection: the functions by which
 * bdsnap allocates are led, by ftrace, to one that returns NULL. Parameters, all writable:
 *
 *   start, end   the code that is to be starved; 0: any module that modprobe is loading
 *   nth          the nth allocation from now on fails; 0: none
 *   permille     of the others so many of a thousand fail
 *   faults       how many have failed
 */

#include <linux/ftrace.h>
#include <linux/module.h>
#include <linux/random.h>
#include <linux/sched.h>
#include <linux/spinlock.h>
#include <linux/stacktrace.h>
#include <linux/string.h>

static unsigned long start, end;
module_param(start, ulong, 0644);
module_param(end, ulong, 0644);
static int nth, permille, faults;
module_param(nth, int, 0644);
module_param(permille, int, 0644);
module_param(faults, int, 0644);

static DEFINE_RAW_SPINLOCK(lock);

static void *nothing(void)
{
	return NULL;
}

static bool notrace is_starved(unsigned long ip)
{
	if (start)
		return ip >= start && ip < end;
	return ip >= MODULES_VADDR && ip < MODULES_END && !within_module(ip, THIS_MODULE) &&
	       !strcmp(current->comm, "modprobe");
}

/* Rust's helpers and formatted strings: the kernel's own code allocates for the module. */
static bool notrace is_below_starved(void)
{
	unsigned long stack[24];
	unsigned int i, n = stack_trace_save(stack, ARRAY_SIZE(stack), 0);

	for (i = 0; i < n; i++)
		if (is_starved(stack[i]))
			return true;
	return false;
}

static bool notrace is_due(void)
{
	unsigned long flags;
	bool due;

	raw_spin_lock_irqsave(&lock, flags);
	due = (nth && !--nth) || (permille && get_random_u32_below(1000) < permille);
	faults += due;
	raw_spin_unlock_irqrestore(&lock, flags);
	return due;
}

static void notrace on_alloc(unsigned long ip, unsigned long parent, struct ftrace_ops *ops,
			     struct ftrace_regs *fregs)
{
	if (!nth && !permille)
		return;
	if (!is_starved(parent) && !(ops->private && is_below_starved()))
		return;
	/* Rust frees memory by making it nothing: of no bytes. (The other deep one has flags there.) */
	if (ops->private && !ftrace_regs_get_argument(fregs, 1))
		return;
	if (is_due())
		ftrace_regs_set_instruction_pointer(fregs, (unsigned long)nothing);
}

static struct {
	char *name;
	bool deep; /* called by the kernel's code for the module */
	bool done;
	struct ftrace_ops ops;
} hooks[] = {
	{ "krealloc_node_align_noprof", true },
	{ "kvrealloc_node_align_noprof", true },
	{ "alloc_pages_noprof" },
	{ "get_free_pages_noprof" },
	{ "__kmalloc_noprof" },
	{ "__kmalloc_node_track_caller_noprof", true },
	{ "bio_split" },
	{ "alloc_workqueue_noprof" },
};

static void starve_exit(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(hooks); i++) {
		if (hooks[i].done)
			unregister_ftrace_function(&hooks[i].ops);
		ftrace_free_filter(&hooks[i].ops);
	}
}
module_exit(starve_exit);

static int __init starve_init(void)
{
	int i, ret = 0;

	for (i = 0; i < ARRAY_SIZE(hooks) && !ret; i++) {
		struct ftrace_ops *ops = &hooks[i].ops;

		ops->func = on_alloc;
		ops->flags = FTRACE_OPS_FL_IPMODIFY | FTRACE_OPS_FL_RECURSION;
		ops->private = hooks[i].deep ? ops : NULL;
		ret = ftrace_set_filter(ops, hooks[i].name, strlen(hooks[i].name), 1);
		if (!ret)
			ret = register_ftrace_function(ops);
		hooks[i].done = !ret;
		if (ret)
			pr_err("starve: %s: %d\n", hooks[i].name, ret);
	}
	if (ret)
		starve_exit();
	return ret;
}
module_init(starve_init);

MODULE_DESCRIPTION("lets memory allocations of a module fail");
MODULE_LICENSE("GPL");
