"""Object stores: reading, writing, their errors, and the embedded one."""
