package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"ptgate/gateway/bridges"
	"ptgate/gateway/config"
	"ptgate/gateway/doctor"
	"ptgate/gateway/outcome"
)

func newProbeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "probe [BRIDGE...]",
		Short: "Dial bridges for real: how far each comes, how long it takes, and why not",
		Long: `Dial bridges for real, all at once, with connections and transport programs of
their own: a ptgate that runs is not disturbed. For each bridge it prints the
stages with their times: the start of the transport program, the connection
through the transport, and the answer of what stands behind it. Where one fails, it
says what kind of trouble that is, by what it is known, what ptgate does about it by
itself, and what you can do. No destination is asked for. Without names, all bridges
of the configuration are dialled; whoever watches the network sees their addresses.

With --deep it also measures, over a few connections to a ptgate exit, what the
network does to connections that work: whether it freezes, cuts or slows them down,
or lets through only so many. That takes a few seconds where it finds something, and
up to a minute where it finds nothing: press ^C to stop.

A connection through some transports (snowflake, obfs3) says nothing of the far
end: with far = "forward", where nothing can be asked, trust its success less.

Exit code 1 if one of them does not work.`,
		Example: `  ptgate probe -c client.toml
  ptgate probe -c client.toml --timeout 20s tokyo
  ptgate probe -c client.toml --deep`,
		SuggestFor: []string{"ping", "dial", "try"},
	}
	file := configFlag(cmd)
	cmd.ValidArgsFunction = bridgeNames(file)
	timeout := cmd.Flags().Duration("timeout", 0, "give up after this `TIME` (default: limits.dial, and at most 12s for transports inside ptgate)")
	deep := cmd.Flags().Bool("deep", false, "measure what the network does to connections, too")
	raw := jsonFlag(cmd)
	completeFlag(cmd, "timeout", cobra.FixedCompletions([]string{"10s", "30s", "1m"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		if *timeout < 0 {
			return usagef("--timeout %v: a time from now on", *timeout)
		}
		cfg, err := load(*file, cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		if len(cfg.Bridges) == 0 {
			return fmt.Errorf("%s has no bridges: probe is for the box beside the programs", cfg.Path)
		}
		for _, n := range names {
			if !slices.ContainsFunc(cfg.Bridges, func(b *config.Bridge) bool { return b.Name == n }) {
				var known []string
				for _, b := range cfg.Bridges {
					known = append(known, strconv.Quote(b.Name))
				}
				return usagef("%s has no bridge %q: it has %s", cfg.Path, n, strings.Join(known, ", "))
			}
		}
		return probe(cmd, cfg, names, probeFlags{*timeout, *deep, *raw})
	}
	return cmd
}

type probeFlags struct {
	timeout    time.Duration
	deep, json bool
}

// A probed is a bridge in the output of probe --json.
type probed struct {
	Name        string         `json:"name"`
	Transport   string         `json:"transport"`
	Far         config.Far     `json:"far"`
	Works       bool           `json:"works"`
	Steps       []bridges.Step `json:"steps"`
	Connections int            `json:"connections"`
	Box         string         `json:"box,omitempty"`
	Told        int            `json:"told,omitempty"` // more ways that its server has told of, and that were not tried
	Error       string         `json:"error,omitempty"`
	doctor.Verdict
}

func probe(cmd *cobra.Command, cfg *config.Config, names []string, f probeFlags) error {
	chosen := func(i int) bool {
		b := cfg.Bridges[i]
		return len(names) == 0 || slices.Contains(names, b.Name) || slices.Contains(names, b.Of) // all ways to a box have its name
	}
	var doing atomic.Pointer[string]
	tell := func(bridge, text string) { doing.Store(new(bridge + ": " + text)) }
	tell("all", "starting")
	if f.deep && !isTerminal(cmd.ErrOrStderr()) { // it can take a minute
		tell = tellSteps(cmd.ErrOrStderr())
	}
	stop := progress(cmd.ErrOrStderr(), func() string { return *doing.Load() })
	var probes []bridges.Probe
	err := interruptible(cmd.Context(), func(ctx context.Context) (err error) {
		probes, err = probeAll(ctx, cfg, chosen, f, tell)
		return err
	})
	stop()
	if err != nil {
		return err
	}
	bad := false
	var list []probed
	for i, p := range probes {
		if !chosen(i) {
			continue
		}
		b := cfg.Bridges[i]
		bad = bad || p.Err != nil
		one := probed{Name: b.Name, Transport: b.Transport, Far: b.Far, Works: p.Err == nil, Steps: p.Steps,
			Connections: p.Connections, Box: p.Box, Told: bridges.ToldWays(cfg, b), Verdict: p.Verdict}
		if p.Err != nil {
			one.Error = p.Err.Error()
		}
		list = append(list, one)
	}
	if f.json {
		if err := printJSON(cmd.OutOrStdout(), list); err != nil {
			return err
		}
	} else {
		out := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		for i, p := range probes {
			if chosen(i) {
				writeProbe(out, cfg, cfg.Bridges[i], p)
			}
		}
		out.Flush()
	}
	if bad {
		return exitError(1)
	}
	return nil
}

// tellSteps writes what is done now in a line, if it is not the same as before.
func tellSteps(out io.Writer) func(bridge, text string) {
	var mu sync.Mutex
	last := map[string]string{}
	return func(bridge, text string) {
		mu.Lock()
		defer mu.Unlock()
		if last[bridge] != text {
			last[bridge] = text
			fmt.Fprintf(out, "%s: %s\n", plainText(bridge), plainText(text))
		}
	}
}

// writeProbe tells of one bridge in words.
func writeProbe(out io.Writer, cfg *config.Config, b *config.Bridge, p bridges.Probe) {
	result := "works"
	if p.Err != nil {
		result = "fails"
	}
	fmt.Fprintf(out, "%s\t%s\t%s\t%s\t%s\n", b.Name, b.Transport, b.Far, result, steps(p))
	line := func(key, text string) {
		if text != "" {
			fmt.Fprintf(out, "  %-8s%s\n", key+":", text)
		}
	}
	if p.Box != "" {
		line("box", aboutBox(p, bridges.KnownBox(cfg, b)))
	}
	if p.Err != nil {
		line("error", p.Err.Error())
	}
	v := p.Verdict
	if v.Kind != doctor.Works {
		line("cause", v.Says)
	}
	line("seen", strings.Join(v.Evidence, "; "))
	line("ptgate", v.Itself)
	line("hint", v.Next)
	if b.Far == config.FarForward && v.Kind == doctor.Works {
		line("note", "far = \"forward\": nothing can be asked, so what stands behind the transport was not looked at")
	}
	if n := bridges.ToldWays(cfg, b); n > 0 {
		line("told", "its server has told of "+plural(n, "more way")+", which the running ptgate takes behind this one: `ptgate status` says how; they were not tried here")
	}
	if p.Connections > 1 {
		line("made", fmt.Sprintf("%d connections", p.Connections))
	}
}

// probeWait bounds the first connection of a transport inside this process. Nothing there
// takes longer that gets through.
const probeWait = 12 * time.Second

// probeAll dials the chosen bridges of cfg, by their index, and gives the outcomes at
// the same indices. It tells what is done for each.
func probeAll(ctx context.Context, cfg *config.Config, chosen func(int) bool, f probeFlags, tell func(bridge, text string)) ([]bridges.Probe, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "ptgate-probe-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	quiet := slog.New(slog.DiscardHandler)
	m := bridges.NewManager(exe, outcome.New(quiet), quiet)
	defer m.Close()
	probes := make([]bridges.Probe, len(cfg.Bridges))
	var wg sync.WaitGroup
	for i, b := range m.Apply(apart(cfg, dir)).Bridges() {
		if !chosen(i) {
			continue
		}
		c := cfg.Bridges[i]
		o := bridges.ProbeOptions{Wait: f.timeout, Deep: f.deep, Tell: func(text string) { tell(c.Name, text) }}
		if o.Wait == 0 {
			o.Wait = cfg.Limits.Dial
		}
		if c.PT.Builtin() && (f.timeout == 0 || f.deep) {
			o.Wait = min(o.Wait, probeWait)
		}
		limited, cancel := ctx, context.CancelFunc(func() {})
		if f.timeout > 0 && f.deep {
			limited, cancel = context.WithTimeout(ctx, f.timeout)
		}
		wg.Go(func() {
			defer cancel()
			probes[i] = b.Probe(limited, o)
		})
	}
	wg.Wait()
	// ^C ends a measurement, and what was seen until then counts.
	whole := f.deep
	for i, p := range probes {
		whole = whole && (!chosen(i) || p.Err == nil && p.Verdict.Kind != "")
	}
	if whole {
		return probes, nil
	}
	return probes, ctx.Err()
}

// apart is a configuration of the same bridges, whose transport programs share a
// directory with no others: each has a fresh one in dir, also those whose [pt.NAME]
// has a state. As clients they keep nothing there that a connection needs.
func apart(cfg *config.Config, dir string) *config.Config {
	trial := *cfg
	trial.StateDir, trial.Routes = dir, nil
	trial.Bridges = make([]*config.Bridge, len(cfg.Bridges))
	pts := map[*config.PT]*config.PT{}
	for i, b := range cfg.Bridges {
		if pts[b.PT] == nil {
			pt := *b.PT
			pt.State = ""
			pts[b.PT] = &pt
		}
		bridge := *b
		bridge.PT = pts[b.PT]
		trial.Bridges[i] = &bridge
	}
	return &trial
}

func steps(p bridges.Probe) string {
	var parts []string
	for i, s := range p.Steps {
		word := ""
		if p.Err != nil && i == len(p.Steps)-1 {
			word = "no "
		}
		parts = append(parts, fmt.Sprintf("%s%s %v", word, s.Stage, s.Took.Round(100*time.Microsecond)))
	}
	return strings.Join(parts, ", ")
}

// aboutBox tells of the box behind a bridge. known is the one to which it has led before;
// "": it is not known.
func aboutBox(p bridges.Probe, known string) string {
	text := p.Box
	switch known {
	case "":
	case p.Box:
		text += ", the same as before"
	default:
		text += ", another one than before (" + known + ")"
	}
	if p.Resume == 0 {
		return text + "; streams end with their connection"
	}
	return text + fmt.Sprintf("; streams outlive their connections by %v", p.Resume)
}
