package main

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"ptgate/gateway/config"
	"ptgate/gateway/destination"
	"ptgate/gateway/exit"
	"ptgate/routes"
)

func newCheckCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check a configuration: every error as FILE:LINE: message",
		Args:  noArgs,
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
		Args: someArgs("HOST[:PORT]", "www.example.com:443"),
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
			if a == "" {
				a = `""`
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
	t, err := readDestination(arg)
	if err != nil {
		return "", err
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
		text := "direct, without any bridge, by " + where
		switch {
		case cfg.ReachesPrivate(m):
		case t.Addr.IsValid() && !exit.Public(t.Addr):
			return "blocked: a private address, which " + where + " does not name: name it in to, or write private = true", nil
		default:
			text += " (private addresses are blocked)"
		}
		return text, nil
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

// readDestination reads what a person takes for one: the port may be absent.
func readDestination(arg string) (routes.Target, error) {
	arg, _, err := config.Pasted(arg, config.TextName)
	if err != nil {
		return routes.Target{}, fmt.Errorf("%w: it has %w", destination.ErrInvalid, err)
	}
	t, err := destination.Parse(arg)
	if err == nil {
		return t, nil
	}
	t, err2 := destination.FromHostPort(trimBrackets(arg), 443)
	if err2 == nil {
		return t, nil
	}
	invalid := func(format string, args ...any) (routes.Target, error) {
		return routes.Target{}, fmt.Errorf("%w: "+format, append([]any{destination.ErrInvalid}, args...)...)
	}
	switch {
	case arg == "":
		return invalid("it is empty: write HOST or HOST:PORT")
	case strings.Contains(arg, "://"):
		if u, err := url.Parse(arg); err == nil && u.Host != "" {
			host := u.Host
			if u.Scheme == "http" && u.Port() == "" {
				host += ":80"
			}
			return invalid("a URL: write only its host, %s", host)
		}
		return invalid("a URL: write only its host")
	case strings.ContainsAny(arg, " \t\n"):
		return invalid("it has a space in it: write each destination as a word of its own")
	case strings.Contains(arg, "*") || strings.HasPrefix(arg, "."):
		return invalid("a pattern: write a name that it might take, such as www.example.com")
	case strings.Contains(arg, "/"):
		return invalid("it has a \"/\" in it: write one host, neither a network nor a path")
	case !strings.Contains(arg, ":"):
		return routes.Target{}, err2 // the port is not what is wrong
	}
	return routes.Target{}, err
}

func trimBrackets(s string) string {
	if len(s) > 2 && s[0] == '[' && s[len(s)-1] == ']' {
		return s[1 : len(s)-1]
	}
	return s
}
