package main

import (
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// A shell offers files for the value of a flag of which nothing else is known. So each flag says
// what it takes, if that is no file.
func TestEachFlagIsCompleted(t *testing.T) {
	for _, c := range newRoot().Commands() {
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			value, _ := pflag.UnquoteUsage(f)
			_, known := c.GetFlagCompletionFunc(f.Name)
			if !known && value != "" && value != "FILE" && c.Name() != cobra.ShellCompRequestCmd {
				t.Errorf("%s --%s %s: a shell would offer files", c.Name(), f.Name, value)
			}
		})
	}
}
