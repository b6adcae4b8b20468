//go:build unix

package adapter

import (
	"os"
	"syscall"
)

// environmentNames are the variables a child is given from our environment, beside
// certificateNames.
var environmentNames = []string{"PATH", "HOME", "TMPDIR", "LANG"}

// signalGroup signals the group that p leads.
func signalGroup(p *os.Process, s childSignal) error {
	number := syscall.SIGTERM
	switch s {
	case interrupt:
		number = syscall.SIGINT
	case kill:
		number = syscall.SIGKILL
	}
	return syscall.Kill(-p.Pid, number)
}
