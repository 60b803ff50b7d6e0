SELECT max(free_space)
FROM system.disks
