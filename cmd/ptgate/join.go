package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"ptgate/adapter"
	"ptgate/adapter/durable"
	"ptgate/gateway"
	"ptgate/gateway/bridges"
	"ptgate/gateway/config"
	"ptgate/gateway/invitation"
)

func newJoinCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "join LINK",
		Short: "On a client: make its configuration from an invitation, and try it",
		Long: `On a client: make its configuration from an invitation (ptgate://...), as
` + "`ptgate invite`" + ` on the server prints it. Every way to the server is tried; those that work
stand first in the configuration, the fastest at the top.

LINK is the link, the name of a file with it, or - for the standard input, so that the
secret shows neither in the list of processes nor in the shell's history.

Nothing that is there is replaced without being asked: on a terminal there is a question,
and --yes is the answer to all of them. What is replaced stays beside it as FILE.old,
or as FILE.old2 and so on where that is there already.`,
		Example: `  ptgate join link.txt
  ptgate join - --out client.toml
  ptgate join link.txt --service`,
		Args: func(cmd *cobra.Command, args []string) error {
			if invitation.In(strings.Join(args, " ")) {
				return nil // it may have come with spaces, and is not shown
			}
			if len(args) > 1 {
				return usagef("join: one link or one file is all that it takes; `ptgate join --help` tells more")
			}
			return someArgs("LINK", "ptgate://..., a file with the link, or - to paste it")(cmd, args)
		},
	}
	out := cmd.Flags().String("out", "", "`FILE` to write (default: ptgate/ptgate.toml in your configuration directory, where `ptgate run` finds it)")
	yes := cmd.Flags().Bool("yes", false, "answer every question with yes")
	service := cmd.Flags().Bool("service", false, "install a service of your own that starts it with your session (systemd), and start it now")
	listen := cmd.Flags().StringArray("listen", defaultListen, "`ADDRESS` for programs, as in 127.0.0.1:1080; may be given several times")
	timeout := cmd.Flags().Duration("timeout", 30*time.Second, "how long each way is tried")
	cmd.ValidArgsFunction = cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault) // a file with the link
	completeFlag(cmd, "listen", cobra.NoFileCompletions)
	completeFlag(cmd, "timeout", cobra.FixedCompletions([]string{"10s", "30s", "1m"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if *timeout <= 0 {
			return usagef("--timeout %v: a time from now on", *timeout)
		}
		if cmd.Flags().Changed("out") && *out == "" {
			return usagef("--out is empty: give a file")
		}
		v, err := readInvitation(cmd, strings.Join(args, " "))
		if err != nil {
			return err
		}
		path, asked := *out, *out != ""
		if !asked {
			dir, err := os.UserConfigDir()
			if err != nil {
				return fmt.Errorf("%w: name a file with --out", err)
			}
			path = filepath.Join(dir, "ptgate", "ptgate.toml")
		}
		return join(cmd, v, joining{path: path, named: asked, yes: *yes, service: *service, listen: *listen, timeout: *timeout})
	}
	return cmd
}

// defaultListen are the ports that the README tells of.
var defaultListen = []string{"127.0.0.1:1080", "127.0.0.1:8118"}

type joining struct {
	path         string
	named        bool // by the user
	yes, service bool
	listen       []string
	timeout      time.Duration
}

// readInvitation finds the link in a text, in a file or in the standard input.
func readInvitation(cmd *cobra.Command, text string) (*invitation.Invitation, error) {
	switch {
	case text == "-":
		terminal := isTerminal(cmd.InOrStdin())
		if terminal {
			fmt.Fprintln(cmd.ErrOrStderr(), "paste the link, then Enter")
		}
		var err error
		if text, err = readLink(cmd.InOrStdin(), terminal); err != nil {
			return nil, fmt.Errorf("standard input: %w", err)
		}
	case !invitation.In(text):
		if says := noLink(text); says != "" {
			return nil, usagef("join: %s", says)
		}
		f, err := os.Open(text)
		if err != nil {
			if strings.ContainsAny(text, "@,") || strings.Contains(text, "://") || len(text) > 255 { // a part of a link: a secret
				return nil, usagef("join: this is neither a link, which begins with %s, nor a file with one", invitation.Scheme)
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil, usagef("join: %q is neither a link, which begins with %s, nor a file with one", text, invitation.Scheme)
			}
			return nil, err
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, maxLine))
		if err != nil {
			return nil, err
		}
		text = string(b)
	}
	v, err := invitation.Find(text)
	if err != nil && !invitation.In(text) {
		if says := noLink(text); says != "" {
			return nil, errors.New(says)
		}
	}
	if broken, ok := errors.AsType[*invitation.BrokenError](err); ok {
		return nil, fmt.Errorf("%w. It breaks off at line %d, column %d, at %s, which no link has", errors.Unwrap(broken), broken.Line, broken.Column,
			config.Char{Rune: broken.Rune}.Name())
	}
	return v, err
}

// changedScheme is how a link begins in which a program has changed the scheme.
var changedScheme = regexp.MustCompile(`(?i)\bptgate(:|：|&#58;|%3A)`)

// noLink says what a text is that has no link; "": it is not known.
func noLink(text string) string {
	if line := bare(text); !strings.Contains(strings.TrimSpace(line), "\n") {
		if _, err := adapter.ParseBridgeLine(line); err == nil {
			return "this is a bridge line, and no invitation: `ptgate add-bridge` puts it into a configuration"
		}
	}
	if changedScheme.MatchString(text) {
		return fmt.Sprintf("this was an invitation, which begins with %s: the text has been changed on its way; copy it anew, or ask for the file or the QR code", invitation.Scheme)
	}
	return config.Foreign(text)
}

// readLink reads all, but from a terminal only what has the whole link, or up to an empty line.
func readLink(r io.Reader, terminal bool) (string, error) {
	in := bufio.NewScanner(io.LimitReader(r, maxLine))
	in.Buffer(nil, maxLine+1)
	var text strings.Builder
	for in.Scan() {
		fmt.Fprintln(&text, in.Text())
		if !terminal {
			continue
		}
		if _, err := invitation.Find(text.String()); err == nil || strings.TrimSpace(in.Text()) == "" {
			break
		}
	}
	return text.String(), in.Err()
}

// join makes the configuration and tries it.
func join(cmd *cobra.Command, v *invitation.Invitation, j joining) error {
	out, stderr := cmd.OutOrStdout(), cmd.ErrOrStderr()
	ask := questions{cmd: cmd, yes: j.yes}
	_, err := os.Lstat(j.path)
	there := err == nil
	if there && !ask.confirm(j.path+" is there already, and may lead elsewhere. Replace it") {
		return fmt.Errorf("%s is there already: give another file with --out, or --yes to replace it", j.path)
	}
	cfg, problems := config.Check(j.path, []byte(joinedFile(v, j.listen, v.Lines)), 0o600)
	for _, p := range problems {
		if wrong, ok := strings.CutPrefix(p.Message, "[listen]: "); ok && !p.Warning {
			return usagef("--listen: %s", strings.TrimPrefix(wrong, "mixed: "))
		}
		fmt.Fprintln(stderr, p)
	}
	if cfg == nil {
		return errors.New("the invitation makes no configuration that works here")
	}
	_, err = running(cmd.Context(), j.path, "")
	runs := err == nil
	for _, p := range gateway.Check(cfg, j.path, runs) {
		if wrong, ok := strings.CutPrefix(p.Message, "[listen]: "); ok {
			fmt.Fprintf(stderr, "warning: %s: give another port with --listen\n", wrong)
		}
	}
	fmt.Fprintf(stderr, "trying %s to the box\n", plural(len(cfg.Bridges), "way"))
	var doing atomic.Pointer[string]
	tell := func(bridge, text string) { doing.Store(new(bridge + ": " + text)) }
	tell("all", "starting")
	stop := progress(stderr, func() string { return *doing.Load() })
	var probes []bridges.Probe
	err = interruptible(cmd.Context(), func(ctx context.Context) (err error) {
		probes, err = probeAll(ctx, cfg, func(int) bool { return true }, probeFlags{timeout: j.timeout}, tell)
		return err
	})
	stop()
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	order := make([]int, len(probes))
	for i := range probes {
		order[i] = i
		p := &probes[i]
		if p.Err == nil && p.Box != v.Box.String() {
			p.Err = fmt.Errorf("it leads to the box %s, and the invitation is of %s", p.Box, v.Box)
		}
		writeProbe(w, cfg, cfg.Bridges[i], *p)
	}
	w.Flush()
	slices.SortStableFunc(order, func(a, b int) int { return compareProbes(probes[a], probes[b]) })
	lines := make([]adapter.BridgeLine, len(order))
	for i, n := range order {
		lines[i] = v.Lines[n]
	}
	works := probes[order[0]].Err == nil
	if !works && !ask.confirm("No way to the box works from here now. Write the configuration all the same") {
		return errors.New("no way to the box works from here now, so nothing was written; --yes writes it all the same")
	}

	if err := os.MkdirAll(filepath.Dir(j.path), 0o700); err != nil {
		return err
	}
	if there {
		old, err := freeName(j.path + ".old")
		if err != nil {
			return err
		}
		if err := durable.Rename(j.path, old); err != nil {
			return err
		}
		fmt.Fprintf(out, "what was there is now %s\n", old)
	}
	if err := writeSecret(j.path, joinedFile(v, j.listen, lines)); err != nil {
		return err
	}
	fmt.Fprintln(out, "wrote", j.path)
	if err := os.MkdirAll(cfg.StateDir, 0o700); err == nil {
		for _, b := range cfg.Bridges {
			bridges.NoteBox(cfg, b, v.Box)
		}
	}
	if j.service {
		if err := userService(cmd, j); err != nil {
			return err
		}
	}
	if !works {
		return fmt.Errorf("no way to the box works from here now; `ptgate probe -c %s` tries again, and says what is wrong", j.path)
	}
	joinedText(out, j, runs)
	return nil
}

// freeName is path, with a number behind it if that is there already: what was put aside
// before may be the only one of its kind.
func freeName(path string) (string, error) {
	for name, n := path, 2; ; n++ {
		switch _, err := os.Lstat(name); {
		case errors.Is(err, fs.ErrNotExist):
			return name, nil
		case err != nil:
			return "", err
		}
		name = fmt.Sprintf("%s%d", path, n)
	}
}

// compareProbes puts the fastest that works first.
func compareProbes(a, b bridges.Probe) int {
	took := func(p bridges.Probe) (sum time.Duration) {
		if p.Err != nil {
			return time.Hour
		}
		for _, s := range p.Steps {
			sum += s.Took
		}
		return sum
	}
	return cmp.Compare(took(a), took(b))
}

// joinedFile is the text of a client's configuration.
func joinedFile(v *invitation.Invitation, listen []string, lines []adapter.BridgeLine) string {
	var b strings.Builder
	fmt.Fprintf(&b, `# ptgate, beside your programs, as invited by the box %s.
# It is secret: whoever has it can use the box as you.

[listen]
mixed = %s    # each takes SOCKS5, SOCKS4a and HTTP
`, v.Box, tomlList(listen))
	if ownersSelf(listen) {
		b.WriteString("owners = \"self\"    # for programs of yours only, not for other users of this machine\n")
	}
	var names []string
	for _, l := range lines {
		name := l.Transport
		for n := 2; slices.Contains(names, name); n++ {
			name = l.Transport + "-" + strconv.Itoa(n)
		}
		names = append(names, name)
		fmt.Fprintf(&b, "\n[bridge.%s]\nline = %s\nuser = %q\npassword = %q\n", tomlKey(name), strconv.QuoteToGraphic(l.String()), v.User, v.Secret)
	}
	fmt.Fprintf(&b, `
# Everything goes through the box, by the first way that works. Routes are read from the
# top, the first that matches decides; add some above to block a name, or to reach one
# directly:
#
#   [[route]]
#   to  = ".example.org"
#   via = "block"
[[route]]
to  = "*"
via = %s
`, tomlList(names))
	return b.String()
}

// ownersSelf tells whether only programs of this user are let in: where the kernel tells
// whose they are.
func ownersSelf(listen []string) bool {
	return runtime.GOOS == "linux" && !slices.ContainsFunc(listen, func(a string) bool {
		host, _, err := net.SplitHostPort(a)
		return err == nil && !net.ParseIP(host).IsLoopback() && !strings.HasPrefix(a, config.UnixPrefix)
	})
}

func tomlList(texts []string) string {
	quoted := make([]string, len(texts))
	for i, t := range texts {
		quoted[i] = strconv.Quote(t)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// joinedText says how to go on. runs: a ptgate runs with the file that was there before.
func joinedText(out io.Writer, j joining, runs bool) {
	c := ""
	if j.named {
		c = " -c " + j.path
	}
	switch {
	case j.service:
	case runs:
		fmt.Fprintf(out, "one runs already: ptgate reload%s\n", c)
	default:
		fmt.Fprintf(out, "start it:         ptgate run%s\n", c)
	}
	first := j.listen[0]
	host, port, err := net.SplitHostPort(first)
	if err == nil {
		fmt.Fprintf(out, "in a browser:     SOCKS v5 host %s, port %s, with names looked up by the proxy\n", host, port)
		fmt.Fprintf(out, "try it:           curl -x socks5h://%s https://example.com/\n", first)
	}
	fmt.Fprintf(out, "in a shell:       eval \"$(ptgate env%s)\"\n", c)
	if ownersSelf(j.listen) {
		fmt.Fprintf(out, "it lets in:       programs of this user only (owners = \"self\" in %s)\n", j.path)
	}
}

// unitName is the user's service.
const unitName = "ptgate.service"

// userService installs and starts the user's own service.
func userService(cmd *cobra.Command, j joining) error {
	byHand := fmt.Sprintf("start it by hand, or with your session:  ptgate run -c %s", j.path)
	run := func(args ...string) error {
		out, err := adapter.CombinedOutput(exec.CommandContext(cmd.Context(), "systemctl", append([]string{"--user"}, args...)...))
		if err != nil {
			return fmt.Errorf("systemctl --user %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
		}
		return nil
	}
	if err := run("show-environment"); err != nil {
		return fmt.Errorf("--service: there is no systemd for users here (%w): %s", err, byHand)
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	path, err := filepath.Abs(j.path)
	if err != nil {
		return err
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return err
	}
	unit := filepath.Join(dir, "systemd", "user", unitName)
	if err := os.MkdirAll(filepath.Dir(unit), 0o755); err != nil {
		return err
	}
	text := userUnit(exe, path)
	if old, err := os.ReadFile(unit); err == nil && string(old) != text {
		ask := questions{cmd: cmd, yes: j.yes}
		if !ask.confirm(unit + " is there already. Replace it") {
			return fmt.Errorf("%s is there already: remove it, or give --yes; or %s", unit, byHand)
		}
	}
	if err := durable.WriteFile(unit, []byte(text), 0o644); err != nil {
		return err
	}
	for _, args := range [][]string{{"daemon-reload"}, {"enable", unitName}, {"restart", unitName}} {
		if err := run(args...); err != nil {
			return fmt.Errorf("%w; %s", err, byHand)
		}
	}
	fmt.Fprintf(cmd.OutOrStdout(), "started %s; its log:  journalctl --user -u ptgate\n"+
		"it runs while you are logged in; for always:  loginctl enable-linger\n", unit)
	return nil
}

// userUnit is the text of the unit. systemd takes % and $ in ExecStart for its own.
func userUnit(exe, path string) string {
	quote := func(s string) string { return strconv.Quote(strings.NewReplacer("%", "%%", "$", "$$").Replace(s)) }
	return fmt.Sprintf(`# Made by ptgate join.
[Unit]
Description=ptgate, a gateway through pluggable transports

[Service]
Type=notify
ExecStart=%[1]s run -c %[2]s
ExecReload=%[1]s reload -c %[2]s
KillMode=mixed
TimeoutStopSec=90s
Restart=on-failure
RestartSec=5s
RestartPreventExitStatus=%[3]d
UMask=0077

[Install]
WantedBy=default.target
`, quote(exe), quote(path), exitConfig)
}

// Questions are asked on a terminal only.
type questions struct {
	cmd *cobra.Command
	yes bool
}

// confirm tells whether the answer is yes.
func (q questions) confirm(question string) bool {
	if q.yes {
		return true
	}
	answer, ok := q.ask(question + "? [y/N]")
	return ok && slices.Contains([]string{"y", "yes"}, strings.ToLower(answer))
}

// ask returns the answer. ok is false if there is nobody to ask.
func (q questions) ask(question string) (answer string, ok bool) {
	if !isTerminal(q.cmd.InOrStdin()) {
		return "", false
	}
	fmt.Fprint(q.cmd.ErrOrStderr(), question, " ")
	line, err := bufio.NewReader(q.cmd.InOrStdin()).ReadString('\n')
	return strings.TrimSpace(line), err == nil
}
