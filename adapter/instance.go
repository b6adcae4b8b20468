package adapter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Defaults of Config.
const (
	DefaultStartTimeout = 30 * time.Second
	DefaultStopGrace    = 3 * time.Second
)

// Config has the settings that client and server adapters have in common.
type Config struct {
	// Exec is the program and its arguments. A name without a slash is looked
	// up in PATH.
	Exec []string

	// StateDir is the directory in which the program keeps its state. It is made
	// with mode 0700 if it does not exist. Two adapters must not use the same
	// one at the same time. Empty: a temporary one, removed at the end.
	StateDir string

	// Env has more KEY=VALUE for the child. From this process it inherits only
	// PATH, HOME, TMPDIR, LANG and the variables that name certificate
	// authorities, such as SSL_CERT_FILE. Env overrides these. The adapter sets
	// the TOR_PT_ variables, which must not be in Env. Proxy variables are not
	// inherited: see ClientConfig.Proxy.
	Env []string

	// BindV4 and BindV6 are the source addresses of the child's own connections.
	// Zero: the system chooses. Not every program supports them.
	BindV4, BindV6 netip.Addr

	// StartTimeout is how long the child may take until it is ready.
	// 0: DefaultStartTimeout.
	StartTimeout time.Duration

	// StopGrace is how long Close waits after it has closed the child's stdin,
	// and again after SIGTERM, before it goes on to the next step. 0:
	// DefaultStopGrace.
	StopGrace time.Duration

	// Logger gets the adapter's messages, and also those of the child if OnEvent
	// is nil. Nil: they are discarded.
	Logger *slog.Logger

	// OnEvent is called for each line of the child, in order, in one goroutine.
	// If events come too fast, or OnEvent is slow, some are dropped; an
	// EventDropped has their number. OnEvent may call every method but Wait.
	// Nil: LogEvent.
	OnEvent func(Event)
}

func (c *Config) check() error {
	if len(c.Exec) == 0 || c.Exec[0] == "" {
		return Constant("no program given")
	}
	for _, v := range c.Env {
		name, value, ok := strings.Cut(v, "=")
		if !ok {
			return fmt.Errorf("environment %q is not KEY=VALUE", name)
		}
		if err := CheckEnv(name, value); err != nil {
			return fmt.Errorf("environment %q: %w", name, err)
		}
	}
	if c.BindV4.IsValid() && !c.BindV4.Is4() {
		return fmt.Errorf("bind address %v is not IPv4", c.BindV4)
	}
	if c.BindV6.IsValid() && (!c.BindV6.Is6() || c.BindV6.Is4In6()) {
		return fmt.Errorf("bind address %v is not IPv6", c.BindV6)
	}
	return nil
}

// CheckEnv returns an error if a variable can't be used in Config.Env. The error
// does not contain the value.
func CheckEnv(name, value string) error {
	switch {
	case name == "":
		return Constant("it has no name")
	case strings.ContainsAny(name, "=\x00"):
		return Constant("its name has \"=\" or a NUL in it")
	case strings.Contains(value, "\x00"):
		return Constant("its value has a NUL in it")
	case strings.HasPrefix(strings.ToUpper(name), "TOR_PT_"): // Windows knows no case
		return Constant("the variables of pt-spec are not to be set")
	}
	return nil
}

func checkTransports(names []string) error {
	if len(names) == 0 {
		return Constant("no transport given")
	}
	for i, name := range names {
		if !validTransport(name) {
			return fmt.Errorf("%q is not a transport name", name)
		}
		if slices.Contains(names[:i], name) {
			return fmt.Errorf("transport %q is given twice", name)
		}
	}
	return nil
}

// instance is one run of one child: what the client and the server adapters
// share. It goes fresh → starting → running → ended, and never back.
type instance struct {
	cfg    Config
	log    *slog.Logger
	done   chan struct{} // closed at the end
	closed chan struct{} // closed by Close
	tasks  sync.WaitGroup

	mu      sync.Mutex
	started bool
	asked   bool // Close or Drain was called: the end will not be an error
	proc    *process
	methods map[string]method // set when running
	err     error             // why it ended
}

func newInstance(cfg Config) *instance {
	if cfg.StartTimeout <= 0 {
		cfg.StartTimeout = DefaultStartTimeout
	}
	if cfg.StopGrace <= 0 {
		cfg.StopGrace = DefaultStopGrace
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if len(cfg.Exec) > 0 {
		log = log.With("program", filepath.Base(cfg.Exec[0]))
	}
	if cfg.OnEvent == nil {
		cfg.OnEvent = func(e Event) { LogEvent(log, e) }
	}
	return &instance{cfg: cfg, log: log, done: make(chan struct{}), closed: make(chan struct{})}
}

// plan is what client and server adapters do differently in a start.
type plan struct {
	check      func() error
	keyword    string // CMETHOD or SMETHOD
	transports []string
	proxy      bool

	// prepare returns the variables of this kind of child, given its state
	// directory, and what undoes it once the child has ended; undo may be nil.
	prepare func(stateDir string) (env []string, undo func(), err *StartError)
}

// start runs the child and returns when it is ready, or has failed and left
// nothing behind.
func (in *instance) start(ctx context.Context, pl plan) error {
	in.mu.Lock()
	started, asked := in.started, in.asked
	in.started = true
	in.mu.Unlock()
	if asked {
		return &StartError{Stage: StageConfig, Err: ErrClosed}
	}
	if started {
		return &StartError{Stage: StageConfig, Err: ErrStarted}
	}

	failure := in.launch(ctx, pl)
	if failure == nil {
		return nil
	}
	if len(in.cfg.Exec) > 0 {
		failure.Program = filepath.Base(in.cfg.Exec[0])
	}
	in.finish(failure)
	in.tasks.Wait()
	return failure
}

// launch does the steps of a start. Where it returns nil, supervise has taken
// over; else all is undone.
func (in *instance) launch(ctx context.Context, pl plan) (failure *StartError) {
	if err := ctx.Err(); err != nil {
		return &StartError{Stage: StageConfig, Err: err}
	}
	if err := in.cfg.check(); err != nil {
		return &StartError{Stage: StageConfig, Err: err}
	}
	if err := pl.check(); err != nil {
		return &StartError{Stage: StageConfig, Err: err}
	}

	var undo []func()
	unwind := func() {
		for _, f := range slices.Backward(undo) {
			f()
		}
	}
	defer func() {
		if failure != nil {
			unwind()
		}
	}()

	state, temporary, err := makeStateDir(in.cfg.StateDir)
	if err != nil {
		return &StartError{Stage: StageState, Err: err}
	}
	if temporary {
		undo = append(undo, func() {
			if err := os.RemoveAll(state); err != nil {
				in.log.Warn("temporary state directory not removed", "error", err)
			}
		})
	}
	env, release, failure := pl.prepare(state)
	if failure != nil {
		return failure
	}
	if release != nil {
		undo = append(undo, release)
	}

	events := newEvents(in.cfg.OnEvent)
	in.tasks.Go(events.run)
	undo = append(undo, events.close)

	shake := newHandshake(pl.keyword, pl.transports, pl.proxy, events.put)
	proc, err := startProcess(in.cfg.Exec, slices.Concat(in.environment(state), env), output{
		stdout:    shake.line,
		stdoutEOF: shake.eof,
		stderr:    func(line string) { events.put(Event{Kind: EventStderr, Message: printable(line)}) },
	})
	if err != nil {
		return &StartError{Stage: StageExec, Err: err}
	}

	methods, failure := in.await(ctx, shake, proc)
	if failure != nil {
		proc.stop(in.cfg.StopGrace, true)
		failure.Stderr = proc.lastWords()
		return failure
	}

	in.mu.Lock()
	in.proc, in.methods = proc, methods
	in.mu.Unlock()
	in.log.Debug("transport program ready", "pid", proc.cmd.Process.Pid)
	in.tasks.Go(func() { in.supervise(proc, unwind) })
	return nil
}

// await waits until the child is ready, or there is a reason to give up.
func (in *instance) await(ctx context.Context, shake *handshake, proc *process) (map[string]method, *StartError) {
	timer := time.NewTimer(in.cfg.StartTimeout)
	defer timer.Stop()
	stage := func() Stage { return shake.stage.Load().(Stage) }
	select {
	case r := <-shake.result:
		if r.err == nil || !errors.Is(r.err, ErrOutputClosed) {
			return r.methods, r.err
		}
		// The output ends a moment before the child does; how that ended says
		// more. One that lives on without its output is not waited for.
		grace := time.NewTimer(drainLimit)
		defer grace.Stop()
		select {
		case <-proc.exited:
			r.err.Err = &ExitError{State: proc.cmd.ProcessState}
		case <-grace.C:
		case <-ctx.Done():
		case <-in.closed:
		}
		return nil, r.err
	case <-timer.C:
		return nil, &StartError{Stage: stage(), Err: ErrStartTimeout}
	case <-ctx.Done():
		return nil, &StartError{Stage: stage(), Err: ctx.Err()}
	case <-in.closed:
		return nil, &StartError{Stage: stage(), Err: ErrClosed}
	}
}

// supervise waits for the child's end, or ends it where Close asks.
func (in *instance) supervise(proc *process, unwind func()) {
	select {
	case <-proc.exited:
	case <-in.closed:
		proc.stop(in.cfg.StopGrace, false)
	}
	in.log.Debug("transport program ended", "pid", proc.cmd.Process.Pid, "state", proc.cmd.ProcessState.String())
	unwind()
	in.finish(&ExitError{State: proc.cmd.ProcessState, Stderr: proc.lastWords()})
}

// finish marks the end. err counts only where nobody asked for it.
func (in *instance) finish(err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.asked {
		in.err = err
	}
	close(in.done)
}

// certificateNames are the variables by which programs find the certificate
// authorities that they trust: Go's and OpenSSL's, NixOS's, curl's, and those of
// Python's requests and of Node. Where a network has an authority of its own, a
// child without them reaches no TLS server.
var certificateNames = []string{"SSL_CERT_FILE", "SSL_CERT_DIR", "NIX_SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"}

// environment is the child's, built from nothing (pt-spec 3.2.1).
func (in *instance) environment(state string) []string {
	var env []string
	for _, name := range slices.Concat(environmentNames, certificateNames) {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	env = append(env, in.cfg.Env...)
	env = append(env,
		"TOR_PT_MANAGED_TRANSPORT_VER="+strings.Join(versions, ","),
		"TOR_PT_STATE_LOCATION="+state,
		"TOR_PT_EXIT_ON_STDIN_CLOSE=1")
	if in.cfg.BindV4.IsValid() {
		env = append(env, "TOR_PT_OUTBOUND_BIND_ADDRESS_V4="+in.cfg.BindV4.String())
	}
	if in.cfg.BindV6.IsValid() {
		env = append(env, "TOR_PT_OUTBOUND_BIND_ADDRESS_V6=["+in.cfg.BindV6.String()+"]")
	}
	return env
}

// makeStateDir returns dir as an absolute path, created where it is missing;
// where dir is empty, a temporary one.
func makeStateDir(dir string) (path string, temporary bool, err error) {
	if dir == "" {
		path, err = os.MkdirTemp("", "pt-state-")
		return path, true, err
	}
	if path, err = filepath.Abs(dir); err != nil {
		return "", false, err
	}
	return path, false, os.MkdirAll(path, 0o700)
}

// method returns the outcome for a transport.
func (in *instance) method(transport string) (method, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.methods == nil {
		return method{}, &MethodError{Transport: transport, Err: ErrNotStarted}
	}
	m, ok := in.methods[transport]
	if !ok {
		return method{}, &MethodError{Transport: transport, Err: ErrUnknownTransport}
	}
	return m, m.err
}

// Done is closed when the child has ended, its output is read, and its
// temporary directory removed. After a failed start it is closed too.
func (in *instance) Done() <-chan struct{} { return in.done }

// Err returns why the adapter has ended: nil if it has not ended, or after Close
// or Drain; an *ExitError if the child has ended by itself; the *StartError if
// it was never ready.
func (in *instance) Err() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.err
}

// Wait waits until the adapter has ended, every callback has returned, and no
// goroutine of it is left. Then it returns what Err does. It must not be
// called from a callback.
func (in *instance) Wait() error {
	<-in.done
	in.tasks.Wait()
	return in.Err()
}

// Pid is the child's process id, 0 where there is none yet.
func (in *instance) Pid() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.proc == nil {
		return 0
	}
	return in.proc.cmd.Process.Pid
}

// Drain sends SIGINT. It asks the child to take no new connections, and to end
// when the open ones have ended. This is not in pt-spec: obfs4proxy and lyrebird
// do it, and other programs end at once. Drain does not wait; see Done. The
// error wraps ErrNotStarted, os.ErrProcessDone, or on Windows
// errors.ErrUnsupported.
func (in *instance) Drain() error {
	in.mu.Lock()
	proc := in.proc
	if proc == nil {
		in.mu.Unlock()
		return fmt.Errorf("drain: %w", ErrNotStarted)
	}
	before := in.asked
	in.asked = true // before the signal, or the end could be seen first
	in.mu.Unlock()
	if err := proc.signal(interrupt); err != nil {
		in.mu.Lock()
		in.asked = before
		in.mu.Unlock()
		return fmt.Errorf("drain: %w", err)
	}
	return nil
}

// Close ends the child as Config.StopGrace says, and returns when it has ended.
// It cancels a Start under way. It may be called at any time, more than once and
// from any goroutine. It returns nil.
func (in *instance) Close() error {
	in.mu.Lock()
	in.asked = true
	select {
	case <-in.closed:
	default:
		close(in.closed)
		if !in.started {
			close(in.done)
		}
	}
	in.mu.Unlock()
	<-in.done
	return nil
}
