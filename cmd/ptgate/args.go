package main

import (
	"strings"

	"github.com/spf13/cobra"

	"ptgate/gateway/destination"
)

// noArgs refuses words behind a command, and says how what they seem to be is
// given.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	name, word := cmd.Name(), args[0]
	if cmd.Flags().Lookup("address") != nil {
		_, err := destination.Parse(word)
		if err != nil && strings.Contains(word, ".") && !isFile(word) {
			_, err = upAddress(word) // without a port
		}
		if err == nil {
			return usagef("%s: %q stands alone: write  ptgate %[1]s --address %[3]s", name, word, word)
		}
	}
	if c := cmd.Flags().Lookup("config"); c != nil && !c.Changed {
		return usagef("%s: %q stands alone: a file is given with -c: write  ptgate %[1]s -c %[3]s", name, word, word)
	}
	return usagef("%s: %q is one word too many; `ptgate %[1]s --help` tells more", name, word)
}

// someArgs wants at least one word, which is called what.
func someArgs(what, example string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usagef("%s: %s is missing: write as in  ptgate %[1]s %[3]s", cmd.Name(), what, example)
		}
		return nil
	}
}

// isFile tells whether a word looks like a configuration's name.
func isFile(word string) bool { return strings.HasSuffix(word, ".toml") }
