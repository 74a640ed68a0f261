package main

import (
	"fmt"
	"math"
	"syscall"
)

// freeRoom is how many octets others than root may still write below dir.
func freeRoom(dir string) (int64, error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return 0, err
	}
	if free := float64(fs.Bavail) * float64(fs.Bsize); free < math.MaxInt64 {
		return int64(free), nil
	}
	return math.MaxInt64, nil
}

// octets prints a size for people.
func octets(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d octets", n)
}
