package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"ptgate/gateway"
	"ptgate/gateway/config"
	"ptgate/gateway/control"
	"ptgate/gateway/redact"
	"ptgate/gateway/supervise"
)

// A runner is the ptgate that runs a file, as its control socket shows it.
type runner struct {
	socket string
	file   config.Location
	shown  string // the file's name, as given
}

// running finds the ptgate that runs a file. The file may have become wrong since that
// one loaded it, or name another state directory. stateDir is one to look in, instead of
// those that are known; "": none.
func running(ctx context.Context, file, stateDir string) (r runner, err error) {
	if r.shown, err = config.Find(file); err != nil {
		return r, err
	}
	var unread error
	r.file, unread = config.Locate(r.shown)
	var sockets []string
	dirs := r.file.StateDirs
	if stateDir != "" {
		dirs = []string{stateDir}
	}
	for _, dir := range dirs {
		sockets = append(sockets, control.Path(dir, r.file.Path))
	}
	if r.socket, err = control.Find(ctx, sockets...); err != nil && unread != nil {
		err = fmt.Errorf("%s: %w; give the file that ptgate runs with -c FILE", r.shown, unread)
	} else if err != nil {
		err = fmt.Errorf("%w. To start it:  ptgate run -c %s. If one runs: with the same file? "+
			"If another user has started it, with its own state directory: --state-dir DIR", err, r.shown)
	}
	return r, err
}

// stateDirFlag adds --state-dir.
func stateDirFlag(cmd *cobra.Command) *string {
	dir := cmd.Flags().String("state-dir", "", "state `DIR` of the ptgate that runs, if it is not found there (default: as the file says; systemd's; the user's)")
	completeFlag(cmd, "state-dir", directories)
	return dir
}

// complain says what is wrong with the file as it is now: what a reload would refuse.
func (r runner) complain(out io.Writer) {
	cfg, problems := config.Load(r.shown)
	for _, p := range problems {
		if cfg == nil && !p.Warning {
			show(out, nil, p)
		}
	}
	switch {
	case cfg == nil:
		fmt.Fprintf(out, "# %s has errors now: a reload would be refused, and the configuration that was loaded before runs on\n", r.shown)
	case r.file.Named != "" && !sameDir(r.socket, r.file.Named):
		fmt.Fprintf(out, "# state_dir of %s is now %s: that takes a restart, and a reload would be refused\n", r.shown, r.file.Named)
	}
}

// sameDir tells whether a socket, or what a link there leads to, is in dir.
func sameDir(socket, dir string) bool {
	if to, err := os.Readlink(socket); err == nil {
		socket = to
	}
	have, err := os.Stat(filepath.Dir(socket))
	want, err2 := os.Stat(dir)
	return err == nil && err2 == nil && os.SameFile(have, want)
}

func newReloadCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Make a running ptgate read its configuration again, and report the outcome",
		Long: `Make the running ptgate read its configuration again: the same as SIGHUP, with the
outcome told here. A file with errors changes nothing; live connections go on.`,
		Example: "  ptgate reload -c client.toml",
		Args:    noArgs,
	}
	file := configFlag(cmd)
	stateDir := stateDirFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
		defer cancel()
		r, err := running(ctx, *file, *stateDir)
		if err != nil {
			return err
		}
		before := shown(ctx, r.socket)
		stop := progress(cmd.ErrOrStderr(), func() string { return "reloading" })
		err = control.Reload(ctx, r.socket)
		stop()
		if err != nil {
			if errors.Is(err, control.ErrNotRunning) {
				return err
			}
			text := err.Error()
			if toJournal(cmd.ErrOrStderr()) { // a log, perhaps a private one: ptgate itself writes the rest there if it may
				lines := strings.Split(text, "\n")
				for i, line := range lines {
					lines[i] = redact.Quoted(line)
				}
				text = strings.Join(lines, "\n")
			}
			return fmt.Errorf("reload refused, the running configuration stays:\n%s", text)
		}
		fmt.Fprintln(cmd.OutOrStdout(), "reloaded")
		after := shown(ctx, r.socket)
		if after != nil && len(after.Restart) > 0 {
			fmt.Fprintln(cmd.ErrOrStderr(), "#", needsRestart(after))
		}
		if before != nil && after != nil && after.AsksUsers && !before.AsksUsers {
			fmt.Fprintln(cmd.ErrOrStderr(), "# warning: from now on every client needs a user: the others are turned away, and what they had open has ended. `ptgate invite NAME` makes one")
		}
		return nil
	}
	return cmd
}

// shown is the status of a running ptgate; nil: it gives none.
func shown(ctx context.Context, socket string) *gateway.Status {
	var s gateway.Status
	if b, err := control.Status(ctx, socket); err != nil || json.Unmarshal(b, &s) != nil {
		return nil
	}
	return &s
}

// needsRestart says what a reload has not put to work.
func needsRestart(s *gateway.Status) string {
	return strings.Join(s.Restart, ", ") + ": that takes a restart of ptgate"
}

func newStatusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "What a running ptgate says of itself",
		Long: `What a running ptgate says of itself: listeners, bridges and their state, served
transports, totals. No destination and no client is named.

What is wrong with the file as it is now, if it was edited since, goes to the
standard error.

With --watch it shows that again each second, until Ctrl-C: what moves now, how the
routes and bridges do, and what has gone wrong since.`,
		Example: `  ptgate status -c client.toml
  ptgate status --watch
  ptgate status --json | jq .bridges`,
		SuggestFor: []string{"info", "show", "state"},
		Args:       noArgs,
	}
	file := configFlag(cmd)
	stateDir := stateDirFlag(cmd)
	raw := jsonFlag(cmd)
	live := cmd.Flags().BoolP("watch", "w", false, "show it again each second, until Ctrl-C")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *live && *raw {
			return usagef("status: --watch is for people, and --json for programs: give one of them")
		}
		if *live {
			return watchStatus(cmd.Context(), *file, *stateDir, cmd.OutOrStdout())
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
		defer cancel()
		r, err := running(ctx, *file, *stateDir)
		if err != nil {
			return err
		}
		b, err := control.Status(ctx, r.socket)
		if err != nil {
			return err
		}
		if *raw {
			_, err = jsonWriter{cmd.OutOrStdout()}.Write(b)
		} else {
			var s gateway.Status
			if err := json.Unmarshal(b, &s); err != nil {
				return err
			}
			printStatus(plainWriter{cmd.OutOrStdout()}, &s)
		}
		r.complain(cmd.ErrOrStderr())
		return err
	}
	return cmd
}

func printStatus(out io.Writer, s *gateway.Status) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	defer w.Flush()
	fmt.Fprintf(w, "%s\tpid %d, since %s\n", s.State, s.PID, s.Since.Format(time.DateTime))
	fmt.Fprintf(w, "configuration\t%s, loaded %s\n", s.Config, s.Loaded.Format(time.DateTime))
	if len(s.Restart) > 0 {
		fmt.Fprintf(w, "changed\t%s\n", needsRestart(s))
	}
	for _, l := range s.Listeners {
		fmt.Fprintf(w, "%s\t%s\n", l.Front, l.Address)
	}
	for _, a := range s.Admin {
		if !strings.HasPrefix(a, config.UnixPrefix) {
			a = "http://" + a
		}
		fmt.Fprintf(w, "status page\t%s\n", a)
	}
	if len(s.Admin) == 0 && s.NoAdmin != "" && len(s.Routes) > 0 {
		fmt.Fprintf(w, "status page\tnone: %s\n", s.NoAdmin)
	}
	if len(s.Listeners) > 0 || s.Active > 0 {
		fmt.Fprintf(w, "connections\t%d, %s up, %s down in all\n", s.Active, size(s.Up), size(s.Down))
	}
	for _, b := range s.Bridges {
		more := []string{b.State}
		if b.Told {
			more = append(more, "learned from its server")
		}
		if !b.Detached.IsZero() {
			more = append(more, "streams wait for a carrier since "+b.Detached.Format(time.TimeOnly))
		}
		if text := b.Leave(time.Now()); text != "" {
			more = append(more, text)
		}
		if b.Carriers > 0 {
			carriers := plural(b.Carriers, "carrier")
			if len(b.Over) > 1 || len(b.Over) == 1 && b.Over[0] != b.Name {
				carriers += " over " + strings.Join(b.Over, " and ")
			}
			more = append(more, carriers)
		}
		if b.RTT > 0 {
			more = append(more, "round trip "+b.RTT.Round(100*time.Microsecond).String())
		}
		more = append(more, plural(int(b.Active), "connection"))
		if b.Box != "" {
			box := "box " + b.Box
			if b.Changed {
				box += ", which is another one than before"
			}
			more = append(more, box)
		}
		if b.Replayed > 0 {
			more = append(more, size(b.Replayed)+" sent again")
		}
		if b.Why != "" {
			again := "tried again after " + b.Until.Format(time.TimeOnly)
			if time.Now().After(b.Until) {
				again = "tried again with the next request"
			}
			more = append(more, again, b.Why)
		}
		if b.PT != nil {
			more = append(more, trouble(b.PT)...)
		}
		fmt.Fprintf(w, "bridge %s\t%s, %s: %s\n", b.Name, b.Transport, b.Far, strings.Join(more, ", "))
		if b.Verdict != nil {
			fmt.Fprintf(w, "  %s\t%s\n", b.Verdict.Kind, b.Verdict.Advice())
		}
		for _, l := range b.Learned {
			fmt.Fprintf(w, "  %s\t%s: %s\n", l.Kind, l.Value, l.Text)
		}
	}
	if s.Box != "" {
		fmt.Fprintf(w, "box\t%s\n", s.Box)
	}
	for _, x := range s.Serve {
		more := append([]string{plural(int(x.Clients), "client connection"), plural(int(x.Active), "stream"),
			size(x.In) + " in", size(x.Out) + " out"}, trouble(&x.PT)...)
		if !x.OldUntil.IsZero() {
			more = append(more, "old bridge lines are good until "+day(x.OldUntil))
		}
		fmt.Fprintf(w, "serve %s\t%s: %s\n", x.Transport, x.Address, strings.Join(more, ", "))
	}
}

// trouble tells of a transport program that fails.
func trouble(st *supervise.Status) (more []string) {
	if st.Failures == 0 {
		return nil
	}
	more = append(more, "its program has failed "+plural(st.Failures, "time"))
	if st.State == supervise.Waiting {
		more = append(more, "starts again after "+st.Until.Format(time.TimeOnly))
	}
	return append(more, st.Error)
}

func size(n int64) string {
	const units = "KMGT"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}
