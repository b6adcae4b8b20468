//go:build !linux

package adapter

import "os/exec"

// AdoptOrphans does nothing: only Linux can do it.
func AdoptOrphans() (stop func(), err error) { return func() {}, nil }

// CombinedOutput is cmd.CombinedOutput.
func CombinedOutput(cmd *exec.Cmd) ([]byte, error) { return cmd.CombinedOutput() }
