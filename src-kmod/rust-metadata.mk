# SPDX-License-Identifier: GPL-2.0
#
# Builds the kernel's Rust metadata and nothing else. `make prepare` would want the whole source
# tree; rust/kernel.o depends on every crate that a module can use. See rust-kbuild.

include $(KSRC)/Makefile

PHONY += rust-metadata
rust-metadata:
	$(Q)$(MAKE) $(build)=rust rust/kernel.o
