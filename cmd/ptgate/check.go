package main

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"ptgate/gateway/config"
	"ptgate/gateway/dest"
)

func newCheckCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check a configuration: every error as FILE:LINE: message",
		Args:  cobra.NoArgs,
	}
	file := configFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		path, err := config.Find(*file)
		if err != nil {
			return err
		}
		cfg, problems := config.Load(path)
		for _, p := range problems {
			fmt.Fprintln(cmd.OutOrStdout(), p)
		}
		if cfg == nil {
			return exitError(1)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s: fine: %s\n", path, summary(cfg))
		return nil
	}
	return cmd
}

func summary(cfg *config.Config) string {
	return fmt.Sprintf("%s, %s, %s", plural(len(cfg.Routes), "route"), plural(len(cfg.Bridges), "bridge"), plural(len(cfg.Serve), "served transport"))
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func newExplainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain HOST[:PORT]...",
		Short: "Tell which route takes a destination, by which line, through which bridges",
		Long: `Tell which route takes a destination, by which pattern on which line, and through
which bridges it goes. Nothing is looked up or dialled. Without a port, 443.`,
		Args: cobra.MinimumNArgs(1),
	}
	file := configFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, err := load(*file, cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		bad := false
		for _, a := range args {
			text, err := explain(cfg, a)
			if err != nil {
				bad = true
				text = err.Error()
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", a, text)
		}
		if bad {
			return exitError(1)
		}
		return nil
	}
	return cmd
}

func explain(cfg *config.Config, arg string) (string, error) {
	t, err := dest.Parse(arg)
	if err != nil {
		var err2 error
		if t, err2 = dest.FromHostPort(trimBrackets(arg), 443); err2 != nil {
			return "", err
		}
	}
	m, ok := cfg.Table.Lookup(t)
	if !ok {
		return "no route takes it: blocked (SOCKS5 reply 2, HTTP 403)", nil
	}
	file, line, pattern := cfg.Where(m)
	r := cfg.Routes[m.Rule]
	where := fmt.Sprintf("route %d, pattern %q at %s:%d", m.Rule+1, pattern, file, line)
	switch r.Action {
	case config.ActionBlock:
		return "blocked by " + where, nil
	case config.ActionDirect:
		return "direct, without any bridge, by " + where, nil
	}
	text := "via "
	for i, b := range r.Via {
		if i > 0 {
			text += ", "
		}
		text += fmt.Sprintf("%s (%s, %s)", b.Name, b.Transport, b.Far)
	}
	if len(r.Via) > 1 {
		text += fmt.Sprintf(", pick %s", r.Pick)
	}
	text += ", by " + where
	if slices.ContainsFunc(r.Via, func(b *config.Bridge) bool { return b.Far == config.FarExit }) {
		text += " (the far end's [exit] may still refuse)"
	}
	return text, nil
}

func trimBrackets(s string) string {
	if len(s) > 2 && s[0] == '[' && s[len(s)-1] == ']' {
		return s[1 : len(s)-1]
	}
	return s
}
