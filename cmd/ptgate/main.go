// Command ptgate is a local SOCKS5 and HTTP gateway through pluggable transports,
// and its far end. The README.md beside this file has every command, and what it answers programs.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"ptgate/adapter"
	"ptgate/gateway/collect"
	"ptgate/gateway/config"
	"ptgate/gateway/invitation"
)

func main() {
	if os.Getenv("GOGC") == "" {
		// Transports make much short-lived garbage over a small live heap.
		collect.Start()
	}
	log.SetOutput(io.Discard)          // libraries write there; a command that has a log adopts it
	cobra.EnableCaseInsensitive = true // a phone writes the first word with a capital
	stop, err := adapter.AdoptOrphans()
	code := run(context.Background(), os.Args[1:])
	if err == nil { // otherwise the system can't do it
		stop()
	}
	os.Exit(code)
}

// run is the program but for the process around it.
func run(ctx context.Context, args []string) int {
	root := newRoot()
	root.SetArgs(args)
	out := &output{File: os.Stdout}
	root.SetOut(out)
	err := root.ExecuteContext(ctx)
	if err == nil {
		err = out.failed()
		root.Annotations["ran"] = "yes"
	}
	if err == nil {
		return 0
	}
	if code, ok := errors.AsType[exitError](err); ok {
		return int(code)
	}
	if by, ok := errors.AsType[endedBy](err); ok {
		dieOf(by.signal)
		return 1
	}
	complain(err)
	if _, ok := errors.AsType[usageError](err); ok || root.Annotations["ran"] == "" {
		return 2
	}
	return 1
}

// complain tells what went wrong. It may be what another process says.
func complain(err error) {
	fmt.Fprintln(withPriority(os.Stderr, priorityError), "ptgate:", plainText(err.Error()))
}

// A usageError is a wrong command line: exit code 2.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "ptgate",
		Short: "Reach chosen destinations through pluggable transports",
		Long: `ptgate lets ordinary programs reach chosen destinations through pluggable
transports: as the gateway beside the programs (a proxy for SOCKS5, SOCKS4a and
HTTP), as the server at the far end, or both.`,
		Example: `  ptgate demo                              both ends on this machine
  ptgate up --address 198.51.100.7:8443    on a server: all in one, and an invitation
  ptgate join link.txt                     on a client: a configuration from that
  ptgate run -c server.toml                run one`,
		Version:       versionText(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Annotations:   map[string]string{},
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) > 0 && invitation.In(args[0]): // and shown to nobody
				return usagef("an invitation is no command: write  ptgate join LINK")
			case len(args) > 0 && isFile(args[0]):
				return usagef("there is no command %q: write  ptgate run -c %s", args[0], args[0])
			case len(args) > 0:
				return noCommand(cmd, args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		// Whatever fails before a command runs is about how it was called.
		PersistentPreRun: func(cmd *cobra.Command, _ []string) { cmd.Root().Annotations["ran"] = "yes" },
	}
	root.SetVersionTemplate("{{.Version}}\n")
	root.AddCommand(
		newRunCommand(), newCheckCommand(), newExplainCommand(), newDemoCommand(),
		newPairCommand(), newBridgesCommand(), newAddBridgeCommand(), newProbeCommand(), newEnvCommand(),
		newUpCommand(), newInviteCommand(), newJoinCommand(), newUsersCommand(), newRevokeCommand(), newRotateCommand(),
		newStatusCommand(), newReloadCommand(), newPTCommand(), newVersionCommand(),
	)
	strict(root)
	completeWords(root)
	root.InitDefaultHelpFlag() // so that in  ptgate --help up  the flag does not take the word for its value
	root.SetFlagErrorFunc(noFlag)
	return root
}

// noCommand says that there is no such command, and which one may be meant.
func noCommand(root *cobra.Command, word string) error {
	var names []string
	for _, c := range root.Commands() {
		if slices.Contains(c.SuggestFor, strings.ToLower(word)) {
			return usagef("there is no command %q: did you mean %q?", word, c.Name())
		}
		names = append(names, c.Name())
	}
	if hint := config.DidYouMean(word, names); hint != "" {
		return usagef("there is no command %q%s", word, hint)
	}
	return usagef("there is no command %q; `ptgate help` lists them", word)
}

// noFlag adds to an error about flags what may be meant.
func noFlag(cmd *cobra.Command, err error) error {
	path, before := cmd.CommandPath(), ""
	if cmd.HasParent() {
		before = cmd.Name() + ": "
	}
	unknown, ok := errors.AsType[*pflag.NotExistError](err)
	if !ok {
		return usagef("%s%w; `%s --help` tells more", before, err, path)
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, "--"+f.Name) })
	if hint := config.DidYouMean("--"+unknown.GetSpecifiedName(), names); hint != "" && len(unknown.GetSpecifiedName()) > 1 {
		return usagef("%s%w%s", before, err, hint)
	}
	return usagef("%s%w; `%s --help` lists them", before, err, path)
}

// strict makes cobra's own commands take a wrong word for a mistake: they print
// some help then, and succeed.
func strict(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		switch c.Name() {
		case "help":
			c.Example = "  ptgate help invite"
			c.Run = nil
			c.RunE = func(_ *cobra.Command, args []string) error {
				about, rest, err := root.Find(args)
				if err != nil || len(rest) > 0 {
					return noCommand(root, strings.Join(args, " "))
				}
				about.InitDefaultHelpFlag()
				return about.Help()
			}
		case "completion":
			c.Example = "  source <(ptgate completion bash)\n  ptgate completion fish > ~/.config/fish/completions/ptgate.fish"
			var shells []string
			for _, s := range c.Commands() {
				shells = append(shells, s.Name())
				s.Args = noArgs
			}
			c.Args = func(c *cobra.Command, args []string) error {
				if len(args) > 0 {
					return usagef("completion: there is no shell %q: it is for %s", args[0], strings.Join(shells, ", "))
				}
				return nil
			}
			c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
		}
	}
}

// configFlag adds -c.
func configFlag(cmd *cobra.Command) *string {
	file := cmd.Flags().StringP("config", "c", "", "configuration `FILE` (default: $PTGATE_CONFIG, ./ptgate.toml, "+
		"the user's configuration directory, /etc/ptgate/ptgate.toml)")
	completeFlag(cmd, "config", files("toml"))
	return file
}
