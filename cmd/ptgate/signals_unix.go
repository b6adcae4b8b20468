//go:build unix

package main

import (
	"os/signal"
	"syscall"
	"time"
)

// dieOf ends the process as the signal does by default.
func dieOf(s syscall.Signal) {
	signal.Reset(s)
	syscall.Kill(syscall.Getpid(), s)
	time.Sleep(time.Minute) // it comes at any moment
}
