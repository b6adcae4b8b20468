//go:build !unix

package descriptors

func limit() int { return Unlimited }

func supply(uintptr, int) Supply { return Enough }
