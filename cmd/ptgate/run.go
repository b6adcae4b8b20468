package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"ptgate/gateway"
	"ptgate/gateway/config"
	"ptgate/gateway/control"
	"ptgate/gateway/loglimit"
	"ptgate/gateway/redact"
)

func newRunCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run what the configuration declares: gateway, server, or both",
		Long: `Run what the configuration declares: gateway, server, or both.

SIGHUP reloads the file; an error in it leaves everything as it was. SIGTERM and
SIGINT stop in order: live connections get limits.drain; a second one ends at once.`,
		Example:    "  ptgate run -c client.toml",
		SuggestFor: []string{"start", "serve", "daemon"},
		Args:       noArgs,
	}
	file := configFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := loadWith(*file, func(cfg *config.Config, p config.Problem) { sayInLog(cmd.ErrOrStderr(), cfg, p) })
		if err != nil {
			return wrongConfig(err)
		}
		if err := runsAlready(cmd.Context(), cfg.Path); err != nil {
			return err
		}
		err = runGateway(cmd.Context(), cfg, cmd.ErrOrStderr())
		if err != nil {
			sayWhere(cfg, *file, cmd.ErrOrStderr())
		}
		return err
	}
	return cmd
}

// sayWhere tells which lines of the file name what this machine can't do, as `ptgate check`
// does. The log has what went wrong.
func sayWhere(cfg *config.Config, file string, stderr io.Writer) {
	path, err := config.Find(file)
	if err != nil {
		return // there was one when it was loaded
	}
	for _, p := range gateway.Check(cfg, path, false) {
		sayInLog(stderr, cfg, p)
	}
}

// sayInLog prints a problem for `ptgate run`. A log in JSON has nothing else in it.
func sayInLog(stderr io.Writer, cfg *config.Config, p config.Problem) {
	if cfg == nil || cfg.Log.Format != "json" {
		show(stderr, cfg, p)
		return
	}
	log := slog.New(newLogHandler(cfg.Log.Format, cfg.Log.Level, new(atomic.Bool), stderr, toJournal(stderr)))
	logProblem(context.Background(), log, p, cfg.Log.Private)
}

// show prints a problem of a file; nil: the file could not be read. The journal is a log,
// and a private one, as it is if nobody says otherwise, has nothing that the problem
// quotes of the file.
func show(stderr io.Writer, cfg *config.Config, p config.Problem) {
	if toJournal(stderr) && (cfg == nil || cfg.Log.Private) {
		p = unquoted(p)
	}
	fmt.Fprintln(withPriority(stderr, priorityOf(p)), p)
}

// unquoted is p without what it quotes of the file. What is wrong with the file as a
// whole, such as its mode, quotes nothing of it.
func unquoted(p config.Problem) config.Problem {
	if p.Line > 0 {
		p.Message = redact.Quoted(p.Message)
	}
	return p
}

func priorityOf(p config.Problem) string {
	if p.Warning {
		return priorityWarning
	}
	return priorityError
}

// load finds and checks the configuration. Problems are printed, one a line.
func load(file string, stderr io.Writer) (*config.Config, error) {
	return loadWith(file, func(cfg *config.Config, p config.Problem) { show(stderr, cfg, p) })
}

// loadErrors is load for a command that warnings are in the way of.
func loadErrors(file string, stderr io.Writer) (*config.Config, error) {
	return loadWith(file, func(cfg *config.Config, p config.Problem) {
		if !p.Warning {
			show(stderr, cfg, p)
		}
	})
}

func loadWith(file string, tell func(*config.Config, config.Problem)) (*config.Config, error) {
	path, err := config.Find(file)
	if err != nil {
		return nil, err
	}
	cfg, problems := config.Load(path)
	for _, p := range problems {
		tell(cfg, p)
	}
	if cfg == nil {
		return nil, exitError(1)
	}
	return cfg, nil
}

// newLogHandler makes what writes the log. As long as private is true, no error gets into
// the log with its own text, whoever logs it. In the journal each line has its priority.
func newLogHandler(format string, level slog.Leveler, private *atomic.Bool, w io.Writer, journal bool) slog.Handler {
	o := &slog.HandlerOptions{Level: level}
	o.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
		if journal && len(groups) == 0 && a.Key == slog.TimeKey {
			return slog.Attr{} // the journal has it
		}
		if err, ok := a.Value.Any().(error); ok {
			a.Value = slog.StringValue(redact.Text(err, private.Load()))
		}
		return a
	}
	to := func(w io.Writer) slog.Handler {
		if format == "json" {
			return slog.NewJSONHandler(jsonWriter{w}, o)
		}
		return slog.NewTextHandler(w, o)
	}
	if journal {
		return newPriorityHandler(w, to)
	}
	return to(w)
}

// runGateway runs a gateway until stop ends, or signals say so.
func runGateway(stop context.Context, cfg *config.Config, stderr io.Writer) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	level := new(slog.LevelVar)
	level.Set(cfg.Log.Level)
	var private atomic.Bool
	private.Store(cfg.Log.Private)
	limited := loglimit.New(newLogHandler(cfg.Log.Format, level, &private, stderr, toJournal(stderr)))
	defer limited.Close()
	log := slog.New(limited)
	defer adoptLibraries(log, &private)()
	checkFileLimit(log, &cfg.Limits)
	g := gateway.New(cfg, exe, log)

	// Apart, so that no burst of reloads, and no slow one, holds up a stop.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	stop, endStop := context.WithCancel(context.WithoutCancel(stop))
	cut, endCut := context.WithCancel(context.Background())
	var beside sync.WaitGroup
	defer beside.Wait()
	defer endStop()
	defer endCut()
	beside.Go(func() { trimAfterWork(cut, g.Work(), debug.FreeOSMemory) })
	var reloads sync.Mutex // the file read last is the one that stays
	again := func(ctx context.Context) error {
		reloads.Lock()
		defer reloads.Unlock()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(stop, cancel)()
		if stop.Err() != nil {
			return errStopping
		}
		notify(log, daemon.SdNotifyReloading+"\n"+daemon.SdNotifyMonotonicUsec())
		defer func() {
			if stop.Err() == nil {
				notify(log, daemon.SdNotifyReady)
			}
		}()
		now, err := reload(ctx, g, cfg.Path, private.Load(), log)
		if err == nil {
			level.Set(now.Log.Level)
			private.Store(now.Log.Private)
			log.Info("reloaded")
			if keys := g.Restart(); len(keys) > 0 {
				log.Warn("some keys have changed that take a restart of ptgate", "keys", strings.Join(keys, ", "))
			}
		}
		return err
	}
	beside.Go(func() {
		for {
			select {
			case <-hangups:
				again(stop) // it logs what is wrong
			case <-stop.Done():
				return
			}
		}
	})
	done := make(chan error, 1)
	go func() { done <- g.Run(stop, cut) }()

	// Alive is what takes signals here, and gives its status, which asks all parts.
	alive := make(chan struct{})
	limit, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("systemd's watchdog is not served", "error", err)
	}
	beside.Go(func() {
		watchdog(cut, limit, func() {
			g.Status()
			select {
			case alive <- struct{}{}:
			case <-cut.Done():
			}
		}, func() { notify(log, daemon.SdNotifyWatchdog) })
	})

	ready := g.Ready()
	for {
		select {
		case err := <-done:
			endStop() // also of a reload that waits for another one
			if err != nil {
				return exitError(1) // the log has it
			}
			return nil
		case <-ready:
			ready = nil
			if c := answer(g, cfg, again, log); c != nil {
				defer c.Close()
			}
			if stop.Err() == nil {
				log.Info("ready", "next", whatNext(cfg, g.Addresses))
				notify(log, daemon.SdNotifyReady)
			}
		case s := <-signals:
			if stop.Err() != nil {
				log.Info("told again to stop: what is open is cut", "signal", s.String())
				endCut()
			} else {
				log.Info("told to stop", "signal", s.String())
			}
			notify(log, daemon.SdNotifyStopping)
			endStop()
		case <-alive:
		}
	}
}

// answer opens the control socket, where `ptgate status` and `ptgate reload` find it
// until the process ends; nil if it can't.
func answer(g *gateway.Gateway, cfg *config.Config, reload func(context.Context) error, log *slog.Logger) *control.Server {
	c, err := control.Serve(control.Path(cfg.StateDir, cfg.Path), control.Answers{
		Status:    func() any { return g.Status() },
		Reload:    reload,
		Users:     func() any { return g.Usage() },
		ReadUsers: g.ReadUsers,
		Rotate:    g.Rotate,
	})
	if err != nil {
		log.Warn("`ptgate status` and `ptgate reload` will not find this process", "error", err,
			"advice", "its socket is in the state directory: name one that this user can write into, with state_dir")
		return nil
	}
	// Whoever asks later may read of another state directory in the file, or nothing
	// that can be understood.
	if known := config.DefaultStateDir(os.Getenv); known != cfg.StateDir {
		if err := c.Link(control.Path(known, cfg.Path)); err != nil {
			log.Debug("`ptgate status` and `ptgate reload` will not find this process if state_dir is edited", "error", err)
		}
	}
	return c
}

var errStopping = errors.New("ptgate is stopping")

// reload reads the file again and puts it to work, or says why not. What is wrong with
// the file may quote destinations and addresses in it, so a private log gets that without
// what it quotes. Whoever asked for the reload with `ptgate reload` gets all of it.
func reload(ctx context.Context, g *gateway.Gateway, path string, private bool, log *slog.Logger) (*config.Config, error) {
	cfg, problems, err := loadUntil(ctx, path)
	if err != nil {
		log.Error("reload given up: the running configuration stays", "error", err)
		return nil, err
	}
	var text []string
	for _, p := range problems {
		text = append(text, p.String())
		logProblem(ctx, log, p, private)
	}
	if cfg == nil {
		log.Error("reload refused: the running configuration stays")
		return nil, errors.New(strings.Join(text, "\n"))
	}
	if err := g.Reload(cfg); err != nil {
		// A string: it is about this machine's own listeners, and names them.
		log.Error("reload failed: the running configuration stays", "error", err.Error())
		return nil, err
	}
	return cfg, nil
}

// logProblem logs a problem of a file.
func logProblem(ctx context.Context, log *slog.Logger, p config.Problem, private bool) {
	if private {
		p = unquoted(p)
	}
	level := slog.LevelError
	if p.Warning {
		level = slog.LevelWarn
	}
	log.Log(ctx, level, "configuration", "problem", p.String())
}

// loadUntil loads a file, and gives up when ctx ends. The system offers no way to break
// a read off: one that never ends (a FIFO, a share of a machine that is gone) is left
// to the end of the process.
func loadUntil(ctx context.Context, path string) (*config.Config, []config.Problem, error) {
	done := make(chan struct{})
	var cfg *config.Config
	var problems []config.Problem
	go func() {
		defer close(done)
		cfg, problems = config.Load(path)
	}()
	select {
	case <-done:
		return cfg, problems, nil
	case <-ctx.Done():
		return nil, nil, fmt.Errorf("%s was not read to its end: %w", path, ctx.Err())
	}
}
