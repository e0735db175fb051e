"""Where a virtual disk's data is: files and block devices, and images that QEMU reads."""
