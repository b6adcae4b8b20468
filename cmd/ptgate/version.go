package main

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by a release build: -ldflags "-X main.version=1.0".
var version string

// A build says what this program was made from. `ptgate version --json` prints it.
type build struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"` // of the source
	Go       string `json:"go"`
	OS       string `json:"os"`
	Arch     string `json:"arch"`
}

func thisBuild() build {
	b := build{version, "", runtime.Version(), runtime.GOOS, runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		b.Version = cmp.Or(b.Version, info.Main.Version)
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				b.Revision = s.Value
			}
		}
	}
	return b
}

// versionText is the build in one line.
func versionText() string {
	b := thisBuild()
	name := b.Version
	if version == "" && b.Revision != "" {
		name += " " + b.Revision
	}
	return fmt.Sprintf("ptgate %s %s %s/%s", name, b.Go, b.OS, b.Arch)
}

func newVersionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  ptgate version --json",
		Args:    noArgs,
	}
	raw := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *raw {
			return printJSON(cmd.OutOrStdout(), thisBuild())
		}
		fmt.Fprintln(cmd.OutOrStdout(), versionText())
		return nil
	}
	return cmd
}
