package main

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"ptgate/adapter/builtin"
)

// An exitError ends the program with that code and without a message.
type exitError int

func (e exitError) Error() string { return "exit code " + strconv.Itoa(int(e)) }

// newPTCommand makes `ptgate pt`, the built-in transports for any pt-spec parent.
func newPTCommand() *cobra.Command {
	var names []string
	for _, row := range builtin.Transports() {
		if row.Inside() {
			names = append(names, row.Name)
		}
	}
	return &cobra.Command{
		Use:   "pt",
		Short: "Run the built-in pluggable transports for a pt-spec parent",
		Long: `Run the built-in pluggable transports (` + strings.Join(names, ", ") + `) as a child
of ptgate, tor or any other program that speaks pt-spec version 1. Everything is
set in the environment by that program; by hand this command is of no use.

In a torrc:

  ClientTransportPlugin ` + strings.Join(names, ",") + ` exec /usr/local/bin/ptgate pt`,
		Example: "  ptgate pt    # started by tor, never by hand",
		// Configurations written for other programs give them words of their own
		// (managed, -enableLogging, -logLevel=DEBUG), which these ignore, too.
		DisableFlagParsing: true,
		SilenceErrors:      true,
		SilenceUsage:       true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if slices.Equal(args, []string{"--help"}) || slices.Equal(args, []string{"-h"}) {
				return cmd.Help()
			}
			// Main has its own meaning for signals: SIGINT lets streams finish.
			ctx := context.WithoutCancel(cmd.Context())
			if code := builtin.Main(ctx, cmd.InOrStdin(), cmd.OutOrStdout()); code != 0 {
				return exitError(code)
			}
			return nil
		},
	}
}
