package adapter

import (
	"errors"
	"os"
	"syscall"
)

// environmentNames are the variables a child is given from our environment, beside
// certificateNames. Without SYSTEMROOT Windows programs cannot open sockets.
var environmentNames = []string{"PATH", "SYSTEMROOT", "TEMP", "TMP", "USERPROFILE", "APPDATA", "LOCALAPPDATA", "LANG"}

// processAttributes keeps our console's Ctrl-C away from the child. A child
// learns of our end by its stdin (TOR_PT_EXIT_ON_STDIN_CLOSE).
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP, HideWindow: true}
}

// start starts the child.
func (p *process) start() error { return p.cmd.Start() }

// reap waits for the child and collects it.
func (p *process) reap() {
	_ = p.cmd.Wait() // the outcome is in cmd.ProcessState
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reaped = true
}

// signalGroup has one signal only: the end.
func signalGroup(p *os.Process, s childSignal) error {
	if s == interrupt {
		return errors.ErrUnsupported
	}
	return p.Kill()
}
