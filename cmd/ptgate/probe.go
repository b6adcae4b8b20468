package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"ptgate/adapter"
	"ptgate/gateway/bridges"
	"ptgate/gateway/config"
	"ptgate/gateway/outcome"
)

func newProbeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "probe [BRIDGE...]",
		Short: "Dial bridges for real: how far each comes, how long it takes, and why not",
		Long: `Dial bridges for real, all at once, with connections and transport programs of
their own: a ptgate that runs is not disturbed. For each bridge it prints the
stages with their times: the start of the transport program, the connection
through the transport, and the answer of what stands behind it. No destination is
asked for. Without names, all bridges of the configuration are dialled; whoever
watches the network sees their addresses.

A connection through some transports (snowflake, obfs3) says nothing of the far
end: with far = "forward", where nothing can be asked, trust its success less.

Exit code 1 if one of them does not work.`,
		Example: `  ptgate probe -c client.toml
  ptgate probe -c client.toml --timeout 20s tokyo`,
		SuggestFor: []string{"ping", "dial", "try"},
	}
	file := configFlag(cmd)
	cmd.ValidArgsFunction = bridgeNames(file)
	timeout := cmd.Flags().Duration("timeout", 0, "give up after this `TIME` (default: limits.dial)")
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
		return probe(cmd, cfg, names, *timeout)
	}
	return cmd
}

func probe(cmd *cobra.Command, cfg *config.Config, names []string, timeout time.Duration) error {
	chosen := func(i int) bool { return len(names) == 0 || slices.Contains(names, cfg.Bridges[i].Name) }
	if timeout == 0 {
		timeout = cfg.Limits.Dial
	}
	var probes []bridges.Probe
	err := interruptible(cmd.Context(), func(ctx context.Context) (err error) {
		probes, err = probeAll(ctx, cfg, chosen, timeout)
		return err
	})
	if err != nil {
		return err
	}

	out := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	defer out.Flush()
	bad := false
	for i, p := range probes {
		if !chosen(i) {
			continue
		}
		b := cfg.Bridges[i]
		outcome := "works"
		if p.Err != nil {
			outcome = "fails"
			bad = true
		}
		fmt.Fprintf(out, "%s\t%s\t%s\t%s\t%s\n", b.Name, b.Transport, b.Far, outcome, steps(p))
		if p.Box != "" {
			fmt.Fprintf(out, "  box:   %s\n", aboutBox(p, bridges.KnownBox(cfg, b)))
		}
		if p.Err != nil {
			fmt.Fprintf(out, "  error: %v\n  hint:  %s\n", p.Err, probeHint(b, p))
		}
	}
	if bad {
		return exitError(1)
	}
	return nil
}

// probeAll dials the chosen bridges of cfg, by their index, and gives the outcomes at
// the same indices.
func probeAll(ctx context.Context, cfg *config.Config, chosen func(int) bool, timeout time.Duration) ([]bridges.Probe, error) {
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
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	probes := make([]bridges.Probe, len(cfg.Bridges))
	var wg sync.WaitGroup
	for i, b := range m.Apply(apart(cfg, dir)).Bridges() {
		if chosen(i) {
			wg.Go(func() { probes[i] = b.Probe(limited) })
		}
	}
	wg.Wait()
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

// probeHint says what to look at.
func probeHint(b *config.Bridge, p bridges.Probe) string {
	timeout := errors.Is(p.Err, context.DeadlineExceeded) || errors.Is(p.Err, os.ErrDeadlineExceeded) || errors.Is(p.Err, adapter.ReplyTTLExpired)
	switch p.Steps[len(p.Steps)-1].Stage {
	case bridges.StageProgram:
		if text := bridges.StartAdvice(p.Err, b.PT); text != "" {
			return text
		}
		return "the transport program did not start in time: run it by hand, and look at " + b.PT.Setting("exec")
	case bridges.StageTransport:
		if text := bridges.WebAdvice(p.Err); text != "" {
			return text
		}
		switch {
		case bridges.Refused(p.Err):
			return "the address answers, but nothing listens on that port: is the server running, and the port right?"
		case bridges.NoWay(p.Err):
			return "this machine has no way to that address: look at its own connection first"
		case timeout:
			return "no answer: the server is down, its address is blocked from here, or the args are another server's (copy the bridge line anew)"
		}
		return "the bridge was not reached, or is not what the bridge line says: copy the line anew; a refused port, a wrong cert and a blocked address can look alike"
	}
	if text := bridges.AuthAdvice(p.Err); text != "" {
		return text
	}
	if b.Far == config.FarSOCKS5 {
		return "the transport works, but no SOCKS5 server answers behind it: look at the server, and at far and user of the bridge"
	}
	return "the transport works, but no ptgate exit answers behind it: the server leads elsewhere (then set far = \"socks5\" or \"forward\"), or has another version of ptgate"
}
