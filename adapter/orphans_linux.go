package adapter

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// AdoptOrphans makes processes that children leave behind end with these children, even if
// they have left their process group with setsid. It is for a program that starts no other
// children than those of this package: all its other children count as left behind.
//
// The process becomes a subreaper (prctl(2)): the kernel then gives it the orphans of its
// children. Each child has a mark in its environment, which its own children have, too. At
// the end of a child, all orphans are killed but those that have the mark of another child
// that still runs. An orphan without any mark has taken it off, and is killed, too: unless
// it may be a stranger's, because this process had children before, or is the first process
// of a container.
//
// stop ends all of this. Call it when all children have ended.
func AdoptOrphans() (stop func(), err error) {
	if err := subreaper(1); err != nil {
		return nil, err
	}
	orphans.mu.Lock()
	orphans.adopt, orphans.strangers = true, os.Getpid() == 1 || len(childrenOf(os.Getpid())) > 0
	orphans.mu.Unlock()
	// Nobody else waits for orphans that end by themselves.
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-ended:
				orphans.collect()
			case <-done:
				return
			}
		}
	})
	return func() {
		signal.Stop(ended)
		close(done)
		wg.Wait()
		orphans.mu.Lock()
		orphans.adopt = false
		orphans.mu.Unlock()
		_ = subreaper(0) // it was possible before
	}, nil
}

// CombinedOutput is cmd.CombinedOutput for a program that is no pluggable transport. Beside
// AdoptOrphans such a child would count as left behind.
func CombinedOutput(cmd *exec.Cmd) ([]byte, error) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	f := &orphans
	f.mu.Lock()
	err := cmd.Start()
	if err == nil {
		if f.children == nil {
			f.children = map[int]string{}
		}
		f.children[cmd.Process.Pid] = "none"
	}
	f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	err = cmd.Wait()
	f.mu.Lock()
	delete(f.children, cmd.Process.Pid)
	f.mu.Unlock()
	return out.Bytes(), err
}

// subreaper turns PR_SET_CHILD_SUBREAPER on (1) or off (0).
func subreaper(on uintptr) error {
	const setChildSubreaper = 36
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, setChildSubreaper, on, 0); errno != 0 {
		return os.NewSyscallError("prctl", errno)
	}
	return nil
}

// orphans knows the children of this package, and so all others.
var orphans family

type family struct {
	mu        sync.Mutex // held while a child is started, or it would pass for an orphan
	adopt     bool
	strangers bool           // orphans without a mark may be of other processes
	children  map[int]string // the marks of those that have not been waited for, by process id
	marks     int
}

const markVariable = "PT_ADAPTER_CHILD"

// start starts p, and gives it its mark.
func (f *family) start(p *process) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.adopt {
		return p.cmd.Start()
	}
	f.marks++
	mark := fmt.Sprintf("%d.%d", os.Getpid(), f.marks)
	p.cmd.Env = append(p.cmd.Env[:len(p.cmd.Env):len(p.cmd.Env)], markVariable+"="+mark)
	err := p.cmd.Start()
	if err == nil {
		if f.children == nil {
			f.children = map[int]string{}
		}
		f.children[p.cmd.Process.Pid] = mark
	}
	return err
}

// ended notes that p has been waited for, and ends what it has left behind. It returns when
// all that is gone, or after drainLimit.
func (f *family) ended(p *process) {
	f.mu.Lock()
	adopted := f.adopt
	delete(f.children, p.cmd.Process.Pid)
	f.mu.Unlock()
	// One that dies leaves us its own children. So there are further rounds, until a round
	// finds nobody.
	for end := time.Now().Add(drainLimit); adopted && f.kill() && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
}

// kill sends SIGKILL to all orphans of children that have ended, and collects the dead ones.
// It tells whether there were any.
func (f *family) kill() (any bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, pid := range f.orphans() {
		if f.left(pid) {
			// Its id can't be another's: only we wait for it, and only under mu.
			_ = syscall.Kill(pid, syscall.SIGKILL)
			any = true
		}
		wait(pid)
	}
	return any
}

// collect waits for the orphans that have ended by themselves.
func (f *family) collect() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, pid := range f.orphans() {
		wait(pid)
	}
}

// wait collects a process if it has ended.
func wait(pid int) {
	for {
		if _, err := syscall.Wait4(pid, nil, syscall.WNOHANG, nil); err != syscall.EINTR {
			return
		}
	}
}

// orphans lists the children of this process that it has not started. The caller holds mu.
func (f *family) orphans() (all []int) {
	for _, pid := range childrenOf(os.Getpid()) {
		if _, ours := f.children[pid]; !ours {
			all = append(all, pid)
		}
	}
	return all
}

// left tells whether a process comes from a child that has ended. The caller holds mu.
func (f *family) left(pid int) bool {
	env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)) // there is none if it has just ended
	_, rest, found := bytes.Cut(append([]byte{0}, env...), []byte("\x00"+markVariable+"="))
	if !found {
		return !f.strangers
	}
	mark, _, _ := bytes.Cut(rest, []byte{0})
	for _, running := range f.children {
		if string(mark) == running {
			return false
		}
	}
	return true
}

// childrenOf lists the children of a process: those of each of its threads, or, where the
// kernel has no such lists, by looking at all processes.
func childrenOf(pid int) (all []int) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/[0-9]*/children", pid))
	for _, list := range lists {
		text, _ := os.ReadFile(list) // a thread may have ended
		for _, field := range strings.Fields(string(text)) {
			if child, err := strconv.Atoi(field); err == nil {
				all = append(all, child)
			}
		}
	}
	if len(lists) > 0 {
		return all
	}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, stat := range stats {
		text, _ := os.ReadFile(stat)
		// proc(5): the name, in parentheses, may have anything in it; then the state and the parent.
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		child, err := strconv.Atoi(filepath.Base(filepath.Dir(stat)))
		if err == nil && len(fields) > 1 && fields[1] == strconv.Itoa(pid) {
			all = append(all, child)
		}
	}
	return all
}
