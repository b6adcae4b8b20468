//go:build unix

package descriptors

import "syscall"

// limit asks each time, which costs one system call without a wait: the limit of a
// running process can be changed (prlimit).
func limit() int {
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) != nil {
		return Unlimited
	}
	// FreeBSD's has a sign. No limit is the highest number.
	if n := uint64(l.Cur); n < Unlimited {
		return int(n)
	}
	return Unlimited
}

// supply takes the number of a new file.
func supply(fd uintptr, limit int) Supply {
	switch left := limit - 1 - int(fd); {
	case left < last(limit):
		return Last
	case left < few(limit):
		return Few
	}
	return Enough
}
