//go:build unix && !linux

package adapter

import "syscall"

// processAttributes puts the child into a process group of its own, so that a
// signal reaches what it forked. There is no parent-death signal here: a child
// learns of our end by its stdin (TOR_PT_EXIT_ON_STDIN_CLOSE).
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}

// start starts the child.
func (p *process) start() error { return p.cmd.Start() }

// reap waits for the child, collects it, and ends what is left of its group.
func (p *process) reap() {
	_ = p.cmd.Wait() // the outcome is in cmd.ProcessState
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reaped = true
	// While the group has members nobody else can have its id.
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
}
