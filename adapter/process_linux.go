package adapter

import (
	"syscall"
	"unsafe"
)

// processAttributes puts the child into a process group of its own, so that a
// signal reaches what it forked, and lets the kernel kill it when we die.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// reap waits for the child, ends what is left of its group, and collects it.
func (p *process) reap() {
	awaitExit(p.cmd.Process.Pid)
	p.mu.Lock()
	// Still a zombie: nobody else can have its id, so this hits no stranger.
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	_ = p.cmd.Wait() // the outcome is in cmd.ProcessState
	p.reaped = true
	p.mu.Unlock()
	orphans.ended(p)
}

// start starts the child.
func (p *process) start() error { return orphans.start(p) }

// awaitExit blocks until the child has ended, and leaves it a zombie.
func awaitExit(pid int) {
	const (
		byPID     = 1                             // P_PID
		exited    = 4 | 0x1000000                 // WEXITED | WNOWAIT
		infoWords = 128 / unsafe.Sizeof(int64(0)) // siginfo_t
	)
	var info [infoWords]int64
	for {
		_, _, errno := syscall.Syscall6(syscall.SYS_WAITID, byPID, uintptr(pid), uintptr(unsafe.Pointer(&info)), exited, 0, 0)
		if errno != syscall.EINTR {
			return
		}
	}
}
