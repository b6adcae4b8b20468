package adapter

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"time"
)

const (
	stdoutLine = 16 << 10 // longest line of standard output; SMETHOD ARGS are the long ones
	stderrLine = 4 << 10  // longest line of standard error
	tailLines  = 20       // of standard error, kept for errors
	tailLine   = 512      // longest of them

	// drainLimit bounds the wait for output after the child ended: whoever
	// left its process group may hold the pipes open for ever.
	drainLimit = time.Second
)

// process is a running child: its three pipes, the goroutines that drain
// them, and the thread that forked it.
type process struct {
	cmd    *exec.Cmd
	stdin  *os.File
	exited chan struct{} // closed when it is reaped and its output drained

	mu     sync.Mutex
	reaped bool // its id may belong to somebody else from now on
	tail   []string
}

// output is where a process's lines go, each from one goroutine.
type output struct {
	stdout    func(line string)
	stdoutEOF func()
	stderr    func(line string)
}

// startProcess runs argv with exactly env. The process ends by itself or by
// signal; exited tells.
func startProcess(argv, env []string, out output) (*process, error) {
	p := &process{cmd: exec.Command(argv[0], argv[1:]...), exited: make(chan struct{})}
	p.cmd.Env = env
	p.cmd.SysProcAttr = processAttributes()

	childIn, stdin, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	stdout, childOut, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, childIn.Close(), stdin.Close())
	}
	stderr, childErr, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, childIn.Close(), stdin.Close(), stdout.Close(), childOut.Close())
	}
	p.stdin = stdin
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = childIn, childOut, childErr

	started := make(chan error, 1)
	go func() {
		// The parent-death signal follows the thread that forked, not the
		// process (prctl(2), PR_SET_PDEATHSIG). So one thread forks the child,
		// does nothing but wait for it, and is not given back before its end.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.exited)

		err := p.start()
		for _, end := range []*os.File{childIn, childOut, childErr} {
			end.Close()
		}
		if err == nil {
			defer p.drain(stdout, stderr, out)()
		}
		started <- err
		if err != nil {
			for _, end := range []*os.File{stdin, stdout, stderr} {
				end.Close()
			}
			return
		}
		p.reap()
	}()
	if err := <-started; err != nil {
		<-p.exited
		return nil, err
	}
	return p, nil
}

// drain reads both pipes to their ends, so that a chatty child never blocks.
// The function it returns waits for that, but not for ever.
func (p *process) drain(stdout, stderr *os.File, out output) (wait func()) {
	var readers sync.WaitGroup
	readers.Go(func() {
		readLines(stdout, stdoutLine, out.stdout)
		out.stdoutEOF()
	})
	readers.Go(func() {
		readLines(stderr, stderrLine, func(line string) {
			p.remember(line)
			out.stderr(line)
		})
	})
	return func() {
		limit := time.Now().Add(drainLimit)
		// These fail only where the pipe is closed, or is none the runtime
		// can poll, and then it ends with the child's process group.
		_, _ = stdout.SetReadDeadline(limit), stderr.SetReadDeadline(limit)
		readers.Wait()
		stdout.Close()
		stderr.Close()
		p.stdin.Close()
	}
}

// readLines calls line for each line of r until r ends. What a line has
// beyond limit is dropped.
func readLines(r io.Reader, limit int, line func(string)) {
	b := bufio.NewReaderSize(r, limit)
	for {
		text, err := b.ReadSlice('\n')
		n := len(text)
		for n > 0 && (text[n-1] == '\n' || text[n-1] == '\r') {
			n--
		}
		if n > 0 {
			line(string(text[:n]))
		}
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = b.ReadSlice('\n')
		}
		if err != nil {
			return
		}
	}
}

func (p *process) remember(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.tail) == tailLines {
		copy(p.tail, p.tail[1:])
		p.tail = p.tail[:tailLines-1]
	}
	p.tail = append(p.tail, printable(line[:min(len(line), tailLine)]))
}

// lastWords returns the last lines of standard error.
func (p *process) lastWords() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.tail...)
}

// stop ends the process by the ladder of pt-spec 3.4: stdin closed, SIGTERM,
// SIGKILL, with a wait of grace before each rung but the first. A hasty stop climbs the first
// two at once. It returns when the process has ended.
func (p *process) stop(grace time.Duration, hasty bool) {
	p.stdin.Close() // TOR_PT_EXIT_ON_STDIN_CLOSE, pt-spec 3.2.1
	timer := time.NewTimer(grace)
	defer timer.Stop()
	if !hasty {
		select {
		case <-p.exited:
			return
		case <-timer.C:
		}
		timer.Reset(grace)
	}
	p.signal(terminate)
	select {
	case <-p.exited:
		return
	case <-timer.C:
	}
	p.signal(kill)
	<-p.exited
}

// signal sends to the whole process group.
func (p *process) signal(s childSignal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return os.ErrProcessDone
	}
	return signalGroup(p.cmd.Process, s)
}

// A childSignal is a signal to a child and its process group. Each system sends it in its
// own way (signalGroup).
type childSignal int

const (
	interrupt childSignal = iota // finish what is open, then end
	terminate
	kill
)
